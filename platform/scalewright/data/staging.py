"""What of the store the coming steps need, cut into units that are fetched once for all ranks.

Steps are cut into stretches, and what all ranks need in a stretch into units: ranges of
neighbouring clips. Both follow from the plan alone, so every rank knows every unit, its name and
who brings it, without asking anybody.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from scalewright.data.order import PackOrder
from scalewright.data.ranges import GAP_BYTES, Want, coalesce
from scalewright.data.sample import Entry
from scalewright.data.storage import CorruptError


@dataclass(frozen=True)
class Unit:
    """A range of a shard; `name` is that of its file in the volume.

    `clips`: a row for each that is wanted: where it begins in the unit, its bytes, its CRC32C.
    """

    name: str
    key: str
    offset: int
    bytes: int
    clips: NDArray[np.int64] = field(compare=False, repr=False)

    def holds(self, offset: int) -> bool:
        """Whether a clip at this offset of the shard is one of them, and no gap between two."""
        return bool((self.clips[:, 0] == offset - self.offset).any())

    def check(self, data: memoryview) -> None:
        """`CorruptError` where one of the clips is not as catalogued."""
        for begin, size, checksum in self.clips.tolist():
            if crc32c(data[begin : begin + size]) != checksum:
                raise CorruptError(f"{self.key} at offset {self.offset + begin}: wrong checksum")


@dataclass(frozen=True)
class Stretch:
    """Some steps on end, `first` to before `stop`, and the units that hold their clips."""

    number: int
    first: int
    stop: int
    units: tuple[Unit, ...]

    @property
    def steps(self) -> range:
        return range(self.first, self.stop)

    @property
    def bytes(self) -> int:
        return sum(unit.bytes for unit in self.units)

    def brought_by(self, rank: int, world: int) -> tuple[Unit, ...]:
        """The units that a rank fetches; every unit has one rank that does."""
        return self.units[rank::world]


def stretches(
    order: PackOrder,
    start_step: int,
    stop_step: int,
    stretch_bytes: int,
    gap_bytes: int = GAP_BYTES,
) -> Iterator[Stretch]:
    """Stretches of about `stretch_bytes`, but of at least one step, as far as they are asked for.

    A clip that is wanted twice in a stretch lies in one unit; `gap_bytes` that nobody wants may lie
    between two clips of one, but no more than a mean clip has, so that less than half of a stretch
    is of no use. Units are in the order in which they are needed.
    """
    number, first = 0, start_step
    while first < stop_step:
        entries: dict[int, Entry] = {}
        size, step = 0, first
        while step < stop_step and (step == first or size < stretch_bytes):
            for pack in order.packs(step):
                for planned in pack:
                    size += planned.entry.bytes  # each time, or few clips make a stretch of all
                    entries[planned.entry.id] = planned.entry
            step += 1
        gap = min(gap_bytes, size // len(entries))
        yield Stretch(number, first, step, _units(number, list(entries.values()), gap))
        number, first = number + 1, step


def _units(number: int, entries: Sequence[Entry], gap_bytes: int) -> tuple[Unit, ...]:
    """The units of a stretch that needs these clips, first things first."""
    wants = (Want(entry, place) for place, entry in enumerate(entries))
    ranges = list(coalesce(wants, gap_bytes))
    ranges.sort(key=lambda each: min(want.owner for want in each.wants))
    units = []
    for place, each in enumerate(ranges):
        clips = [(w.entry.offset - each.offset, w.entry.bytes, w.entry.crc32c) for w in each.wants]
        name = f"{number:08d}-{place:06d}"
        units.append(Unit(name, each.key, each.offset, each.bytes, np.array(clips, np.int64)))
    return tuple(units)
