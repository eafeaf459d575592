"""One run of a sweep: a small model at an exact budget, and the record of what it reached."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scalewright import __version__
from scalewright.config import digest
from scalewright.data.loader import Loader
from scalewright.errors import ConfigError
from scalewright.model.shape import block_parameters, parameters
from scalewright.model.statistics import Watch
from scalewright.train.inputs import Inputs, open_inputs
from scalewright.train.parallel import current_world
from scalewright.train.run import RunConfig
from scalewright.train.step import noised_packs, take_step
from scalewright.train.training import Training, begin_training
from scalewright.train.validate import plan_validation

# A loss this many times that of an untrained model will not come back within a sweep's run.
DIVERGED_LOSS_RATIO = 2.0
CHECK_EVERY_STEPS = 20


@dataclass(frozen=True)
class Trial:
    """One cell of a sweep: everything but these three is the same for all."""

    width: int
    budget_flops: float
    lr_peak: float
    seed: int

    @property
    def key(self) -> str:
        return f"w{self.width:04d}-b{self.budget_flops:g}-lr{self.lr_peak:g}-s{self.seed}"


def trial_config(base: RunConfig, trial: Trial, steps: int, warmup_share: float) -> RunConfig:
    """The config of a trial: the base with its width, learning rate, seed and length.

    Nothing is skipped and nothing averaged: a sweep measures what a learning rate does.
    """
    return replace(
        base,
        name=trial.key.replace("+", ""),
        seed=trial.seed,
        steps=steps,
        model=replace(base.model, width=trial.width),
        guard=replace(base.guard, skip=False),
        optimizer=replace(
            base.optimizer,
            average_decay=None,
            lr_peak=trial.lr_peak,
            warmup_steps=max(1, round(warmup_share * steps)),
        ),
    )


def steps_for_budget(inputs: Inputs, budget_flops: float) -> tuple[int, int]:
    """The number of steps whose exact FLOPs come nearest to the budget, and those FLOPs."""
    spent, step = 0, 0
    while True:
        cost = inputs.work.flops(step)
        if step and spent + cost / 2 > budget_flops:
            return step, spent
        if not step and cost > 2 * budget_flops:
            raise ConfigError(
                f"budget {budget_flops:.3g} FLOPs is less than half a step ({cost:.3g} FLOPs) at "
                f"width {inputs.work.stages[0].settings.model.width}; raise the budget or lower "
                "data.packs_per_step"
            )
        spent, step = spent + cost, step + 1


def run_trial(base: RunConfig, trial: Trial, data: Path) -> dict[str, Any]:
    """Train one cell in this process and return its record (columns in planner/reading/rows.py).

    `base.optimizer.warmup_steps / base.steps` is the share of steps that warms up.
    """
    begin_s = time.perf_counter()
    share = base.optimizer.warmup_steps / base.steps
    inputs = open_inputs(trial_config(base, trial, 1_000_000, share), data)
    try:
        steps, flops = steps_for_budget(inputs, trial.budget_flops)
        config = trial_config(base, trial, steps, share)
        outcome = _train(config, inputs)
    finally:
        inputs.reader.close()
    tokens = sum(inputs.work.visual_tokens(step) for step in range(steps))
    return {
        "schema_version": 1,
        "run": trial.key,
        "width": trial.width,
        "depth": config.model.depth,
        "params": parameters(config.model),
        "block_params": block_parameters(config.model),
        "budget_flops": trial.budget_flops,
        "flops": flops,
        "flops_6nd": 6 * block_parameters(config.model) * tokens,
        "tokens": tokens,
        "steps": steps,
        "batch_tokens": tokens / steps,
        "lr_peak": trial.lr_peak,
        "seed": trial.seed,
        "schedule": config.optimizer.schedule,
        "wall_s": round(time.perf_counter() - begin_s, 3),
        "config_digest": digest(config),
        "data_digest": inputs.snapshot.digest,
        "code_version": __version__,
        **outcome,
    }


def _train(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    training = begin_training(config, current_world(torch.device("cpu")))
    losses: list[torch.Tensor] = []
    with Loader(
        inputs.reader.fetcher,
        inputs.work.stages[0].order,
        rank=0,
        world=1,
        start_step=0,
        stop_step=config.steps,
    ) as loader:
        for data in loader:
            packs = noised_packs(config, inputs, data)
            result = take_step(training, inputs, packs, step=data.step, watch=Watch())
            losses.append(result.loss)
            if data.step % CHECK_EVERY_STEPS == 0 and (reason := _diverged(losses)):
                return {"status": "diverged", "reason": f"step {data.step}: {reason}"}
    if reason := _diverged(losses):
        return {"status": "diverged", "reason": f"step {config.steps - 1}: {reason}"}
    return {"status": "done", "reason": None, **_final_losses(training, inputs, losses)}


def _final_losses(
    training: Training, inputs: Inputs, losses: list[torch.Tensor]
) -> dict[str, float]:
    config = training.config
    validation = plan_validation(
        inputs.read(inputs.work.stages[0].validation),
        config.flow,
        config.model,
        config.data.pack_tokens,
        levels=config.log.validation_levels,
        # The same noise for every trial, so that they differ by the model alone.
        seed=0,
    )
    kinds = validation.loss(training.model, training.world, training.autocast)
    tail = losses[-max(1, len(losses) // 10) :]
    named = {f"loss_{kind}": loss for kind, loss in kinds.items() if kind != "all"}
    return {"loss": kinds["all"], **named, "train_loss": torch.stack(tail).mean().item()}


def _diverged(losses: list[torch.Tensor]) -> str | None:
    last = losses[-1].item()
    if not math.isfinite(last):
        return f"loss = {last}"
    first = losses[0].item()
    if last > DIVERGED_LOSS_RATIO * first:
        return f"loss = {last:.4g}, {last / first:.1f} times the first step's {first:.4g}"
    return None
