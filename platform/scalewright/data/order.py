"""Which packs each step of a run eats: a pure function of (clips, config, seed, step), no I/O.

Blocks of shuffled clips become packs; packs, counted from the run's first, become steps of
`packs_per_step`. Among `balance_steps` steps packs are exchanged so that all of a step cost about
the same, and a step's packs are dealt to ranks so that each has as much to do. Ranks only share a
step out: at any number of them it holds the same clips.
"""

import copy
import heapq
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.data.distinct import distinct
from scalewright.data.draws import Draws
from scalewright.data.measure import WEIGHED_AT_ONCE, Measure, Weigh
from scalewright.data.packing import Item, Limits, Pack, packs_of
from scalewright.data.sample import Entry
from scalewright.data.settings import DataConfig
from scalewright.data.shuffle import key_of, shuffled
from scalewright.errors import ConfigError
from scalewright.model.shape import ClipTokens

CACHED = 4  # blocks and windows that are kept


class Planned(NamedTuple):
    """A clip of a pack, and how many latent frames of its tail are left out."""

    entry: Entry
    frames_cut: int


@dataclass(frozen=True)
class Mark:
    """A place from which on packs can be planned: a block, and the number of its next pack.

    Of the block `packs` packs have left by then, of `arrived` clips, and the rows `waiting` are in
    none of them yet: at most `BUFFER_CLIPS` of each kind.
    """

    block: int = 0
    pack: int = 0
    packs: int = 0
    arrived: int = 0
    waiting: Sequence[int] = ()


@dataclass(frozen=True)
class LeftOut:
    """Data that are not trained on: those of `steps` steps from the data step `begin`."""

    begin: int
    steps: int


def data_step(step: int, left_out: Sequence[LeftOut]) -> int:
    """Which step's data a step trains on, those that were left out passed over."""
    for part in sorted(left_out, key=lambda part: part.begin):
        if step >= part.begin:
            step += part.steps
    return step


