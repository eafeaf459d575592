"""AdamW under muP: parameter groups from the rules by name, and the learning-rate schedule."""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scalewright.errors import ConfigError
from scalewright.model.mup import ParamRule, optimizer_groups


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    `beta2` 0.98: 0.999 leaves the second moment outdated when large gradients arrive, which shows
    as loss spikes (YandexART Vi). `eps` is far below the gradients of wide muP layers. `freeze`:
    patterns of names, such as "blocks.0.*", whose weights stay as they are. `average_decay`: of an
    exponential moving average of the weights, which is then validated and sampled from.
    """

    lr_peak: float = 4e-3
    warmup_steps: int = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    lr_final_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-12
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    freeze: tuple[str, ...] = ()
    average_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr_peak", "eps", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optimizer.{name} = {getattr(self, name)}; it must be positive")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"optimizer.{name} = {getattr(self, name)}; allowed: 0 to below 1"
                )
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ConfigError(
                f"optimizer.average_decay = {self.average_decay}; allowed: 0 to below 1"
            )
        if self.weight_decay < 0:
            raise ConfigError(f"optimizer.weight_decay = {self.weight_decay}; at least 0")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps = {self.warmup_steps}; at least 0")
        if not 0 <= self.lr_final_share <= 1:
            raise ConfigError(f"optimizer.lr_final_share = {self.lr_final_share}; allowed: 0 to 1")


def lr_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Base learning rate of `step` (from 0): linear warm-up, then constant or cosine decay."""
    if step < config.warmup_steps:
        return config.lr_peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr_peak
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr_peak * (config.lr_final_share + (1 - config.lr_final_share) * cosine)


def build_optimizer(
    model: nn.Module, rules: dict[str, ParamRule], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW with one group per set of muP factors; groups carry `lr_mult` for `set_lr`."""
    groups = optimizer_groups(
        ((name, p) for name, p in model.named_parameters() if p.requires_grad),
        rules,
        lr=config.lr_peak,
        weight_decay=config.weight_decay,
        eps=config.eps,
    )
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=True)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take no gradient of the parameters whose names match."""
    parameters = dict(model.named_parameters())
    for name in frozen_names(parameters, patterns):
        parameters[name].requires_grad_(False)


def frozen_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Which of the names match; every pattern must match some, and some name none."""
    names, frozen = list(names), set()
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise ConfigError(
                f"optimizer.freeze: {pattern!r} matches no parameter; names are such as "
                f"{', '.join(names[:8])}"
            )
        frozen.update(matching)
    if len(frozen) == len(names):
        raise ConfigError(f"optimizer.freeze = {list(patterns)} leaves nothing to train")
    return frozen


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Scale every group relative to the base learning rate, as muP asks."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


def set_skip(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Let the next step change nothing where `skipped` () is 1, without asking the device.

    Fused AdamW reads it, as it does under gradient scaling: weights, moments and its count of steps
    stay as they are.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
