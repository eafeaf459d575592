"""How good the model is while it trains: the loss on held-out clips, and samples."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from scalewright.data.codec import codec_for
from scalewright.events import EventLog
from scalewright.train.inputs import Inputs, Stage
from scalewright.train.place import RunPlace
from scalewright.train.quality import (
    FrechetDistance,
    QualityMetric,
    SlicedWasserstein,
    inception_features,
)
from scalewright.train.samples import SampleSet, sample_entries, sample_set, write_frames
from scalewright.train.training import Training
from scalewright.train.validate import plan_validation


class Evaluation:
    """What is measured of a training; `events`, of rank 0, are told of it.

    With averaged weights, those are judged.
    """

    def __init__(
        self, training: Training, inputs: Inputs, place: RunPlace, events: EventLog | None
    ) -> None:
        self.training, self.inputs, self.place, self.events = training, inputs, place, events
        self.samples = self._plan_samples()
        self.inception: Callable[[Tensor], Tensor] | None = None
        if place.inception_weights is not None and training.world.rank == 0:
            self.inception = inception_features(place.inception_weights, training.world.device)

    def plan(self, stage: Stage) -> None:
        """Judge by the validation clips of this stage from now on."""
        config = self.training.config
        self.validation = plan_validation(
            self.inputs.read(stage.validation),
            stage.settings.flow,
            stage.settings.model,
            stage.settings.data.pack_tokens,
            levels=config.log.validation_levels,
            seed=config.seed,
        )

    def validate(self, done: int) -> Mapping[str, float]:
        """Losses on the validation clips after `done` steps; every rank must call it."""
        training = self.training
        with self._averaged():
            losses = self.validation.loss(training.model, training.world, training.autocast)
        metrics = {f"eval/loss_{kind}": loss for kind, loss in losses.items()}
        if self.events is not None:
            self.events.metrics(done, metrics)
        return metrics

    def draw(self, done: int) -> Mapping[str, float]:
        """Draw samples under the settings of the last stage and compare them with real clips.

        Every rank must call it. What it measures is told to the events alone.
        """
        if not self.samples.prompts:
            return {}
        training = self.training
        with self._averaged():
            latents = self.samples.draw(
                training.model,
                training.config.at_stage(-1),
                training.world.device,
                training.autocast,
                training.world,
            )
        if self.events is not None:
            quality = self.samples.quality(latents, self._quality_metrics())
            self.events.metrics(done, {f"eval/{name}": value for name, value in quality.items()})
            for index, latent in enumerate(latents):
                stem = self.place.folder / "samples" / f"step-{done:08d}-{index}"
                frames = self.samples.codec.decode(latent).clamp(-1, 1)
                self.events.artifact(write_frames(frames, stem), "samples", done)
        return {}

    def _quality_metrics(self) -> list[QualityMetric]:
        metrics: list[QualityMetric] = [SlicedWasserstein()]
        if self.inception is not None:
            metrics.append(FrechetDistance(self.inception))
        return metrics

    def _averaged(self) -> AbstractContextManager[None]:
        average = self.training.average
        return nullcontext() if average is None else average.in_place()

    def _plan_samples(self) -> SampleSet:
        config = self.training.config
        chosen = sample_entries(self.inputs.work.stages[-1].validation, config.log.sample_clips)
        codec = codec_for(self.inputs.info.codec, self.place.codec_weights)
        clips, model = self.inputs.read(chosen), config.at_stage(-1).model
        return sample_set(clips, self.inputs.null_text, codec, model, config.seed)
