"""Which steps are skipped and when a run goes back: decisions from numbers that all ranks share.

A step whose loss or gradient norm is not finite, or whose logarithm lies above mean + `sigmas`
standard deviations of those of the accepted steps before it, is skipped. (OLMo-core's
SkipStepOptimizer compares the numbers themselves. Gradient norms of small batches are spread like a
log-normal, where that skips steps of every few hundred, always the hard ones.) It is decided on the
device, so that no step waits for the host. Where skips pile up the run goes back to
a checkpoint before the first of them, and the data around it are left out (PaLM, arXiv 2204.02311,
section 5.1).
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from scalewright.data.order import LeftOut, data_step
from scalewright.errors import ConfigError, DivergedError

LEFT_OUT = "left_out.json"
_TINY = 1e-30  # of which a logarithm is taken in place of zero's
# Deviations of logarithms are taken for at least this: where steps of thousands of clips differ by
# little, a few per cent more than ever before are no spike.
_LEAST_SPREAD = 0.01


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a step is skipped, and when the run goes back.

    `sigmas` above the mean logarithm of the last `window_steps` accepted steps, once there are
    `after_steps`. `rewind_skips` skips within `rewind_window_steps` make the run go back, at most
    `rewinds` times, to a checkpoint at least `margin_steps` before the first of them; the data of
    `leave_out_steps` steps from `margin_steps` before it are left out.
    """

    skip: bool = True
    sigmas: float = 6.0
    window_steps: int = 128
    after_steps: int = 64
    rewind_skips: int = 10
    rewind_window_steps: int = 50
    margin_steps: int = 20
    leave_out_steps: int = 200
    rewinds: int = 3

    def __post_init__(self) -> None:
        if self.sigmas <= 0:
            raise ConfigError(f"guard.sigmas = {self.sigmas}; it must be positive")
        for name in ("window_steps", "after_steps", "rewind_skips", "rewind_window_steps",
                     "leave_out_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"guard.{name} = {getattr(self, name)}; at least 1")
        if not 2 <= self.after_steps <= self.window_steps:
            raise ConfigError(
                f"guard.after_steps = {self.after_steps}; allowed: 2 to guard.window_steps = "
                f"{self.window_steps}"
            )
        if self.rewind_skips > self.rewind_window_steps:
            raise ConfigError(
                f"guard.rewind_skips = {self.rewind_skips} never happens within "
                f"guard.rewind_window_steps = {self.rewind_window_steps}; lower it"
            )
        for name in ("margin_steps", "rewinds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"guard.{name} = {getattr(self, name)}; at least 0")

    @property
    def horizon_steps(self) -> int:
        """How far a run may have to go back."""
        return self.rewind_window_steps + self.margin_steps


class Memory:
    """The losses and gradient norms of accepted steps, on the device.

    `kept` (window, 2) is a ring; `accepted` () counts all that went in. Both are part of a
    checkpoint, so that a resumed run decides like one that was not interrupted.
    """

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self._config = config
        self.kept = torch.zeros(config.window_steps, 2, dtype=torch.float64, device=device)
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)

    def limits(self) -> Tensor:
        """Loss and gradient norm (2,) above which a step is skipped; infinite at the beginning."""
        count = self.accepted.clamp(max=len(self.kept))
        filled = (torch.arange(len(self.kept), device=self.kept.device) < count)[:, None]
        logs = self.kept.clamp(min=_TINY).log()
        mean = (logs * filled).sum(0) / count.clamp(min=1)
        spread = ((logs - mean).square() * filled).sum(0) / (count - 1).clamp(min=1)
        limits = (mean + self._config.sigmas * spread.sqrt().clamp(min=_LEAST_SPREAD)).exp()
        return torch.where(count >= self._config.after_steps, limits, torch.inf)

    def forget(self) -> None:
        """Begin anew, as where other data begin, of which other losses are to be expected."""
        self.accepted.zero_()

    def judge(self, loss: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Whether the step is skipped (0 or 1, fp32), and the limits it was held against.

        An accepted step is remembered.
        """
        now, limits = torch.stack((loss, norm)).double(), self.limits()
        skipped = ~(now.isfinite() & (now <= limits)).all()
        if not self._config.skip:
            skipped = torch.zeros_like(skipped)
        place = (self.accepted % len(self.kept))[None]
        remembered = torch.where(skipped, self.kept[place], now[None])
        self.kept.index_copy_(0, place, remembered)
        self.accepted += (~skipped).long()
        return skipped.float(), limits


@dataclass(frozen=True)
class Rewind:
    """Go back to a checkpoint at `to_step` or before, and leave out some data."""

    to_step: int
    left_out: LeftOut
    reason: str


def rewind_for(
    skipped: Sequence[int], done: int, total: int, left_out: Sequence[LeftOut], config: GuardConfig
) -> Rewind | None:
    """Whether to go back after `done` of `total` steps, of which those in `skipped` were skipped.

    A run does not end on a skipped step: what it would save as its result has come to a halt.
    """
    recent = [step for step in skipped if step >= done - config.rewind_window_steps]
    halted = done == total and done - 1 in recent
    if len(recent) < config.rewind_skips and not halted:
        return None
    begin = max(0, recent[0] - config.margin_steps)
    return Rewind(
        to_step=begin,
        left_out=LeftOut(data_step(begin, left_out), config.leave_out_steps),
        reason=f"{len(recent)} of the last {min(done, config.rewind_window_steps)} steps were "
        f"skipped, the first of them step {recent[0] + 1}"
        + (", and so was the last of the run" if halted else ""),
    )


def read_left_out(folder: Path) -> tuple[LeftOut, ...]:
    """What earlier rewinds of the run in `folder` left out."""
    path = folder / LEFT_OUT
    if not path.exists():
        return ()
    return tuple(LeftOut(**part) for part in json.loads(path.read_text()))


def write_left_out(folder: Path, left_out: Sequence[LeftOut]) -> None:
    """Keep it with the run: every later attempt leaves out the same."""
    part = folder / f"{LEFT_OUT}.part"
    part.write_text(json.dumps([asdict(each) for each in left_out]))
    os.replace(part, folder / LEFT_OUT)


def stop_if_not_finite(done: int, metrics: Mapping[str, float]) -> None:
    """Where the guard skips nothing, a loss or gradient that is not finite ends the run."""
    for name in ("loss/train", "grad/norm_max"):
        if not math.isfinite(metrics[name]):
            raise DivergedError(
                f"{name} = {metrics[name]} at step {done} or just before: no longer finite. No "
                "checkpoint was written since; lower optimizer.lr_peak, or let guard.skip be true"
            )
