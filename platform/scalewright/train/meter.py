"""What happened since the last report: loss, norms, speed. Numbers leave the device once."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scalewright.errors import DivergedError
from scalewright.train.parallel import World, total_norm
from scalewright.train.step import StepResult


@dataclass
class Meter:
    """Adds up steps; `report` turns them into metrics and stops a run that has diverged."""

    world: World
    peak_flops: float
    results: list[StepResult] = field(default_factory=list)
    clips: int = 0
    visual_tokens: int = 0
    flops: int = 0
    begin_s: float = field(default_factory=time.perf_counter)

    def add(self, result: StepResult, *, clips: int, visual_tokens: int, flops: int) -> None:
        """Count one step; the counts are those of all ranks together."""
        self.results.append(result)
        self.clips += clips
        self.visual_tokens += visual_tokens
        self.flops += flops

    def report(self, step: int, model: nn.Module, *, lr: float, wait_s: float) -> dict[str, float]:
        """Metrics over the steps up to `step` since the last report; every rank must call it."""
        losses = self.world.sum(torch.stack([result.loss_share for result in self.results]))
        norms = torch.stack([result.gradient_norm for result in self.results])
        self._stop_if_diverged(step, losses, norms)
        elapsed_s = time.perf_counter() - self.begin_s
        steps = len(self.results)
        metrics = {
            "loss/train": losses.mean().item(),
            "optim/lr": lr,
            "grad/norm": norms[-1].item(),
            "grad/norm_max": norms.max().item(),
            "optim/weight_norm": total_norm(list(model.parameters()), self.world).item(),
            "perf/step_s": elapsed_s / steps,
            "perf/clips_per_s": self.clips / elapsed_s,
            "perf/visual_tokens_per_s": self.visual_tokens / elapsed_s,
            "perf/flop_utilisation": self.flops / elapsed_s / (self.peak_flops * self.world.size),
            "data/wait_s": wait_s / steps,
            "elastic/world_size": self.world.size,
        }
        self.restart()
        return metrics

    def restart(self) -> None:
        """Begin a new interval, leaving out whatever happened since the last one ended."""
        self.results, self.clips, self.visual_tokens, self.flops = [], 0, 0, 0
        self.begin_s = time.perf_counter()

    def _stop_if_diverged(self, step: int, losses: Tensor, norms: Tensor) -> None:
        for offset, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                at = step - len(self.results) + offset + 1
                raise DivergedError(
                    f"step {at}: loss = {loss}, gradient norm = {norm}: no longer finite. No "
                    "checkpoint was written since; lower optimizer.lr_peak, or look at the clips "
                    "of this step"
                )
