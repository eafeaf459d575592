"""One worker of one attempt: open the inputs, resume, and take steps until the run is done."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from scalewright.config import to_dict
from scalewright.data.codec import codec_for
from scalewright.data.order import Mark
from scalewright.data.sample import Entry
from scalewright.errors import DivergedError
from scalewright.events import EVENTS_FILE, EventLog
from scalewright.model.attention import attention_for
from scalewright.model.statistics import Watch
from scalewright.train.ahead import Ahead, Ready
from scalewright.train.checkpoint import Checkpointer
from scalewright.train.consumed import ConsumedLog
from scalewright.train.feed import Feed
from scalewright.train.guard import (
    Rewind,
    read_left_out,
    rewind_for,
    stop_if_not_finite,
    write_left_out,
)
from scalewright.train.hardware import peak_flops
from scalewright.train.inputs import Stage, check_same_run, identity, open_inputs
from scalewright.train.meter import Meter
from scalewright.train.optimizer import lr_at
from scalewright.train.parallel import World, current_world
from scalewright.train.quality import (
    FrechetDistance,
    QualityMetric,
    SlicedWasserstein,
    inception_features,
)
from scalewright.train.run import RunConfig
from scalewright.train.samples import SampleSet, sample_set, write_frames
from scalewright.train.skips import SkipList
from scalewright.train.step import noised_packs, take_step
from scalewright.train.training import begin_training
from scalewright.train.validate import Validation, plan_validation

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
SNAPSHOT = "snapshot.arrow"
NULL_TEXT = "null_text.safetensors"


@dataclass(frozen=True)
class RunPlace:
    """Where a run lives: its own folder, the data folder, and which attempt this is.

    `codec_weights` is the folder of a codec that needs weights; None for the embedded one.
    `inception_weights` is the file that FID of the samples takes; None measures none.
    """

    folder: Path
    data: str | Path
    attempt: int
    codec_weights: Path | None = None
    inception_weights: Path | None = None


def train(config: RunConfig, place: RunPlace, device: torch.device) -> None:
    """Train to `config.steps`, going on from the newest verified checkpoint of the run folder.

    Runs alone in a process, or as one rank of an initialised process group. Rank 0 writes events,
    samples and, when all is done, the summary.
    """
    world = current_world(device, config.parallel.shard_size)
    worker = _Worker(config, place, world)
    try:
        worker.run()
    finally:
        worker.close()


class _Worker:
    """The parts of a running attempt, and when each of them acts."""

    def __init__(self, config: RunConfig, place: RunPlace, world: World) -> None:
        self.config, self.place, self.world = config, place, world
        self.inputs = open_inputs(config, place.data, place.folder / SNAPSHOT)
        self.identity = identity(config, self.inputs)
        self.training = begin_training(config, world)
        self.checkpoints = Checkpointer(
            place.folder / CHECKPOINTS,
            world,
            place.attempt,
            config.checkpoint.keep,
            horizon_steps=config.guard.horizon_steps,
        )
        self.samples = self._plan_samples()
        self.inception: Callable[[Tensor], Tensor] | None = None
        if place.inception_weights is not None and world.rank == 0:
            self.inception = inception_features(place.inception_weights, world.device)
        self.events = (
            EventLog(place.folder / EVENTS_FILE, place.attempt) if world.rank == 0 else None
        )
        peak, reason = peak_flops(world.device)
        self.peak = f"{peak:.3g} FLOP/s a worker: {reason}"
        self.meter = Meter(self.training, peak)
        self.left_out = read_left_out(place.folder)
        self.skipped: list[int] = []
        self.skips = SkipList(place.folder, world.rank, place.attempt, config.data.max_skip_share)
        self.consumed: ConsumedLog | None = None
        if config.data.audit:
            self.consumed = ConsumedLog(place.folder, world.rank, place.attempt)
        self.last: dict[str, float] = {}

    def run(self) -> None:
        start = self._resume()
        self._event(
            "attempt",
            world_size=self.world.size,
            start_step=start,
            attention=attention_for(
                self.world.device, getattr(torch, self.config.parallel.compute)
            )[1],
            peak=self.peak,
        )
        while (rewind := self._train_from(start)) is not None:
            start = self._go_back(rewind)
        if self.consumed is not None:
            self.consumed.flush()
        self.checkpoints.wait()
        self._finish()

    def _train_from(self, start: int) -> Rewind | None:
        """Steps from `start` to the last, or until the guard wants to go back."""
        work = self.inputs.work.without(self.left_out)
        self.inputs = replace(self.inputs, work=work)
        for stage in self.inputs.work.stages:
            if start < stage.settings.end:
                rewind = self._train_stage(stage, max(start, stage.settings.begin))
                if rewind is not None:
                    return rewind
        return None

    def _train_stage(self, stage: Stage, start: int) -> Rewind | None:
        self.validation = self._plan_validation(stage)
        if start == stage.settings.begin:
            self.training.memory.forget()
        log, every = self.config.log, self.config.checkpoint.every_steps
        also = (log.validate_every_steps, log.sample_every_steps)
        self.feed = Feed(
            self.config,
            self.inputs,
            stage,
            self.world,
            start_step=start,
            attempt=self.place.attempt,
            skips=self.skips,
            begun=(self.place.folder / SNAPSHOT).stat().st_mtime_ns,
        )
        self.ahead = Ahead(partial(noised_packs, self.config, self.inputs), self.world.device)
        with self.ahead, self.feed as loader:
            self.meter.restart()
            waited_s = 0.0
            for ready in self.ahead.over(loader):
                self._step(ready)
                step = ready.data.step
                done = step + 1
                if self._due(done, log.every_steps, every, *also) or done == stage.settings.end:
                    wait_s, waited_s = self.ahead.wait_s - waited_s, self.ahead.wait_s
                    rewind = self._report(done, wait_s)
                    if rewind is not None:
                        return rewind
                if self._due(done, every) and step not in self.skipped:
                    self._save(done)
                if self._due(done, log.validate_every_steps):
                    self._validate(done)
                if self._due(done, log.sample_every_steps):
                    self._draw(done)
        return None

    def _go_back(self, rewind: Rewind) -> int:
        """Forget what came after the rewind's step, and leave out its data from now on."""
        way_out = "Lower optimizer.lr_peak, or look at the clips of these steps"
        if len(self.left_out) == self.config.guard.rewinds:
            raise DivergedError(
                f"{rewind.reason}; the run went back {self.config.guard.rewinds} times already "
                f"(guard.rewinds). {way_out}"
            )
        # Before its data are left out: an attempt that ends in between only forgets these steps.
        if not self.checkpoints.forget_after(rewind.to_step):
            raise DivergedError(
                f"{rewind.reason}; no checkpoint of step {rewind.to_step} or before to go back "
                f"to. {way_out}"
            )
        self.left_out = (*self.left_out, rewind.left_out)
        if self.world.rank == 0:
            write_left_out(self.place.folder, self.left_out)
        self._event("rewind", to_step=rewind.to_step, reason=rewind.reason,
                    left_out=asdict(rewind.left_out))  # fmt: skip
        start = self._resume()
        if start == 0:
            raise DivergedError(f"{rewind.reason}; no checkpoint verifies. {way_out}")
        return start

    def close(self) -> None:
        self.checkpoints.close()
        self.inputs.reader.close()
        if self.events is not None:
            self.events.close()

    def _resume(self) -> int:
        manifest = self.checkpoints.resume(self.training)
        if manifest is None:
            return 0
        check_same_run(manifest.run["identity"], self.identity, self.place.folder)
        self.skipped = list(manifest.run.get("skipped", ()))
        mark = dict(manifest.run["mark"])
        self.inputs.work.at(mark.pop("stage")).order.plan_from(Mark(**mark))
        logger.info(
            "resumed after step %d, saved by %d workers, now %d",
            manifest.step,
            manifest.world_size,
            self.world.size,
        )
        return manifest.step

    def _step(self, ready: Ready) -> None:
        data = ready.data
        log, penalty = self.config.log, self.config.activation_penalty
        watch = Watch(
            statistics=(data.step + 1) % log.statistics_every_steps == 0,
            penalty=penalty.weight > 0 and (data.step + 1) % penalty.every_steps == 0,
        )
        result = take_step(self.training, self.inputs, ready.packs, step=data.step, watch=watch)
        if self.consumed is not None:
            self.consumed.add(data)
        self.meter.add(
            result,
            clips=len(self.inputs.work.clips(data.step)),
            visual_tokens=self.inputs.work.visual_tokens(data.step),
            flops=self.inputs.work.flops(data.step),
        )

    def _due(self, done: int, *every: int) -> bool:
        return done == self.config.steps or any(done % steps == 0 for steps in every)

    def _report(self, done: int, wait_s: float) -> Rewind | None:
        """Tell of the steps since the last report, and whether the run must go back."""
        lr = lr_at(done - 1, self.config.steps, self.config.optimizer)
        report = self.meter.report(done, lr=lr, wait_s=wait_s)
        order = self.inputs.work.at(done - 1).order
        metrics = (
            report.metrics
            | self.feed.metrics(self.ahead.wait_s)
            | {"data/epoch": order.epoch_of(done)}
        )
        if self.events is not None:
            self.events.metrics(done, metrics)
        for skip in report.skips:
            self._event("skip", **asdict(skip))
        self.last |= metrics
        self.skipped += [skip.step - 1 for skip in report.skips]
        if not self.config.guard.skip:
            stop_if_not_finite(done, metrics)
        return rewind_for(self.skipped, done, self.config.steps, self.left_out, self.config.guard)

    def _save(self, done: int) -> None:
        stage = self.inputs.work.at(done - 1)
        mark = stage.order.mark(min(done, stage.settings.end - 1))
        run = {
            "config": to_dict(self.config),
            "identity": self.identity,
            "mark": {"stage": stage.settings.begin, **asdict(mark)},
            "skipped": self.skipped[-self.config.guard.rewind_window_steps :],
        }
        null_text = safetensors_bytes({"text": self.inputs.null_text})
        if self.consumed is not None:
            self.consumed.flush()
        self.checkpoints.save(done, self.training, run, {NULL_TEXT: null_text})
        self._event("save", step=done)
        self.meter.restart()

    def _validate(self, done: int) -> None:
        with self._averaged():
            losses = self.validation.loss(self.training.model, self.world, self.training.autocast)
        metrics = {f"eval/loss_{kind}": loss for kind, loss in losses.items()}
        if self.events is not None:
            self.events.metrics(done, metrics)
        self.last |= metrics
        self.meter.restart()

    def _draw(self, done: int) -> None:
        """Samples under the settings of the last stage, and how they compare with real clips."""
        if not self.samples.prompts:
            return
        with self._averaged():
            latents = self.samples.draw(
                self.training.model,
                self.config.at_stage(-1),
                self.world.device,
                self.training.autocast,
                self.world,
            )
        if self.events is not None:
            quality = self.samples.quality(latents, self._quality_metrics())
            self.events.metrics(done, {f"eval/{name}": value for name, value in quality.items()})
            for index, latent in enumerate(latents):
                stem = self.place.folder / "samples" / f"step-{done:08d}-{index}"
                frames = self.samples.codec.decode(latent).clamp(-1, 1)
                self.events.artifact(write_frames(frames, stem), "samples", done)
        self.meter.restart()

    def _quality_metrics(self) -> list[QualityMetric]:
        metrics: list[QualityMetric] = [SlicedWasserstein()]
        if self.inception is not None:
            metrics.append(FrechetDistance(self.inception))
        return metrics

    def _averaged(self) -> AbstractContextManager[None]:
        average = self.training.average
        return nullcontext() if average is None else average.in_place()

    def _finish(self) -> None:
        if self.events is None:
            return
        summary = {
            "status": "done",
            "steps": self.config.steps,
            "attempt": self.place.attempt,
            "world_size": self.world.size,
            **self.last,
        }
        write_json(self.place.folder / SUMMARY, summary)
        self._event("done", steps=self.config.steps)

    def _event(self, kind: str, **fields: Any) -> None:
        if self.events is not None:
            self.events.event(kind, **fields)

    def _plan_validation(self, stage: Stage) -> Validation:
        return plan_validation(
            self.inputs.read(stage.validation),
            stage.settings.flow,
            stage.settings.model,
            stage.settings.data.pack_tokens,
            levels=self.config.log.validation_levels,
            seed=self.config.seed,
        )

    def _plan_samples(self) -> SampleSet:
        chosen = sample_entries(
            self.inputs.work.stages[-1].validation, self.config.log.sample_clips
        )
        codec = codec_for(self.inputs.info.codec, self.place.codec_weights)
        clips, model = self.inputs.read(chosen), self.config.at_stage(-1).model
        return sample_set(clips, self.inputs.null_text, codec, model, self.config.seed)


def sample_entries(entries: list[Entry], count: int) -> list[Entry]:
    """Clips whose captions are drawn: the longest videos first, then pictures, about half each."""
    videos = sorted((e for e in entries if e.is_video), key=lambda e: (-e.latent_frames, e.id))
    pictures = [e for e in entries if not e.is_video]
    chosen = videos[: max(-(-count // 2), count - len(pictures))]
    return chosen + pictures[: count - len(chosen)]


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one piece: readers see the old file or the new one."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, path)
