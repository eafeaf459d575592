"""Which clips go together into a pack: aspect-ratio buffers that close on a full pack, no I/O.

Clips arrive in a shuffled order and wait in the buffer of their kind. The clip that has waited
longest is in the next pack; of the others those whose sizes add up best are chosen (subset sum over
bit sets). A pack leaves as soon as it is full, or once `BUFFER_CLIPS` wait; at the end of a block
what is left leaves as it is, so nothing is dropped and nothing waits for ever.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

# Clips that wait in a buffer at most. 64 fill packs of 25 latent frames to 97-99.9%; waiting for an
# exact fill without limit stalls for ever where lengths cannot add up to it.
BUFFER_CLIPS = 64


class Item(NamedTuple):
    """A clip as the packer sees it; sizes and costs in the units of the limits.

    `kind`: clips of different kinds never share a pack. Up to `spare_frames` latent frames may be
    cut off its tail, each of which has `frame_size`.
    """

    row: int
    kind: int
    size: int
    cost: float
    frame_size: int = 0
    spare_frames: int = 0


class Part(NamedTuple):
    """A clip of a pack: its row, and how many latent frames of its tail are left out."""

    row: int
    frames_cut: int


class Pack(NamedTuple):
    """Clips that go together; `flushed` where the end of a block closed it, not its fill."""

    parts: tuple[Part, ...]
    size: int
    cost: float
    flushed: bool


@dataclass(frozen=True)
class Limits:
    """When a pack is full: `size` in whole units, and `cost`, if it is bounded at all.

    At `enough` a better fill is not looked for. `trim`: how much over the limit a set may be whose
    longest clip is then cut.
    """

    size: int
    cost: float = float("inf")
    enough: int = 0
    trim: int = 0

    @cached_property
    def leaves_at(self) -> int:
        return self.enough or self.size

    @cached_property
    def within(self) -> int:
        """A bit for every size up to the limit."""
        return (1 << self.size + 1) - 1

    @cached_property
    def full(self) -> int:
        """A bit for every size at which a pack is full enough."""
        return self.within & ~((1 << self.leaves_at) - 1)

    @cached_property
    def looked_at(self) -> int:
        """A bit for every size that a set may have, before it is trimmed."""
        return (1 << self.size + self.trim + 1) - 1


def packs_of(items: Iterable[Item], limits: Limits, waiting: Iterable[Item] = ()) -> Iterator[Pack]:
    """The packs of clips that arrive in this order, each clip in exactly one of them.

    Every size is within the limit. Packs come as soon as they leave their buffer. `waiting`: those
    that had arrived before and are in no pack yet, in the order in which they came; with them the
    packs are those that would have followed.
    """
    buffers: dict[int, list[Item]] = {}
    for item in waiting:
        buffers.setdefault(item.kind, []).append(item)
    for item in items:
        buffer = buffers.setdefault(item.kind, [])
        buffer.append(item)
        if len(buffer) >= BUFFER_CLIPS:
            yield _leave(buffer, limits, flushed=False)
    for kind in sorted(buffers):
        while buffer := buffers[kind]:
            yield _leave(buffer, limits, flushed=True)


def _leave(items: list[Item], limits: Limits, *, flushed: bool) -> Pack:
    """Take the next pack out of a buffer."""
    sums = _sums(items, limits)
    best = _largest(sums[-1], limits)
    places, cut = _chosen(items, sums, best), (0, 0)
    if best < limits.leaves_at:
        places, cut = _trimmed(items, sums, limits) or (places, cut)
    if sum(items[place].cost for place in places) > limits.cost:
        places, cut = _affordable(items, limits), (0, 0)
    parts, size, cost = [], 0, 0.0
    for place in places:
        row, _, item_size, item_cost, frame_size, _ = items[place]
        frames = cut[1] if place == cut[0] else 0
        parts.append(Part(row, frames))
        size += item_size - frames * frame_size
        cost += item_cost * (1 - frames * frame_size / item_size)
    for place in reversed(places):
        del items[place]
    return Pack(tuple(parts), size, cost, flushed and size < limits.leaves_at)


def _sums(items: Sequence[Item], limits: Limits) -> list[int]:
    """Bit s of number k is set where some of the first k + 1 sizes, the first among them, make s.

    Ends with the clip that makes a pack full enough. One shift and one "or" a clip.
    """
    full, looked_at = limits.full, limits.looked_at
    current = 1 << items[0].size
    sums = [current]
    for item in islice(items, 1, None):
        if current & full:
            break
        current = (current | current << item.size) & looked_at
        sums.append(current)
    return sums


def _largest(sums: int, limits: Limits) -> int:
    return (sums & limits.within).bit_length() - 1


def _chosen(items: Sequence[Item], sums: Sequence[int], total: int) -> list[int]:
    """Places of clips whose sizes make `total`, the older ones where there is a choice."""
    places = []
    for place in range(len(sums) - 1, 0, -1):
        if not sums[place - 1] >> total & 1:
            places.append(place)
            total -= items[place].size
    return [0, *reversed(places)]


def _trimmed(
    items: Sequence[Item], sums: Sequence[int], limits: Limits
) -> tuple[list[int], tuple[int, int]] | None:
    """A set just over the limit, and of which clip how many frames are to go for it to fit."""
    over = sums[-1] >> limits.size + 1
    if not over:
        return None
    excess = (over & -over).bit_length()
    places = _chosen(items, sums, limits.size + excess)
    longest = max(places, key=lambda place: items[place].size)
    item = items[longest]
    if not item.frame_size or (cut := -(-excess // item.frame_size)) > item.spare_frames:
        return None
    return places, (longest, cut)


def _affordable(items: Sequence[Item], limits: Limits) -> list[int]:
    """The oldest clip, and of the rest the costliest that still fit both limits."""
    places = [0]
    size, cost = limits.size - items[0].size, limits.cost - items[0].cost
    for place in sorted(range(1, len(items)), key=lambda place: -items[place].cost):
        if items[place].size <= size and items[place].cost <= cost:
            places.append(place)
            size, cost = size - items[place].size, cost - items[place].cost
    return sorted(places)
