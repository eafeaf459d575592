"""What of the store the coming steps need, cut into units that are fetched once for all ranks.

Steps are cut into stretches, and what all ranks need in a stretch into units: ranges of
neighbouring clips. Both follow from the plan alone, so every rank knows every unit, its name and
who brings it, without asking anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from scalewright.data.order import PackOrder
from scalewright.data.ranges import GAP_BYTES, Want, coalesce


@dataclass(frozen=True)
class Unit:
    """A range of a shard; `name` is that of its file in the volume."""

    name: str
    key: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Stretch:
    """Some steps on end, `first` to before `stop`, and the units that hold their clips."""

    number: int
    first: int
    stop: int
    units: tuple[Unit, ...]

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
    is of no use.
    """
    number, first = 0, start_step
    while first < stop_step:
        entries, size, step = {}, 0, first
        while step < stop_step and (step == first or size < stretch_bytes):
            for pack in order.packs(step):
                for planned in pack:
                    size += planned.entry.bytes * (planned.entry.id not in entries)
                    entries[planned.entry.id] = planned.entry
            step += 1
        gap = min(gap_bytes, size // len(entries))
        ranges = coalesce((Want(entry, None) for entry in entries.values()), gap)
        units = tuple(
            Unit(f"{number:08d}-{place:06d}", each.key, each.offset, each.bytes)
            for place, each in enumerate(ranges)
        )
        yield Stretch(number, first, step, units)
        number, first = number + 1, step