class PackOrder:
    """The endless sequence of steps over `rows` of `clips`, found at random from any thread.

    Steps count from that of the run's first; `begin` is the one that begins with the first pack.
    How many packs a block gives is known once it is planned, so reaching a step for the first time
    plans what lies before it, from `mark` on.
    """

    def __init__(
        self,
        clips: Clips,
        rows: NDArray[np.int64],
        weigh: Weigh,
        config: DataConfig,
        seed: int,
        begin: int = 0,
    ) -> None:
        if seed < 0:
            raise ConfigError(f"seed = {seed}; it must be at least 0")
        self.config = config
        self.clips = clips
        self._measure = Measure(clips, rows, weigh, config)
        self._draws = Draws(clips, rows, config, seed)
        self._rows, self._weigh = rows, weigh
        self._seed = seed
        self._begin = begin
        self._mark = Mark()
        self._starts = [0]  # of the blocks from the mark on, as far as they are known
        self._blocks: OrderedDict[tuple[int, int], _Block] = OrderedDict()
        self._windows: OrderedDict[int, list[list[Pack]]] = OrderedDict()
        self._lock = threading.RLock()
        self._left_out: tuple[LeftOut, ...] = ()

    def without(self, left_out: Sequence[LeftOut]) -> "PackOrder":
        """The same order, some data left out; what is planned is shared."""
        other = copy.copy(self)
        other._left_out = tuple(left_out)
        return other

    def packs(self, step: int) -> list[tuple[Planned, ...]]:
        """The packs of a step, exactly `packs_per_step` of them."""
        return self._planned(self._step(step))

    def share(self, step: int, rank: int, world: int) -> list[tuple[Planned, ...]]:
        """One rank's packs of a step: as many as every other's, and of nearly the same cost."""
        packs = self._step(step)
        hand = deal([pack.cost for pack in packs], world)[rank]
        return self._planned([packs[place] for place in hand])

    def tokens(self, step: int) -> list[ClipTokens]:
        """Tokens of every clip of a step, all packs together."""
        parts = [part for pack in self._step(step) for part in pack.parts]
        clips = self.clips.take(np.array([part.row for part in parts]))
        weights = self._weigh(clips)
        cut = np.array([part.frames_cut for part in parts])
        visual = weights.visual - cut * (weights.visual // clips.latent_frames)
        return [
            ClipTokens(*pair) for pair in zip(visual.tolist(), weights.text.tolist(), strict=True)
        ]

    def entries(self) -> list[Entry]:
        """Every clip of the order, by id; only for few."""
        return self.clips.take(self._rows).entries()

    def sizes(self) -> Counter[tuple[int, int]]:
        """How many clips there are of each (visual, text) number of tokens."""
        found: Counter[tuple[int, int]] = Counter()
        for begin in range(0, len(self._rows), WEIGHED_AT_ONCE):
            weights = self._weigh(self.clips.take(self._rows[begin : begin + WEIGHED_AT_ONCE]))
            found.update(zip(weights.visual.tolist(), weights.text.tolist(), strict=True))
        return found

    def kinds(self) -> list[Entry]:
        """A clip of each collection, latent size and kind (picture or video) that there is."""
        clips, firsts = self.clips, set[int]()
        for begin in range(0, len(self._rows), WEIGHED_AT_ONCE):
            rows = self._rows[begin : begin + WEIGHED_AT_ONCE]
            size = clips.height[rows].astype(np.int64) << 32 | clips.width[rows]
            collection = clips.collection[rows].astype(np.int64)
            for values in (collection, size * 2 + (clips.latent_frames[rows] > 1)):
                firsts.update(rows[distinct(values)[0]].tolist())
        return clips.take(np.array(sorted(firsts))).entries()

    def costs(self, step: int) -> list[float]:
        """FLOPs of each pack of a step."""
        return [pack.cost for pack in self._step(step)]

    def epoch_of(self, step: int) -> float:
        """How many epochs have been seen when `step` begins."""
        with self._lock:
            block, place = self._find(self._first_pack(step))
            before = self._start(block).packs
            share = (before + place) / (before + len(self._block(block).all()))
            return (block + share) / self._draws.blocks_per_epoch

    def fill(self) -> float:
        """Mean share of the limit on size that the packs of the first block use."""
        packs = self._plan(Mark()).all()
        return sum(pack.size for pack in packs) / (len(packs) * self._measure.limits.size)

    def flushed(self) -> int:
        """Packs of the first block that its end closed before they were full."""
        return sum(pack.flushed for pack in self._plan(Mark()).all())

    def plan_from(self, mark: Mark) -> None:
        """Plan from a mark of the same order on, as a resumed run does."""
        with self._lock:
            self._mark = replace(mark, waiting=tuple(mark.waiting))  # JSON knows lists alone
            self._starts = [mark.pack]
            self._blocks.clear()
            self._windows.clear()

    def mark(self, step: int) -> Mark:
        """From where on a resumed run must plan to find `step`."""
        window = self._first_pack(step) // self._window_packs * self._window_packs
        with self._lock:
            block, place = self._find(window)
            return self._after(self._start(block), self._block(block), place)

    @property
    def _window_packs(self) -> int:
        return self.config.balance_steps * self.config.packs_per_step

    def _first_pack(self, step: int) -> int:
        step = data_step(step, self._left_out) - self._begin
        if step < 0:
            raise ValueError(f"step {step}: steps count from 0")
        return step * self.config.packs_per_step

    def _step(self, step: int) -> list[Pack]:
        window, place = divmod(self._first_pack(step), self._window_packs)
        with self._lock:
            if window not in self._windows:
                self._windows[window] = self._window(window)
            while len(self._windows) > CACHED:
                self._windows.popitem(last=False)
            return self._windows[window][place // self.config.packs_per_step]

    def _window(self, window: int) -> list[list[Pack]]:
        """Some steps at once: packs sorted by cost, cut into steps, the steps in random order."""
        size, first = self.config.packs_per_step, window * self._window_packs
        packs = list(islice(self._packs_from(first), self._window_packs))
        if self.config.balance_steps > 1:
            packs.sort(key=lambda pack: -pack.cost)
        steps = [packs[place : place + size] for place in range(0, len(packs), size)]
        places = np.arange(len(steps), dtype=np.int64)
        return [steps[place] for place in shuffled(places, key_of(self._seed, "steps", window))]

    def _packs_from(self, number: int) -> Iterator[Pack]:
        while True:
            number_of_block, place = self._find(number)
            block = self._block(number_of_block)
            while block.reaches(place):
                yield block.packs[place]
                place, number = place + 1, number + 1

    def _find(self, number: int) -> tuple[int, int]:
        """The block that holds a pack, and its place there."""
        if number < self._mark.pack:
            self.plan_from(Mark())
        while True:
            known = bisect_right(self._starts, number) - 1
            block, place = self._mark.block + known, number - self._starts[known]
            if known < len(self._starts) - 1 or self._block(block).reaches(place):
                return block, place
            self._starts.append(self._starts[-1] + len(self._block(block).all()))

    def _start(self, block: int) -> Mark:
        """From where on a block is planned: its beginning, or the mark in it."""
        if block == self._mark.block:
            return self._mark
        return Mark(block, self._starts[block - self._mark.block])

    def _block(self, block: int) -> "_Block":
        start = self._mark if block == self._mark.block else Mark(block)
        key = (block, start.packs)
        if key not in self._blocks:
            self._blocks[key] = self._plan(start)
        self._blocks.move_to_end(key)
        while len(self._blocks) > CACHED:
            self._blocks.popitem(last=False)
        return self._blocks[key]

    def _plan(self, start: Mark) -> "_Block":
        rows = self._draws.rows(start.block)[start.arrived :]
        waiting = np.array(start.waiting, np.int64)
        return _Block(self._items(waiting), self._items(rows), self._measure.limits)

    def _items(self, rows: NDArray[np.int64]) -> Iterator[Item]:
        return self._measure.items(rows, self.clips.take(rows))

    def _after(self, start: Mark, block: "_Block", place: int) -> Mark:
        """The mark at a pack of a block that is planned from `start`."""
        if place == 0:
            return start
        block.reaches(place)  # it may have been forgotten since
        arrived = start.arrived + block.arrived[place - 1]
        new = self._draws.rows(start.block)[start.arrived : arrived].tolist()
        gone = Counter(part.row for pack in block.packs[:place] for part in pack.parts)
        waiting = []
        for row in (*start.waiting, *new):
            if gone[row]:  # of a clip that a mixture brings twice, the first one goes first
                gone[row] -= 1
            else:
                waiting.append(row)
        packs = start.packs + place
        return Mark(start.block, start.pack + place, packs, arrived, tuple(waiting))

    def _planned(self, packs: Sequence[Pack]) -> list[tuple[Planned, ...]]:
        parts = [part for pack in packs for part in pack.parts]
        entries = iter(self.clips.take(np.array([part.row for part in parts])).entries())
        return [
            tuple(Planned(next(entries), part.frames_cut) for part in pack.parts) for pack in packs
        ]


def deal(costs: Sequence[float], world: int) -> list[list[int]]:
    """Places of packs for each rank: equally many, the costliest to who has least to do so far.

    (Graham 1969, longest processing time first, with equal counts.)
    """
    share = len(costs) // world
    hands: list[list[int]] = [[] for _ in range(world)]
    queue = [(0.0, rank) for rank in range(world)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        total, rank = heapq.heappop(queue)
        hands[rank].append(place)
        if len(hands[rank]) < share:
            heapq.heappush(queue, (total + costs[place], rank))
    return hands


class _Block:
    """The packs of one block, made as far as they are asked for.

    `arrived`: how many of the items had come when a pack left.
    """

    def __init__(self, waiting: Iterator[Item], items: Iterator[Item], limits: Limits) -> None:
        self.packs: list[Pack] = []
        self.arrived: list[int] = []
        self._count = 0
        self._more: Iterator[Pack] | None = packs_of(self._counted(items), limits, waiting)

    def _counted(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self._count += 1
            yield item

    def reaches(self, place: int) -> bool:
        """Whether the block has a pack `place`."""
        while self._more is not None and len(self.packs) <= place:
            if (pack := next(self._more, None)) is None:
                self._more = None
            else:
                self.packs.append(pack)
                self.arrived.append(self._count)
        return len(self.packs) > place

    def all(self) -> list[Pack]:
        while self._more is not None:
            self.reaches(len(self.packs))
        return self.packs
