"""Has a run learnt what its text says? Its losses beside those of predictions without text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from scalewright.data.sample import Sample
from scalewright.errors import DataError
from scalewright.events import EVENTS_FILE, Metrics, read_events
from scalewright.objective.baseline import linear_text_free_loss, pure_noise_text_free_loss
from scalewright.objective.flow import evaluation_pack, squared_error
from scalewright.train.run import RunConfig

_BATCH = 16


@dataclass(frozen=True)
class Judgement:
    """Losses (mean squared error of the velocity) of a run and of its text-free rivals.

    `train`: the run's mean over its last tenth; `linear`: best linear prediction from the noised
    patch, averaged over the same noise levels. `noise_*`: at t = 1, where the input is pure
    noise, so that whatever is below `noise_text_free` was read in the text.
    """

    train: float
    linear: float
    noise: float
    noise_text_free: float

    @property
    def learnt(self) -> bool:
        return self.train < self.linear and self.noise < self.noise_text_free


def judge(run: Path, config: RunConfig, model: nn.Module, samples: Sequence[Sample]) -> Judgement:
    """Compare a finished run, its model in this process, on its training clips."""
    return Judgement(
        train=last_training_loss(run, config.steps),
        linear=linear_text_free_loss(samples, config.flow, config.model.patch),
        noise=pure_noise_loss(model, samples, config),
        noise_text_free=pure_noise_text_free_loss(samples),
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


def pure_noise_loss(model: nn.Module, samples: Sequence[Sample], config: RunConfig) -> float:
    """The model's loss at t = 1 with the true text, over all elements of `samples`."""
    total, elements = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(samples), _BATCH):
            clips = samples[begin : begin + _BATCH]
            pack = evaluation_pack(clips, [1.0] * len(clips), config.model.patch, seed=config.seed)
            total += squared_error(model(pack.batch), pack.target).item()
            elements += pack.target.numel()
    return total / elements
