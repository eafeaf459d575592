"""Brings the planned steps into RAM ahead of training: one worker's share of each.

The plan decides what is in a step, this file only when it is read, so neither timing nor a fault
changes the order. A thread plans ahead as far as the RAM allows, joins neighbouring clips of the
coming packs into ranges, and hands these to the fetcher.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple

from scalewright.data.fetching import Fetcher
from scalewright.data.hot import HotVolume
from scalewright.data.order import PackOrder, Planned
from scalewright.data.ranges import GAP_BYTES, RANGE_BYTES, Range, Want, clip_of, coalesce
from scalewright.data.sample import Entry, Missing, Sample
from scalewright.data.settings import legal_worlds
from scalewright.data.storage import AccessError, CorruptError
from scalewright.errors import ConfigError, DataError

RAM_BYTES = 256 * 2**20
AHEAD_STEPS = 128
READ_AHEAD_BYTES = 8 * RANGE_BYTES  # planned at once, so that neighbours among them are read as one

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a clip belongs, and how much of its tail is left out.

    The step, which of the worker's packs, and where in it.
    """

    step: int
    pack: int
    part: int
    frames_cut: int


@dataclass(frozen=True)
class Skip:
    """A clip that could not be read; its place in the pack counts for nothing."""

    step: int
    entry: Entry
    reason: str


@dataclass(frozen=True)
class StepData:
    """One worker's share of a step: its packs, each a list of clips, or of what is missing."""

    step: int
    packs: list[list[Sample | Missing]]


@dataclass
class _Share:
    """A step on its way into RAM."""

    packs: list[list[Sample | Missing]]
    awaited: int
    bytes: int


@dataclass
class LoaderGauges:
    """`wait_s`: how long the consumer has waited; `ram_bytes` hold clips, or are kept for them.

    `clips` were read so far; `seen` counts them by collection and by kind.
    """

    wait_s: float = 0.0
    ram_bytes: int = 0
    clips: int = 0
    seen: Counter[str] = field(default_factory=Counter)


