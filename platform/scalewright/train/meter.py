"""What happened since the last report: loss, norms, speed. Numbers leave the device once."""

import time
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from scalewright.train.parallel import total_norm
from scalewright.train.statistics import as_metrics, gains_of, logit_bound
from scalewright.train.step import StepResult
from scalewright.train.training import Training


@dataclass(frozen=True)
class Skip:
    """A step (from 1) that changed nothing, with its numbers and the limits they broke."""

    step: int
    loss: float
    gradient_norm: float
    loss_limit: float
    norm_limit: float


@dataclass(frozen=True)
class Report:
    """Metrics over the steps since the last report, and which of them were skipped.

    `ended_s` is the wall time, seconds since 1970, when the last of the steps had ended.
    """

    ended_s: float
    metrics: dict[str, float]
    skips: tuple[Skip, ...]


@dataclass
class Meter:
    """Adds up steps; `report` turns them into metrics."""

    training: Training
    peak_flops: float
    results: list[StepResult] = field(default_factory=list)
    gains: Tensor | None = None
    clips: int = 0
    visual_tokens: int = 0
    flops: int = 0
    begin_s: float = field(default_factory=time.perf_counter)

    def add(self, result: StepResult, *, clips: int, visual_tokens: int, flops: int) -> None:
        """Count one step; the counts are those of all ranks together."""
        self.results.append(result)
        gains = gains_of(self.training.model)
        self.gains = gains if self.gains is None else torch.maximum(self.gains, gains)
        self.clips += clips
        self.visual_tokens += visual_tokens
        self.flops += flops

    def report(self, step: int, *, lr: float, wait_s: float) -> Report:
        """Metrics over the steps up to `step` since the last report; every rank must call it."""
        world, model = self.training.world, self.training.model
        numbers = torch.stack(
            [torch.stack((r.loss, r.gradient_norm, r.skipped.double())) for r in self.results]
        ).cpu()
        # The steps have ended once their numbers are here; the rest of this counts for the next.
        now_s, ended_s = time.perf_counter(), time.time()
        elapsed_s, steps = now_s - self.begin_s, len(self.results)
        losses, norms, skipped = numbers.unbind(1)
        taken = skipped == 0
        metrics = {
            "loss/train": losses[taken].mean().item(),
            "optim/lr": lr,
            "grad/norm": norms[-1].item(),
            "grad/norm_max": norms.max().item(),
            "guard/skipped_steps": skipped.sum().item(),
            "attention/gain_bound": self._gain_bound(),
            "optim/weight_norm": total_norm(list(model.parameters()), world).item(),
            "perf/step_s": elapsed_s / steps,
            "perf/clips_per_s": self.clips / elapsed_s,
            "perf/visual_tokens_per_s": self.visual_tokens / elapsed_s,
            "perf/flop_utilisation": self.flops / elapsed_s / (self.peak_flops * world.size),
            "data/wait_s": wait_s / steps,
            "elastic/world_size": world.size,
        }
        for result in self.results:
            if result.statistics is not None:
                metrics |= as_metrics(result.statistics)
        skips = self._skips(step - steps, numbers)
        self._forget(now_s)
        return Report(ended_s, metrics, skips)

    def restart(self) -> None:
        """Begin a new interval, leaving out whatever happened since the last one ended."""
        self._forget(time.perf_counter())

    def _forget(self, now_s: float) -> None:
        self.results, self.gains, self.clips, self.visual_tokens, self.flops = [], None, 0, 0, 0
        self.begin_s = now_s

    def _gain_bound(self) -> float:
        """No attention logit of these steps was larger, by the gains of QK-norm alone."""
        assert self.gains is not None
        if self.training.world.size > 1:
            dist.all_reduce(self.gains, op=dist.ReduceOp.MAX)
        head_dim = self.training.config.model.head_dim
        return logit_bound(self.gains, head_dim).max().item()

    def _skips(self, begin: int, numbers: Tensor) -> tuple[Skip, ...]:
        return tuple(
            Skip(begin + index + 1, loss, norm, *self.results[index].limits.tolist())
            for index, (loss, norm, skipped) in enumerate(numbers.tolist())
            if skipped
        )
