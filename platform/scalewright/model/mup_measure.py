"""What some training steps do inside one model: the sizes that muP promises to keep.

Three kinds of site, each a mean absolute value (l1) after every step:

- a layer's output, the residual stream after each block, and the velocity ("coordinate");
- what a layer's own update does to its output, (W_t - W_0)·x_t, or a vector's change ("update");
- how far the residual stream has moved since the start ("update", named `... moved`).

An update is judged where it acts: the effect of a faulty learning rate on the layer itself cannot
hide behind a norm, a gate that is still zero, or another layer's update. The residual stream sees
all of them together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scalewright.errors import ConfigError
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import (
    ParamRule,
    materialise,
    meta_model,
    optimizer_groups,
    set_multipliers,
)
from scalewright.model.packed import PackedBatch, PackItem, pack
from scalewright.model.shape import ModelConfig

Kind = Literal["coordinate", "update"]
Sizes = dict[tuple[Kind, str], float]


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """The steps that are measured: AdamW on one batch of noise at a constant learning rate.

    The gradient reaches every tensor from the third step on, since output and gates start at zero.
    """

    steps: int = 4
    clips: int = 2
    text_tokens: int = 2
    lr: float = 2**-9
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.steps < 3:
            raise ConfigError(
                f"check.train.steps = {self.steps}; at least 3: before, zero outputs and gates "
                "keep gradients from most layers"
            )
        for name in ("clips", "text_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"check.train.{name} = {getattr(self, name)}; at least 1")
        for name in ("lr", "eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"check.train.{name} = {getattr(self, name)}; it must be positive"
                )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"check.train.{name} = {getattr(self, name)}; allowed: 0 to below 1"
                )


def measure(
    config: ModelConfig, rules: dict[str, ParamRule], how: StepsConfig, seed: int
) -> list[Sizes]:
    """The sizes of every site after 1, 2, ... `how.steps` updates of a fresh model."""
    model = meta_model(config)
    materialise(model, rules, seed, torch.device("cpu"))
    set_multipliers(model, rules)
    groups = optimizer_groups(
        model.named_parameters(), rules, lr=how.lr, weight_decay=0.0, eps=how.eps
    )
    optimizer = torch.optim.AdamW(groups, betas=(how.beta1, how.beta2), fused=True)
    batch, target = noise_batch(config, how, seed)
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    found: list[Sizes] = []
    with _recorded(model) as seen:
        velocity = model(batch).velocity
        residual = {name: output for name, (_, output) in seen.items() if _is_block(name)}
        for _ in range(how.steps):
            optimizer.zero_grad()
            (velocity - target).square().mean().backward()
            optimizer.step()
            velocity = model(batch).velocity
            found.append(
                _coordinates(seen, velocity) | _updates(model, start, seen) | _moves(residual, seen)
            )
    return found


def noise_batch(config: ModelConfig, how: StepsConfig, seed: int) -> tuple[PackedBatch, Tensor]:
    """Clips of noise, at noise levels from low to high, and a target (Nv, patch_dim) of noise.

    A clip is as small as patches and groups allow, at least two tokens along every axis: with few
    tokens, a narrow model is already wide.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = config.groups if config.attention == "local_global" else (1, 1, 1)
    frames, height, width = (p * max(2, g) for p, g in zip(config.patch, groups, strict=True))
    items = [
        PackItem(
            torch.randn(frames, config.latent_channels, height, width, generator=generator),
            torch.randn(how.text_tokens, config.text_dim, generator=generator),
            (index + 0.5) / how.clips,
            scores=dict.fromkeys(config.scores, 1.0),
        )
        for index in range(how.clips)
    ]
    batch = pack(items, config)
    return batch, torch.randn(len(batch.visual), config.patch_dim, generator=generator)


@contextmanager
def _recorded(model: MMDiT) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """First input and output of every linear layer and block, as of the latest forward pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen[name] = inputs[0].detach(), first.detach()

    handles = [
        module.register_forward_hook(lambda _, i, o, name=name: keep(name, i, o))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _is_block(name)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_block(name: str) -> bool:
    return name.startswith("blocks.") and name.count(".") == 1


def _coordinates(seen: dict[str, tuple[Tensor, Tensor]], velocity: Tensor) -> Sizes:
    sizes: Sizes = {
        ("coordinate", name): _l1(output)
        for name, (_, output) in seen.items()
        if name != "visual_out"  # the velocity, before the output multiplier
    }
    return sizes | {("coordinate", "velocity"): _l1(velocity.detach())}


@torch.no_grad()
def _updates(
    model: MMDiT, start: dict[str, Tensor], seen: dict[str, tuple[Tensor, Tensor]]
) -> Sizes:
    sizes: Sizes = {}
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        change = parameter - start[name]
        effect = _l1(seen[layer][0] @ change.T) if change.ndim == 2 else _l1(change)
        sizes["update", name] = effect * (model.output_multiplier if layer == "visual_out" else 1)
    return sizes


def _moves(residual: dict[str, Tensor], seen: dict[str, tuple[Tensor, Tensor]]) -> Sizes:
    return {
        ("update", f"{name} moved"): _l1(seen[name][1] - first) for name, first in residual.items()
    }


def _l1(x: Tensor) -> float:
    return x.abs().mean().item()
