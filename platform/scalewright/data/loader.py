"""Reads the planned steps ahead of training: threads of one process, one worker's share each.

The plan decides what is in a step, this file only when it is read, so timing changes nothing.
"""

import logging
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from scalewright.data.packing import PackOrder, legal_worlds
from scalewright.data.sample import Entry, Sample
from scalewright.errors import ConfigError

READER_THREADS = 2

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Where clips come from; must be safe to call from several threads."""

    def read(self, entry: Entry) -> Sample: ...


@dataclass(frozen=True)
class StepData:
    """One worker's share of a step: its packs, each a list of clips."""

    step: int
    packs: list[list[Sample]]


class Loader:
    """Iterates over `StepData` of steps `start_step` to `stop_step`, read by threads in advance.

    Rank r of W takes packs r, r + W, ... of each step, so W must divide `packs_per_step`. At most
    `ahead_steps` steps wait in RAM. The first error of a thread is raised from the iteration at
    once, as it is. Gauges: `wait_s`, the time the consumer has waited so far, and `depth`, the
    steps that lie ready.
    """

    def __init__(
        self,
        reader: Reader,
        order: PackOrder,
        *,
        rank: int,
        world: int,
        start_step: int,
        stop_step: int,
        ahead_steps: int = 2,
    ) -> None:
        _require_world(order.config.packs_per_step, world)
        if not 0 <= rank < world:
            raise ValueError(f"rank = {rank} of {world} workers")
        if not 0 <= start_step <= stop_step or ahead_steps < 1:
            raise ValueError(f"steps {start_step} to {stop_step}, {ahead_steps} ahead")
        self._reader, self._order = reader, order
        self._rank, self._world = rank, world
        self._share = order.config.packs_per_step // world
        self._step, self._stop_step, self._ahead_steps = start_step, stop_step, ahead_steps
        self.wait_s = 0.0
        # All below is guarded by `_changed`; this worker's packs are numbered step * share + place.
        self._changed = threading.Condition()
        self._claimed = start_step * self._share
        self._ready: dict[int, list[Sample]] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"loader-{number}", daemon=True)
            for number in range(READER_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Steps that are wholly in RAM, waiting for the consumer."""
        with self._changed:
            steps = range(self._step, self._step + self._ahead_steps)
            return sum(self._is_ready(step) for step in steps)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> StepData:
        begin = time.perf_counter()
        with self._changed:
            if self._step == self._stop_step and not self._closed:
                raise StopIteration
            self._changed.wait_for(
                lambda: self._error or self._closed or self._is_ready(self._step)
            )
            self.wait_s += time.perf_counter() - begin
            if self._error is not None:
                raise self._error
            if self._closed:
                raise RuntimeError("the loader is closed; make a new one from the step to go on at")
            data = StepData(self._step, [self._ready.pop(n) for n in self._numbers(self._step)])
            self._step += 1
            self._changed.notify_all()
        return data

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop the threads; each ends after the clip it is reading.

        A read that does not return within `timeout_s` is logged and left to its daemon thread.
        """
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s: a read has not returned for %g s", thread.name, timeout_s)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        """A thread's life: claim the next pack, read it, put it down."""
        try:
            while (number := self._claim()) is not None:
                samples = self._read(number)
                with self._changed:
                    if not self._closed:
                        self._ready[number] = samples
                    self._changed.notify_all()
        except BaseException as error:  # the consumer gets it, whatever it is
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _claim(self) -> int | None:
        """The number of the next pack to read, once there is room for it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or self._has_room())
            if self._is_over():
                return None
            self._claimed += 1
            return self._claimed - 1

    def _read(self, number: int) -> list[Sample]:
        step, place = divmod(number, self._share)
        of_step = self._rank + place * self._world
        samples = []
        for entry in self._order.packs(step)[of_step]:
            if self._closed:
                break
            samples.append(self._reader.read(entry))
        return samples

    def _is_over(self) -> bool:
        ended = self._claimed == self._stop_step * self._share
        return self._closed or self._error is not None or ended

    def _has_room(self) -> bool:
        return self._claimed < (self._step + self._ahead_steps) * self._share

    def _is_ready(self, step: int) -> bool:
        return all(number in self._ready for number in self._numbers(step))

    def _numbers(self, step: int) -> range:
        return range(step * self._share, (step + 1) * self._share)


def _require_world(packs_per_step: int, world: int) -> None:
    """`ConfigError` with the legal numbers unless `world` workers share a step evenly."""
    legal = legal_worlds(packs_per_step)
    if world not in legal:
        raise ConfigError(
            f"{world} workers cannot share data.packs_per_step = {packs_per_step} evenly; use "
            f"{', '.join(map(str, legal))} workers, or a packs_per_step that {world} divides"
        )
