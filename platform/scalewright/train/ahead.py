"""Makes the packs of coming steps while a step runs, and has them on the device when it begins.

A thread noises and packs the clips that the loader gives. On a CUDA device it copies them from
pinned memory in a stream of its own; the step's stream waits for that copy, the processor does not.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalewright.data.loader import StepData
from scalewright.objective.flow import NoisedPack

STEPS_AHEAD = 1  # made and waiting, beside the one that is being made

Make = Callable[[StepData], list[NoisedPack]]


class Ready(NamedTuple):
    """A step's data, and its packs on the device."""

    data: StepData
    packs: list[NoisedPack]


class _Made(NamedTuple):
    ready: Ready
    copied: torch.cuda.Event | None


class Ahead:
    """Makes what a loader gives ready for its step; `wait_s` is how long steps have waited for it.

    Leave the loader's context before this one's: its thread may wait for the loader.
    """

    def __init__(self, make: Make, device: torch.device) -> None:
        self.wait_s = 0.0
        self._make, self._device = make, device
        self._closed = False
        self._queue: queue.Queue[_Made | BaseException | None] = queue.Queue(STEPS_AHEAD)
        self._thread: threading.Thread | None = None

    def over(self, loader: Iterable[StepData]) -> Iterator[Ready]:
        """The steps of a loader; what it or `make` raises is raised from here."""
        self._thread = threading.Thread(target=self._run, args=(loader,), name="ahead", daemon=True)
        self._thread.start()
        while True:
            begin_s = time.perf_counter()
            made = self._queue.get()
            self.wait_s += time.perf_counter() - begin_s
            if made is None:
                return
            if isinstance(made, BaseException):
                raise made
            if made.copied is not None:
                self._take_over(made.ready.packs, made.copied)
            yield made.ready

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        while self._thread is not None and self._thread.is_alive():
            with suppress(queue.Empty):  # the thread may wait for room
                self._queue.get(timeout=0.05)

    def _run(self, loader: Iterable[StepData]) -> None:
        try:
            stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            for data in loader:
                if self._closed:
                    return
                self._queue.put(self._made(data, stream))
            self._queue.put(None)
        except BaseException as error:  # the consumer gets it, whatever it is
            self._queue.put(error)

    def _take_over(self, packs: list[NoisedPack], copied: torch.cuda.Event) -> None:
        """Let the step's stream wait for the copy, and keep its memory until that has run."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)

        def held(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        _mapped(packs, held)

    def _made(self, data: StepData, stream: torch.cuda.Stream | None) -> _Made:
        packs = self._make(data)
        if stream is None:
            return _Made(Ready(data, [pack.to(self._device) for pack in packs]), None)
        with torch.cuda.stream(stream):
            moved = [_mapped(pack, Tensor.pin_memory).to(self._device) for pack in packs]
            return _Made(Ready(data, moved), stream.record_event())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same, every tensor in it changed; in lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, change) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(
            value, **{name: _mapped(getattr(value, name), change) for name in names}
        )
    return value
