"""Has a run learnt what its text says? Its losses beside those of predictions without text."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from scalewright.data.sample import Sample
from scalewright.errors import DataError
from scalewright.events import EVENTS_FILE, Metrics, read_events
from scalewright.objective.baseline import linear_text_free_loss
from scalewright.train.parallel import autocast, current_world
from scalewright.train.run import RunConfig
from scalewright.train.validate import plan_validation


@dataclass(frozen=True)
class Judgement:
    """Losses (mean squared error of the velocity) of a run and of predictions without text.

    `train`: the run's mean over its last tenth; `linear`: the best linear prediction from the
    noised patch, fitted to the training clips themselves, at the same noise levels.
    `own_text`, `other_text`, `no_text`: the model on validation clips, given their own caption,
    that of another clip, or none.
    """

    train: float
    linear: float
    own_text: float
    other_text: float
    no_text: float

    @property
    def learnt(self) -> bool:
        return self.train < self.linear and self.own_text < min(self.other_text, self.no_text)


def judge(
    run: Path,
    config: RunConfig,
    model: nn.Module,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    null_text: Tensor,
) -> Judgement:
    """Compare a finished run, its whole model in this process."""
    others = itertools.islice(itertools.cycle(validation), 1, len(validation) + 1)
    swapped = [
        replace(clip, text=other.text) for clip, other in zip(validation, others, strict=True)
    ]
    return Judgement(
        train=last_training_loss(run, config.steps),
        linear=linear_text_free_loss(training, config.flow, config.model.patch),
        own_text=_loss(config, model, validation),
        other_text=_loss(config, model, swapped),
        no_text=_loss(config, model, [replace(clip, text=null_text) for clip in validation]),
    )


def last_training_loss(run: Path, steps: int) -> float:
    """Mean training loss over the reports of the last tenth of the run."""
    offset, losses = 0, []
    while True:
        events, after = read_events(run / EVENTS_FILE, offset)
        losses += [
            event.values["loss/train"]
            for event in events
            if isinstance(event, Metrics)
            and event.step > 0.9 * steps
            and "loss/train" in event.values
        ]
        if after == offset:
            break
        offset = after
    if not losses:
        raise DataError(f"{run / EVENTS_FILE}: no training loss in the last tenth of {steps} steps")
    return sum(losses) / len(losses)


def _loss(config: RunConfig, model: nn.Module, samples: Sequence[Sample]) -> float:
    world = current_world(torch.device("cpu"))
    plan = plan_validation(
        samples,
        config.flow,
        config.model,
        config.data.pack_tokens,
        levels=config.log.validation_levels,
        seed=config.seed,
    )
    return plan.loss(model, world, autocast(config, world))["all"]
