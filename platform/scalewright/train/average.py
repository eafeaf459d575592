"""An exponential moving average of the weights, sharded like them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from scalewright.train.parallel import local


class WeightAverage:
    """fp32 averages of the trained weights by name; w_avg <- d·w_avg + (1 - d)·w each step.

    Early on d is (1 + step) / (10 + step), so that the random initial weights fade out.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._model = model
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after `step` (from 0); none where `skipped` () is 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, weights = self._of_rank(self.weights), self._of_rank(self._parameters)
        share = ((1 - decay) * (1 - skipped)).to(averages[0].dtype)
        torch._foreach_lerp_(averages, weights, [share] * len(averages))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averages inside, its own weights again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        mine, other = self._of_rank(self._parameters), self._of_rank(self.weights)
        for weight, average in zip(mine, other, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        if isinstance(self._model, FSDPModule):
            # The root's weights stay gathered after a forward pass without gradients; the next one
            # must gather those that are there now.
            self._model.reshard()

    @staticmethod
    def _of_rank(tensors: dict[str, Tensor] | dict[str, nn.Parameter]) -> list[Tensor]:
        return [local(tensor.detach()) for tensor in tensors.values()]
