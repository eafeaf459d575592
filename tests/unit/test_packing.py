"""Packs: every clip once, never over a limit, nearly full, the oldest first."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.data.packing import BUFFER_CLIPS, Item, Limits, Pack, packs_of

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=300)
kinds = st.integers(1, 4)


def items_of(sizes: Sequence[int], kinds: int = 1, spare: int = 0) -> list[Item]:
    """Items of frames of size 1, that cost the square of their size."""
    return [
        Item(row, row % kinds, size, float(size**2), 1, min(spare, max(0, size - 2)))
        for row, size in enumerate(sizes)
    ]


def packed(items: Sequence[Item], limits: Limits) -> list[Pack]:
    return list(packs_of(items, limits))


def fill(packs: Sequence[Pack], limit: int) -> float:
    return sum(pack.size for pack in packs) / (limit * len(packs))


@given(sizes, kinds, st.integers(60, 200))
def test_each_clip_is_in_exactly_one_pack_of_its_kind(
    sizes: list[int], kinds: int, limit: int
) -> None:
    packs = packed(items_of(sizes, kinds), Limits(limit))
    assert sorted(part.row for pack in packs for part in pack.parts) == list(range(len(sizes)))
    assert all(len({part.row % kinds for part in pack.parts}) == 1 for pack in packs)


@given(sizes, st.integers(60, 200), st.integers(3600, 20_000), st.integers(0, 2))
def test_no_pack_is_over_a_limit_and_it_knows_what_it_holds(
    sizes: list[int], limit: int, cost: int, trim: int
) -> None:
    limits = Limits(limit, cost=float(cost), trim=trim)
    for pack in packed(items_of(sizes, spare=trim), limits):
        held = sum(sizes[part.row] - part.frames_cut for part in pack.parts)
        assert 0 < held == pack.size <= limit
        assert pack.cost <= cost * (1 + 1e-9)
        assert all(0 <= part.frames_cut <= trim for part in pack.parts)


@given(sizes, kinds, st.integers(60, 200))
def test_the_clip_that_has_waited_longest_is_in_the_next_pack(
    sizes: list[int], kinds: int, limit: int
) -> None:
    waiting = set(range(len(sizes)))
    for pack in packed(items_of(sizes, kinds), Limits(limit)):
        rows = [part.row for part in pack.parts]
        of_kind = [row for row in waiting if row % kinds == rows[0] % kinds]
        assert rows[0] == min(of_kind)
        assert max(rows) in sorted(of_kind)[:BUFFER_CLIPS]
        waiting.difference_update(rows)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(60, 120))
def test_of_few_clips_the_fullest_pack_is_found(sizes: list[int], limit: int) -> None:
    first = packed(items_of(sizes), Limits(limit))[0]
    reachable = {sizes[0]}
    for size in sizes[1:]:
        reachable |= {total + size for total in reachable if total + size <= limit}
    assert first.size == max(reachable)


# The four mixes of lengths that loaders are compared on, in packs of 25 latent frames.
_random, _count = np.random.default_rng(0), 40_000
MIXES = {
    "40% pictures": (
        0.999,
        np.where(_random.random(_count) < 0.4, 1, _random.integers(2, 26, _count)),
    ),
    "videos": (0.965, _random.integers(2, 26, _count)),
    "4k + 1 frames": (0.88, _random.choice([5, 9, 13, 17, 21, 25], _count)),
    "scenes": (0.995, np.minimum(25, 2 + _random.geometric(0.12, _count))),
}


@pytest.mark.parametrize("name", MIXES)
def test_packs_of_25_frames_are_nearly_full(name: str) -> None:
    least, frames = MIXES[name][0], MIXES[name][1].tolist()
    packs = packed(items_of(frames), Limits(25))
    assert fill(packs, 25) >= least
    waits = [max(p.row for p in pack.parts) - pack.parts[0].row for pack in packs]
    assert max(waits) < 500, "the order stays a shuffle"


def test_a_trimmed_tail_fills_what_lengths_cannot() -> None:
    frames = MIXES["4k + 1 frames"][1].tolist()
    items = [Item(r, 0, f, 0.0, 1, min(2, max(1, f // 10))) for r, f in enumerate(frames)]
    packs = packed(items, Limits(25, trim=2))
    assert fill(packs, 25) >= 0.99
    cut = sum(part.frames_cut for pack in packs for part in pack.parts)
    assert 0 < cut < 0.03 * sum(frames)


def test_lengths_that_never_fill_a_pack_do_not_stall() -> None:
    packs = packed(items_of([24] * 200), Limits(25))
    assert [len(pack.parts) for pack in packs] == [1] * 200
    assert sum(pack.flushed for pack in packs) == BUFFER_CLIPS - 1


def test_a_rare_kind_leaves_at_the_end_and_is_counted() -> None:
    items = [Item(row, int(row == 50), 5, 0.0) for row in range(201)]
    last = packed(items, Limits(25))[-1]
    assert [part.row for part in last.parts] == [50]
    assert last.flushed


def test_plans_are_pinned() -> None:
    """A change here breaks the resume of every run begun before it."""
    sizes = [number % 25 + 1 for number in range(500)]
    packs = packed(items_of(sizes, kinds=3, spare=1), Limits(64, cost=1200.0, enough=63, trim=1))
    told = repr([tuple(part) for pack in packs for part in pack.parts])
    assert hashlib.sha256(told.encode()).hexdigest()[:12] == "7907602c5d69"