class Loader:
    """Iterates over `StepData` of steps `start_step` to `stop_step`.

    Rank r of W gets its share of each step, so W must divide `packs_per_step`. At most `ram_bytes`
    and `ahead_steps` wait in RAM, but always the next step. A clip that is gone or stays corrupt is
    skipped and told to `on_skip`, which may raise to end it all; any other error is raised from the
    iteration. Clips come through `hot`, if there is such a volume before the store that the fetcher
    reads; otherwise neighbours are read `joined`, where that saves requests.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        order: PackOrder,
        *,
        rank: int,
        world: int,
        start_step: int,
        stop_step: int,
        ram_bytes: int = RAM_BYTES,
        ahead_steps: int = AHEAD_STEPS,
        on_skip: Callable[[Skip], None] | None = None,
        hot: HotVolume | None = None,
        joined: bool = True,
    ) -> None:
        _require_world(order.config.packs_per_step, world)
        if not 0 <= rank < world:
            raise ValueError(f"rank = {rank} of {world} workers")
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps {start_step} to {stop_step}")
        self._fetcher, self._order = fetcher, order
        self._rank, self._world = rank, world
        self._step, self._stop_step = start_step, stop_step
        self._ram_bytes, self._ahead_steps = ram_bytes, ahead_steps
        self._on_skip, self._hot = on_skip, hot
        # A volume has joined neighbours already, and brings a step once those before are read.
        joined = joined and hot is None
        self._gap_bytes, self._join_bytes = (GAP_BYTES, READ_AHEAD_BYTES) if joined else (-1, 1)
        self.gauges = LoaderGauges()
        # All below is guarded by `_changed`.
        self._changed = threading.Condition()
        self._planned = start_step  # the first step that is not asked for yet
        self._shares: dict[int, _Share] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._planner = threading.Thread(target=self._plan, name="loader", daemon=True)
        self._planner.start()

    @property
    def depth(self) -> int:
        """Steps that are wholly in RAM, waiting for the consumer."""
        with self._changed:
            return sum(not share.awaited for share in self._shares.values())

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> StepData:
        begin = time.perf_counter()
        with self._changed:
            if self._step == self._stop_step and not self._closed:
                raise StopIteration
            self._changed.wait_for(lambda: self._error or self._closed or self._is_ready())
            self.gauges.wait_s += time.perf_counter() - begin
            if self._error is not None:
                raise self._error
            if self._closed:
                raise RuntimeError("the loader is closed; make a new one from the step to go on at")
            share = self._shares.pop(self._step)
            data = StepData(self._step, share.packs)
            self._step += 1
            self.gauges.ram_bytes -= share.bytes
            self._changed.notify_all()
        return data

    def close(self) -> None:
        """Stop planning; what is still being read is dropped."""
        with self._changed:
            self._closed = True
            self._shares.clear()
            self._changed.notify_all()
        self._planner.join()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _plan(self) -> None:
        """The planner's life: ask for as many of the coming steps as there is room for."""
        try:
            while self._wait_for_room():
                wants: list[Want[Place]] = []
                bytes_wanted = 0
                while bytes_wanted < self._join_bytes and self._has_room():
                    awaited = self._planned == self._step
                    bytes_wanted += self._take_in(wants)
                    if awaited:  # what the consumer waits for goes first
                        break
                # A gap is at most a mean clip, for what lies in it is held as long as its clips.
                gap_bytes = min(self._gap_bytes, bytes_wanted // max(1, len(wants)))
                for each in coalesce(wants, gap_bytes):
                    self._ask(each)
        except BaseException as error:  # the consumer gets it, whatever it is
            self._stop(error)

    def _wait_for_room(self) -> bool:
        """False once there is nothing more to plan."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over() or self._has_room())
            return not self._is_over()

    def _take_in(self, wants: list[Want[Place]]) -> int:
        """Add what the next step wants, and take its place in RAM; returns its bytes."""
        step = self._planned
        if self._hot is not None:
            self._hot.wait_for_step(step)
        packs = self._order.share(step, self._rank, self._world)
        size = 0
        for pack, parts in enumerate(packs):
            for part, planned in enumerate(parts):
                place = Place(step, pack, part, planned.frames_cut)
                wants.append(Want(planned.entry, place))
                size += planned.entry.bytes
        with self._changed:
            awaited = sum(len(parts) for parts in packs)
            places: list[list[Sample | Missing]] = [list(map(_absent, parts)) for parts in packs]
            self._shares[step] = _Share(places, awaited, size)
            self._planned += 1
            self.gauges.ram_bytes += size
        return size

    def _ask(self, each: Range[Place]) -> None:
        """Fetch a range; every clip of it arrives or is skipped, once."""
        waiting = set(each.wants)
        refused: dict[Want[Place], CorruptError] = {}

        def accept(data: memoryview) -> None:
            refused.clear()
            for want in tuple(waiting):
                try:
                    sample = _clip(want, each, data)
                except CorruptError as error:
                    refused[want] = error
                    if self._hot is not None:
                        self._hot.distrust(each.key, want.entry.offset)
                    continue
                except DataError as error:  # no clip at all; its neighbours may be
                    waiting.discard(want)
                    self._skip(want, error)
                    continue
                waiting.discard(want)
                self._put(want.owner, sample)
            if refused:
                raise next(iter(refused.values()))

        def fail(error: DataError) -> None:
            told = refused if isinstance(error, CorruptError) else {}  # each by its own
            for want in tuple(waiting):
                waiting.discard(want)
                self._skip(want, told.get(want, error))

        self._fetcher.fetch(each.key, each.offset, each.bytes, accept, fail)

    def _skip(self, want: Want[Place], error: DataError) -> None:
        with self._changed:
            if self._closed or self._error is not None:  # who goes on will read it again
                return
        try:
            if self._on_skip is None or isinstance(error, AccessError):
                raise error
            self._on_skip(Skip(want.owner.step, want.entry, str(error)))
        except Exception as final:  # also one of the list of skips, such as a full disk
            self._stop(final)
        else:
            self._put(want.owner, None)

    def _put(self, place: Place, sample: Sample | None) -> None:
        with self._changed:
            share = self._shares.get(place.step)
            if share is None:  # closed meanwhile
                return
            if sample is not None:
                self.gauges.clips += 1
                entry = share.packs[place.pack][place.part].entry  # type: ignore[union-attr]
                self.gauges.seen.update((collection_of(entry), kind_of(entry)))
                share.packs[place.pack][place.part] = sample
            share.awaited -= 1
            if share.awaited:
                return
            self._changed.notify_all()
        if self._hot is not None:
            self._hot.passed(place.step)

    def _stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _is_over(self) -> bool:
        ended = self._planned == self._stop_step
        return self._closed or self._error is not None or ended

    def _has_room(self) -> bool:
        if self._planned == self._stop_step or self._closed:
            return False
        ahead = self._planned - self._step
        return not ahead or (ahead < self._ahead_steps and self.gauges.ram_bytes < self._ram_bytes)

    def _is_ready(self) -> bool:
        share = self._shares.get(self._step)
        return share is not None and not share.awaited


def collection_of(entry: Entry) -> str:
    """The name under which clips of its data set are counted."""
    return f"collection/{entry.collection or 'all'}"


def kind_of(entry: Entry) -> str:
    """The name under which clips of its size are counted."""
    kind = "video" if entry.is_video else "picture"
    return f"{kind}/{entry.width}x{entry.height}"


def _absent(planned: Planned) -> Missing:
    return Missing(planned.entry, planned.entry.latent_frames - planned.frames_cut)


def _clip(want: Want[Place], each: Range[Place], data: memoryview) -> Sample:
    entry = want.entry
    begin = entry.offset - each.offset
    sample = clip_of(entry, data[begin : begin + entry.bytes], each.key)
    if cut := want.owner.frames_cut:
        return replace(sample, latent=sample.latent[:-cut])
    return sample


def _require_world(packs_per_step: int, world: int) -> None:
    """`ConfigError` with the legal numbers unless `world` workers share a step evenly."""
    legal = legal_worlds(packs_per_step)
    if world not in legal:
        raise ConfigError(
            f"{world} workers cannot share data.packs_per_step = {packs_per_step} evenly; use "
            f"{', '.join(map(str, legal))} workers, or a packs_per_step that {world} divides"
        )
