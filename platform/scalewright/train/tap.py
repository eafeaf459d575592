"""What one pass of a model computed, as 64-bit digests, read by hooks that change nothing.

The gradients of weights are read before they are added up and reduced: as this rank computed them,
of this pack alone. Hooks are on modules and on tensors that a module sees while it runs, where
FSDP has gathered its weights.
"""

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from scalewright.model.mmdit import MMDiT, Prediction

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22  # elements: their 64-bit integers take 32 MiB
_PLACE, _MIX = -0x61C8864680B583EB, -0x3C5A37A3B0B9A6B3  # odd, spread over 64 bits (splitmix64)
_LOW = 0xFFFFFFFF

OUTSIDE = "outside"  # of all blocks: the model's own weights


def digest(tensor: Tensor, salt: int = 0) -> Tensor:
    """An int64 () on the tensor's device that depends on every bit and its place.

    It differs for sure where one element does, and else misses a difference with a probability of
    about 2^-64: elements are mixed as splitmix64 does before they are summed. Sums of integers are
    the same in any order.
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for begin in range(0, len(bits), _CHUNK):
        part = bits[begin : begin + _CHUNK].long()  # of 64-bit integers it is no copy
        places = torch.arange(begin, begin + len(part), device=flat.device)
        # Every step but the sum is a bijection of 64-bit integers.
        mixed = (places + (salt << 32)).mul_(_PLACE).bitwise_xor_(part).mul_(_MIX)
        for factor in (_PLACE, _MIX):  # one round leaves the sign bits of many to cancel out
            mixed ^= (mixed >> 32) & _LOW
            mixed.mul_(factor)
        mixed ^= (mixed >> 32) & _LOW
        total += mixed.sum()
    return total


def digest_of_all(value: Any) -> Tensor:
    """The digest of all tensors in lists, tuples and dataclasses; there must be one."""
    tensors = _tensors(value)
    return torch.stack([digest(tensor, salt) for salt, tensor in enumerate(tensors)]).sum()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def quantities(model: MMDiT) -> list[str]:
    """What a tap reads, in the order of its digests."""
    blocks = [f"block_{index:02d}" for index in range(len(model.blocks))]
    return [
        "velocity",
        "velocity_gradient",
        *(f"input_gradient/{block}" for block in blocks),
        *(f"weight_gradients/{block}" for block in (*blocks, OUTSIDE)),
    ]


class Tap:
    """Digests of the forward pass number `at` (from 0) since it began, and of its backward pass.

    Without `backward` gradients are not read. With `drop` the weights' gradients are thrown away
    as soon as they are read, so that a pass leaves nothing behind.
    """

    def __init__(
        self, model: MMDiT, *, at: int = 0, backward: bool = True, drop: bool = False
    ) -> None:
        self._at, self._backward, self._drop = at, backward, drop
        self._pass, self._names = -1, quantities(model)
        device = next(model.parameters()).device
        self._found = {name: torch.zeros((), dtype=torch.int64, device=device)
                       for name in self._names}  # fmt: skip
        self._of_pass: list[RemovableHandle] = []
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end),
        ]
        for index, block in enumerate(model.blocks):
            self._handles.append(
                block.register_forward_pre_hook(self._entering(f"block_{index:02d}"))
            )

    def digests(self) -> Tensor:
        """(quantities,) int64; zero for what was not read."""
        return torch.stack([self._found[name] for name in self._names])

    def __enter__(self) -> "Tap":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take all hooks away; doing it twice is harmless."""
        for handle in (*self._handles, *self._of_pass):
            handle.remove()
        self._of_pass.clear()

    @property
    def _reads(self) -> bool:
        return self._pass == self._at

    def _begin(self, model: nn.Module, arguments: Any) -> None:
        self._pass += 1
        for handle in self._of_pass:  # weights are the same tensors in the next pass
            handle.remove()
        self._of_pass.clear()
        if self._reads:
            own = [p for name, p in model.named_parameters() if not name.startswith("blocks.")]
            self._read_weights(own, OUTSIDE)

    def _entering(self, block: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            if self._reads:
                self._read_gradient(arguments[0], f"input_gradient/{block}")
                self._read_weights(list(module.parameters()), block)

        return hook

    def _end(self, model: nn.Module, arguments: Any, prediction: Prediction) -> None:
        if self._reads:
            self._add("velocity", prediction.velocity)
            self._read_gradient(prediction.velocity, "velocity_gradient")

    def _read_weights(self, weights: list[nn.Parameter], where: str) -> None:
        for salt, weight in enumerate(weights):
            self._read_gradient(weight, f"weight_gradients/{where}", salt)
            if self._drop and weight.requires_grad:
                self._of_pass.append(weight.register_post_accumulate_grad_hook(_drop_gradient))

    def _read_gradient(self, tensor: Tensor, name: str, salt: int = 0) -> None:
        if self._backward and tensor.requires_grad:
            hook = tensor.register_hook(lambda gradient: self._add(name, gradient, salt))
            self._of_pass.append(hook)

    def _add(self, name: str, tensor: Tensor, salt: int = 0) -> None:
        with torch.no_grad():
            self._found[name] += digest(tensor, salt)


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
