"""A rank's signs of life as its training loop gives them: phases, steps, and its own work.

On a CUDA device the loop runs ahead of the device: there a step has finished when its last event
has, for which the second thread asks, too. Nothing in a step waits.
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch._C import _distributed_c10d

from scalewright.heartbeat import Heartbeat, Phase, beat_folder
from scalewright.model.mmdit import Block
from scalewright.train.parallel import World

Item = TypeVar("Item")


class Span(Protocol):
    """Time on the device since it was made, until `end`."""

    def end(self) -> None: ...

    def seconds(self) -> float | None:
        """None while it lasts."""


class HostSpan:
    def __init__(self) -> None:
        self._seconds: float | None = None
        self._begin_s = time.perf_counter()

    def end(self) -> None:
        self._seconds = time.perf_counter() - self._begin_s

    def seconds(self) -> float | None:
        return self._seconds


class CudaSpan:
    """Between two events of the current stream."""

    def __init__(self) -> None:
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record()

    def end(self) -> None:
        self._end.record()

    def seconds(self) -> float | None:
        return self._begin.elapsed_time(self._end) / 1000 if self._end.query() else None


class OwnWork:
    """Times the forward runs of blocks, in which a rank waits for no other.

    Gathering weights comes before a block's run and is not in it; a backward pass waits for others
    and is not timed.
    """

    def __init__(self, span: Callable[[], Span]) -> None:
        self._span = span
        self._spans: list[Span] | None = None

    def time(self, blocks: Iterable[Block]) -> None:
        """Have these blocks timed from now on, whenever it is on."""
        for block in blocks:
            block.runner = self._timed(block.runner)

    def begin(self) -> None:
        self._spans = []

    def end(self) -> list[Span]:
        """The runs since it began."""
        spans, self._spans = self._spans, None
        return spans or []

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def timed(*arguments: Any) -> Any:
            if self._spans is None:
                return run(*arguments)
            span = self._span()
            result = run(*arguments)
            span.end()
            self._spans.append(span)
            return result

        return timed


@dataclass
class _Step:
    """A step that the loop began; FLOPs of the rank with most to do, and of this one's runs."""

    span: Span
    flops: float
    own_flops: float
    runs: list[Span] = field(default_factory=list)


class Pulse:
    """What the worker tells as it goes; the heartbeat of this rank."""

    def __init__(
        self, run_folder: Path, attempt: int, world: World, *, timed_every_steps: int = 1
    ) -> None:
        self._world, self._every = world, timed_every_steps
        on_device = world.device.type == "cuda"
        self._span: Callable[[], Span] = CudaSpan if on_device else HostSpan
        self._unfinished: deque[_Step] = deque()
        self._lock = threading.Lock()
        self._kinds: set[object] = set()
        self._told = False
        self._own_work = OwnWork(self._span)
        self._heartbeat = Heartbeat(
            beat_folder(run_folder, attempt),
            world.rank,
            attempt,
            answer=functools.partial(recorded_collectives, world.device),
            on_beat=self._take_finished,
        )

    def time(self, blocks: Iterable[Block]) -> None:
        """The blocks whose runs are this rank's own work."""
        self._own_work.time(blocks)

    def enter(self, phase: Phase, step: int | None = None) -> None:
        self._heartbeat.enter(phase, step)

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the wait for each of them is the phase DATA."""
        iterator = iter(items)
        while True:
            self.enter(Phase.DATA)
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def step(self, step: int, shares: Sequence[float], kind: object = None) -> "_Stepping":
        """A context for one step; `shares` are the FLOPs of each rank's packs.

        A `kind` that this process has not run before may be compiled first.
        """
        new = kind not in self._kinds
        self._kinds.add(kind)
        timed = not new and step % self._every == 0
        own_flops = shares[self._world.rank] / 3 if timed else 0.0  # the forward pass
        return _Stepping(self, step, max(shares), own_flops, new)

    def first_step(self) -> bool:
        """True once, after the first step of the attempt, which it waits for."""
        if self._told:
            return False
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        self._told = True
        return True

    def close(self) -> None:
        self._heartbeat.close()

    def __enter__(self) -> "Pulse":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self, step: int, flops: float, own_flops: float, new: bool) -> _Step:
        self._take_finished()
        with self._lock:
            oldest = self._unfinished[0].flops if self._unfinished else flops
        self._heartbeat.enter(Phase.COMPILE if new else Phase.STEP, step, oldest)
        if own_flops:
            self._own_work.begin()
        # What is compiled tells nothing of how long steps take.
        return _Step(self._span(), 0.0 if new else flops, own_flops)

    def end(self, step: _Step) -> None:
        step.span.end()
        step.runs = self._own_work.end()
        with self._lock:
            self._unfinished.append(step)
        self._take_finished()

    def _take_finished(self) -> None:
        with self._lock:
            while self._unfinished:
                step = self._unfinished[0]
                seconds = step.span.seconds()
                if seconds is None:
                    return
                self._unfinished.popleft()
                # They lie before the end of the step, so all of them have ended.
                runs = [run.seconds() or 0.0 for run in step.runs]
                self._heartbeat.worked(sum(runs), step.own_flops)
                following = self._unfinished[0].flops if self._unfinished else None
                self._heartbeat.finished(seconds, step.flops, following)


class _Stepping:
    """One step; one that raises has not finished."""

    def __init__(self, pulse: Pulse, step: int, flops: float, own_flops: float, new: bool) -> None:
        self._pulse = pulse
        self._arguments = (step, flops, own_flops, new)

    def __enter__(self) -> None:
        self._begun = self._pulse.begin(*self._arguments)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._pulse.end(self._begun)


def recorded_collectives(device: torch.device) -> bytes:
    """The flight recorder of this process as JSON: its last collectives, by group, in order."""
    dump = "_dump_nccl_trace_json" if device.type == "cuda" else "_dump_fr_trace_json"
    recorded: bytes = getattr(_distributed_c10d, dump)()
    return recorded
