"""One worker of one attempt: open the inputs, resume, and take steps until the run is done."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch
from safetensors.torch import save as safetensors_bytes

from scalewright.config import to_dict
from scalewright.data.order import Mark
from scalewright.errors import DivergedError
from scalewright.events import EVENTS_FILE, EventLog
from scalewright.health.stop_order import StopOrder
from scalewright.heartbeat import Phase, beat_folder
from scalewright.model.attention import attention_for
from scalewright.model.mmdit import Block
from scalewright.model.statistics import Watch
from scalewright.train.ahead import Ahead, Ready
from scalewright.train.consumed import ConsumedLog
from scalewright.train.evaluation import Evaluation
from scalewright.train.feed import Feed
from scalewright.train.fence import Fence
from scalewright.train.guard import (
    Rewind,
    read_left_out,
    rewind_for,
    stop_if_not_finite,
    write_left_out,
)
from scalewright.train.hardware import peak_flops
from scalewright.train.inputs import Stage, check_same_run, identity, open_inputs
from scalewright.train.manifest import CHECKPOINTS as CHECKPOINTS
from scalewright.train.meter import Meter
from scalewright.train.optimizer import lr_at
from scalewright.train.parallel import World, current_world
from scalewright.train.place import (
    NULL_TEXT,
    SNAPSHOT,
    SUMMARY,
    RunPlace,
    write_json,
)
from scalewright.train.pulse import Pulse
from scalewright.train.replay import Replay
from scalewright.train.run import RunConfig
from scalewright.train.saving import Checkpointer
from scalewright.train.skips import SkipList
from scalewright.train.step import noised_packs, take_step
from scalewright.train.training import begin_training

logger = logging.getLogger(__name__)


def train(config: RunConfig, place: RunPlace, device: torch.device) -> None:
    """Train to `config.steps`, going on from the newest verified checkpoint of the run folder.

    Runs alone in a process, or as one rank of an initialised process group. Rank 0 writes events,
    samples and, when all is done, the summary.
    """
    world = current_world(device, config.parallel.shard_size)
    every = config.health.timed_every_steps
    with Pulse(place.folder, place.attempt, world, timed_every_steps=every) as pulse:
        worker = _Worker(config, place, world, pulse)
        try:
            worker.run()
        finally:
            worker.close()


class _Worker:
    """The parts of a running attempt, and when each of them acts."""

    def __init__(self, config: RunConfig, place: RunPlace, world: World, pulse: Pulse) -> None:
        self.config, self.place, self.world, self.pulse = config, place, world, pulse
        self.inputs = open_inputs(config, place.data, place.folder / SNAPSHOT)
        self.identity = identity(config, self.inputs)
        self.training = begin_training(config, world)
        pulse.time(cast(Iterable[Block], self.training.model.blocks))
        fence = Fence(place.folder, place.attempt).check
        self.events = (
            EventLog(place.folder / EVENTS_FILE, place.attempt, fence) if world.rank == 0 else None
        )
        self.checkpoints = Checkpointer(
            place.folder, world, place.attempt, config.checkpoint,
            horizon_steps=config.guard.horizon_steps, tell=self._event,
        )  # fmt: skip
        self.evaluation = Evaluation(self.training, self.inputs, place, self.events)
        peak, reason = peak_flops(world.device)
        self.peak = f"{peak:.3g} FLOP/s a worker: {reason}"
        self.meter = Meter(self.training, peak)
        self.replay = Replay(self.training, self._event, self.checkpoints.trust)
        self.left_out = read_left_out(place.folder)
        self.skipped: list[int] = []
        self.skips = SkipList(place.folder, world.rank, place.attempt, config.data.max_skip_share)
        self.consumed: ConsumedLog | None = None
        if config.data.audit:
            self.consumed = ConsumedLog(place.folder, world.rank, place.attempt)
        self.last: dict[str, float] = {}
        self.stop_order = StopOrder(beat_folder(place.folder, place.attempt))
        self.paused: int | None = None

    def run(self) -> None:
        start = self._resume(only_trusted=self.place.only_trusted)
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
        self.pulse.enter(Phase.SAVE)
        done = self.paused or self.config.steps
        while not self.checkpoints.kept(done):
            self._save(done)
        self.checkpoints.finish()
        if not self.paused:
            self._finish()
        self.pulse.enter(Phase.DONE)

    def _train_from(self, start: int) -> Rewind | None:
        """Steps from `start` to the last, or until the guard wants to go back."""
        work = self.inputs.work.without(self.left_out)
        self.inputs = replace(self.inputs, work=work)
        for stage in self.inputs.work.stages:
            if start < stage.settings.end:
                rewind = self._train_stage(stage, max(start, stage.settings.begin))
                if rewind is not None or self.paused:
                    return rewind
        return None

    def _train_stage(self, stage: Stage, start: int) -> Rewind | None:
        self.pulse.enter(Phase.START)
        self.evaluation.plan(stage)
        if start == stage.settings.begin:
            self.training.memory.forget()
        log, every = self.config.log, self.config.checkpoint.every_steps
        saves = () if every is None else (every,)
        told = (log.every_steps, log.validate_every_steps, log.sample_every_steps, *saves)
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
            for ready in self.pulse.waiting(self.ahead.over(loader)):
                self._step(ready)
                step = ready.data.step
                if self.pulse.first_step():
                    self._event("first_step", step=step)
                done = step + 1
                if self.stop_order.due(done) and done < self.config.steps:
                    self.paused = done
                reported = self._due(done, *told) or self.paused or done == stage.settings.end
                if reported:
                    wait_s, waited_s = self.ahead.wait_s - waited_s, self.ahead.wait_s
                    rewind = self._report(done, wait_s)
                    if rewind is not None:
                        return rewind
                by_time = reported and every is None and self.checkpoints.due()
                due = by_time or self.paused or self._due(done, *saves)
                if due and step not in self.skipped:
                    self._save(done)
                if self.paused:
                    return None
                if self._due(done, log.validate_every_steps):
                    self._look(Phase.VALIDATE, self.evaluation.validate, done)
                if self._due(done, log.sample_every_steps):
                    self._look(Phase.SAMPLE, self.evaluation.draw, done)
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
        self.paused = None  # what it was asked to save is undone; it is asked again there
        start = self._resume()
        if start == 0:
            raise DivergedError(f"{rewind.reason}; no checkpoint verifies. {way_out}")
        return start

    def close(self) -> None:
        self.checkpoints.close()
        self.inputs.reader.close()
        if self.events is not None:
            self.events.close()

    def _resume(self, *, only_trusted: bool = False) -> int:
        self.pulse.enter(Phase.RESUME)
        manifest = self.checkpoints.resume(self.training, only_trusted=only_trusted)
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
        work = self.inputs.work
        kind = (work.at(data.step).settings.begin, watch) if self.config.parallel.compile else None
        shares = work.shares(data.step, self.world.size)
        checked = self.replay.over(self.inputs, ready, watch)
        with self.pulse.step(data.step, shares, kind), checked:
            result = take_step(self.training, self.inputs, ready.packs, step=data.step, watch=watch)
        if self.consumed is not None:
            self.consumed.add(data)
        self.meter.add(
            result,
            clips=len(work.clips(data.step)),
            visual_tokens=work.visual_tokens(data.step),
            flops=work.flops(data.step),
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
            self.events.metrics(done, metrics, report.ended_s)
        for skip in report.skips:
            self._event("skip", **asdict(skip))
        self.last |= metrics
        self.skipped += [skip.step - 1 for skip in report.skips]
        if not self.config.guard.skip:
            stop_if_not_finite(done, metrics)
        return rewind_for(self.skipped, done, self.config.steps, self.left_out, self.config.guard)

    def _save(self, done: int) -> None:
        self.pulse.enter(Phase.SAVE)
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
        stall_s = self.checkpoints.save(done, self.training, run, {NULL_TEXT: null_text})
        if stall_s is not None:
            self._event("save", step=done, stall_s=stall_s)
        self.meter.restart()

    def _look(self, phase: Phase, measure: Callable[[int], Mapping[str, float]], done: int) -> None:
        self.pulse.enter(phase)
        self.last |= measure(done)
        self.meter.restart()

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
