"""The order: the same steps for everyone who asks, every clip once an epoch, equal shares."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.data.measure import Weights
from scalewright.data.order import LeftOut, Mark, PackOrder, deal
from scalewright.data.packing import BUFFER_CLIPS
from scalewright.data.sample import Entry
from scalewright.data.settings import DataConfig, legal_worlds
from scalewright.errors import ConfigError, DataError

seeds = st.integers(0, 2**63)
frame_lists = st.lists(st.integers(1, 12), min_size=1, max_size=120)


def clips_of(frames: Sequence[int], collections: Sequence[str] = ("a",)) -> Clips:
    """Clips of 2 x 2 or 2 x 4 latents and one token of text, of the collections in turn."""
    return Clips.of(
        Entry(
            number, "000000.tar", 0, 1 << 20, 0, T, 2, 2 + 2 * (number % 2), 1,
            collections[number % len(collections)],
        )
        for number, T in enumerate(frames, start=1)
    )  # fmt: skip


def weigh(clips: Clips) -> Weights:
    """A token a frame whatever its size, and the square of the tokens as cost."""
    visual, text = clips.latent_frames.astype(np.int64), clips.text_tokens.astype(np.int64)
    return Weights(visual, text, (visual + text).astype(np.float64) ** 2)


def weigh_480p(clips: Clips) -> Weights:
    """The same tokens, with the work of 480p frames in a model of width 3,072."""
    tokens, d = 1590.0 * clips.latent_frames, 3072
    return replace(weigh(clips), flops=24 * d * d * tokens + 4 * d * tokens**2)


def order_of(clips: Clips, seed: int = 0, **config: object) -> PackOrder:
    settings = DataConfig(**{"pack_tokens": 26, "packs_per_step": 4, **config})  # type: ignore[arg-type]
    return PackOrder(clips, np.arange(len(clips)), weigh, settings, seed)


def ids(order: PackOrder, step: int) -> list[list[int]]:
    return [[planned.entry.id for planned in pack] for pack in order.packs(step)]


def seen(order: PackOrder, steps: range) -> Counter[int]:
    return Counter(id for step in steps for pack in ids(order, step) for id in pack)


def mixed(count: int, seed: int = 0) -> NDArray[np.int64]:
    random = np.random.default_rng(seed)
    return np.where(random.random(count) < 0.4, 1, random.integers(2, 26, count))


@settings(max_examples=40, deadline=None)
@given(frame_lists, st.integers(1, 9), st.integers(1, 8), seeds)
def test_every_clip_is_seen_once_an_epoch(
    frames: list[int], packs_per_step: int, balance_steps: int, seed: int
) -> None:
    order = order_of(
        clips_of(frames), seed, packs_per_step=packs_per_step, balance_steps=balance_steps
    )
    window = balance_steps * packs_per_step
    # Whole windows: packs are exchanged within them. `epochs` of them hold as many epochs' packs.
    packs_per_epoch = [len(order._block(epoch).all()) for epoch in range(window)]
    total = sum(packs_per_epoch)
    windows = total // window
    counts = seen(order, range(windows * balance_steps))
    assert set(counts) <= set(range(1, len(frames) + 1))
    left = total - windows * window  # packs of the last epochs that are not looked at
    assert all(window - left - 1 <= counts[n + 1] <= window for n in range(len(frames)))


@settings(max_examples=25, deadline=None)
@given(frame_lists, st.sampled_from([4, 6, 12]), seeds, st.integers(0, 30))
def test_ranks_share_a_step_out_whatever_their_number(
    frames: list[int], packs_per_step: int, seed: int, step: int
) -> None:
    order = order_of(clips_of(frames), seed, packs_per_step=packs_per_step)
    whole = sorted(ids(order, step))
    for world in legal_worlds(packs_per_step):
        shares = [order.share(step, rank, world) for rank in range(world)]
        assert {len(share) for share in shares} == {packs_per_step // world}
        assert whole == sorted([p.entry.id for p in pack] for share in shares for pack in share)


def test_asking_backwards_or_from_a_mark_gives_the_same_steps() -> None:
    clips = clips_of(mixed(900))
    small = {"shuffle_clips": 64}
    forward = order_of(clips, **small)
    there = [ids(forward, step) for step in range(120)]
    backward = order_of(clips, **small)
    assert [ids(backward, step) for step in reversed(range(120))] == there[::-1]
    marks = [forward.mark(step) for step in range(120)]
    assert len(set(marks)) > 5
    assert any(mark.packs for mark in marks)
    for step in range(0, 120, 7):
        resumed = order_of(clips, **small)
        resumed.plan_from(marks[step])
        assert ids(resumed, step) == there[step]
        planned = sum(len(block.packs) for block in resumed._blocks.values())
        assert planned <= 2 * 8 * 4, "planned from the mark, not from the beginning"
    before = order_of(clips, **small)
    before.plan_from(marks[119])
    assert ids(before, 3) == there[3], "a step before the mark is found as well"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=90), st.integers(1, 4), st.integers(0, 2),
    st.booleans(), seeds, st.integers(0, 25),
)  # fmt: skip
def test_a_mark_holds_what_later_steps_need(
    frames: list[int], packs_per_step: int, trim: int, costs: bool, seed: int, step: int
) -> None:
    """Also where a mixture brings a clip several times in a block."""
    config = {
        "packs_per_step": packs_per_step, "balance_steps": 2, "shuffle_clips": 150,
        "mixture": {"a": 1.0, "b": 5.0}, "trim_frames": trim,
        "pack_flops": 300.0 if costs else None,
    }  # fmt: skip
    clips = clips_of(frames, collections=["a", "b"])
    order, resumed = order_of(clips, seed, **config), order_of(clips, seed, **config)
    resumed.plan_from(Mark(**json.loads(json.dumps(asdict(order.mark(step))))))
    for later in range(step, step + 12):
        assert resumed.packs(later) == order.packs(later)
        assert resumed.costs(later) == order.costs(later)
        assert resumed.mark(later) == order.mark(later)
        assert resumed.epoch_of(later) == order.epoch_of(later)


def test_a_mark_is_small_however_large_a_block_is() -> None:
    order = order_of(clips_of(mixed(20_000)), balance_steps=1)
    marks = [order.mark(step) for step in (1, 300, 900)]
    assert {mark.block for mark in marks} == {0}
    assert all(0 < len(mark.waiting) < 2 * BUFFER_CLIPS for mark in marks)
    assert all(len(json.dumps(asdict(mark))) < 2048 for mark in marks)


def test_another_seed_and_another_epoch_are_other_orders() -> None:
    clips = clips_of(mixed(300))
    orders = [order_of(clips, seed) for seed in (0, 1)]
    assert ids(orders[0], 0) != ids(orders[1], 0)
    per_epoch = len(orders[0]._block(0).all())
    first, second = (
        [part.row for pack in orders[0]._block(epoch).all() for part in pack.parts]
        for epoch in (0, 1)
    )
    assert per_epoch > 50
    assert first != second
    assert sorted(first) == sorted(second)


def test_plans_are_pinned() -> None:
    """A change here breaks the resume of every run begun before it."""
    order = order_of(clips_of(mixed(500)), seed=3, shuffle_clips=128)
    told = repr([ids(order, step) for step in range(60)])
    assert hashlib.sha256(told.encode()).hexdigest()[:12] == "10621d3669b5"


@pytest.mark.parametrize("buffers", ["aspect", "one"])
def test_packs_hold_one_aspect_ratio_unless_all_may_mix(buffers: str) -> None:
    order = order_of(clips_of(mixed(500)), buffers=buffers)
    kinds = [
        {planned.entry.width for planned in pack}
        for step in range(40)
        for pack in order.packs(step)
    ]
    assert any(len(kind) > 1 for kind in kinds) == (buffers == "one")


def test_the_slowest_of_eight_ranks_is_hardly_slower_than_the_mean() -> None:
    def slowest(**config: object) -> float:
        settings = DataConfig(pack_tokens=26, packs_per_step=8, **config)  # type: ignore[arg-type]
        order = PackOrder(clips_of(mixed(20_000)), np.arange(20_000), weigh_480p, settings, 0)
        costs = [order.costs(step) for step in range(300)]
        return float(np.mean([max(step) / np.mean(step) for step in costs]))

    assert slowest() < 1.06
    assert slowest(balance_steps=1) > 1.15


@given(st.lists(st.floats(0.1, 10), min_size=12, max_size=12), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_hands_are_equally_large_and_hold_every_pack(costs: list[float], world: int) -> None:
    hands = deal(costs, world)
    assert {len(hand) for hand in hands} == {12 // world}
    assert sorted(place for hand in hands for place in hand) == list(range(12))


def test_hands_are_dealt_by_cost() -> None:
    hands = deal([9, 1, 1, 1, 8, 2, 2, 2], 2)
    sums = [sum([9, 1, 1, 1, 8, 2, 2, 2][place] for place in hand) for hand in hands]
    assert max(sums) - min(sums) <= 2


# Limits


def test_a_pack_closes_on_tokens_and_on_cost() -> None:
    clips = clips_of(mixed(2000))
    by_tokens = order_of(clips, pack_tokens=52)
    by_both = order_of(clips, pack_tokens=52, pack_flops=26.0**2)
    tokens = [
        [
            sum(p.entry.latent_frames + 1 for p in pack)
            for step in range(40)
            for pack in o.packs(step)
        ]
        for o in (by_tokens, by_both)
    ]
    assert max(tokens[0]) <= 52
    assert max(tokens[1]) <= 52
    costs = [cost for step in range(40) for cost in by_both.costs(step)]
    assert max(costs) <= 26.0**2
    assert max(cost for step in range(40) for cost in by_tokens.costs(step)) > 26.0**2
    assert np.mean(costs) > 0.9 * 26.0**2 or np.mean(tokens[1]) > 0.9 * 52


def test_packs_of_25_frames_are_the_rule_of_kandinsky() -> None:
    order = order_of(clips_of(mixed(4000)), pack_tokens=40, pack_frames=25)
    packs = [pack for step in range(60) for pack in order.packs(step)]
    frames = [sum(planned.entry.latent_frames for planned in pack) for pack in packs]
    assert max(frames) == 25
    assert np.mean(frames) / 25 > 0.98
    assert order.fill() > 0.95


def test_a_cut_tail_is_told_and_counted() -> None:
    frames = np.random.default_rng(0).choice([5, 9, 13, 17, 21, 25], 2000)
    order = order_of(clips_of(frames), pack_tokens=40, pack_frames=25, trim_frames=2)
    packs = [(step, pack) for step in range(60) for pack in order.packs(step)]
    cuts = [planned.frames_cut for _, pack in packs for planned in pack]
    assert set(cuts) == {0, 1}, "no pack of these lengths lacks more"
    for step in range(60):
        told = sum(clip.visual for clip in order.tokens(step))
        held = sum(p.entry.latent_frames - p.frames_cut for pack in order.packs(step) for p in pack)
        assert told == held


def test_fill_is_the_share_of_the_limit_that_is_used() -> None:
    order = order_of(clips_of([9, 9, 9]), pack_tokens=20, buffers="one")
    assert order.fill() == pytest.approx(30 / 40)
    assert order.flushed() == 1


def test_epochs_are_counted() -> None:
    order = order_of(clips_of([19] * 6), pack_tokens=20, packs_per_step=4)
    assert [order.epoch_of(step) for step in range(4)] == pytest.approx([0, 4 / 6, 8 / 6, 2])


# Mixtures


def test_collections_come_by_their_weights_and_in_rounds_of_their_own() -> None:
    clips = clips_of([1] * 600, collections=["a", "b", "c"])
    order = order_of(clips, mixture={"a": 6.0, "b": 2.0}, shuffle_clips=100, pack_tokens=26)
    counts = seen(order, range(60))
    by_collection = {
        name: [counts[id] for id in range(1, 601) if id % 3 == place]
        for place, name in enumerate("abc")
    }
    totals = {name: sum(of) for name, of in by_collection.items()}
    assert totals["c"] == 0
    assert totals["a"] / totals["b"] == pytest.approx(3, rel=0.05)
    for name in "ab":
        # A round may begin within a block, whose clips are shuffled.
        assert max(by_collection[name]) - min(by_collection[name]) <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.floats(0.01, 100), st.integers(10, 50), seeds)
def test_a_mixture_is_the_same_from_anywhere(
    count: int, weight: float, block: int, seed: int
) -> None:
    clips = clips_of([2] * (2 * count), collections=["a", "b"])
    config = {"mixture": {"a": 1.0, "b": weight}, "shuffle_clips": block}
    forward, other = order_of(clips, seed, **config), order_of(clips, seed, **config)
    there = [ids(forward, step) for step in range(6)]
    assert [ids(other, step) for step in (5, 0, 3)] == [there[5], there[0], there[3]]


def test_unknown_collections_and_weights_are_refused() -> None:
    clips = clips_of([1] * 6, collections=["a", "b"])
    with pytest.raises(ConfigError, match=r"names 'x', of which no clip.*there are: a, b"):
        order_of(clips, mixture={"a": 1.0, "x": 1.0})
    with pytest.raises(ConfigError, match=r"data\.mixture = {'b': 0\.0}; weights are positive"):
        order_of(clips, mixture={"a": 1.0, "b": 0.0})


# Left out


def test_left_out_steps_are_passed_over() -> None:
    order = order_of(clips_of(mixed(300)))
    without = order.without([LeftOut(3, 2), LeftOut(7, 1)])
    assert [ids(without, step) for step in range(6)] == [
        ids(order, step) for step in (0, 1, 2, 5, 6, 8)
    ]


# Bad input


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"pack_tokens": 12}, r"clip 2 .* has 21 tokens, over data\.pack_tokens = 12; .* least 21"),
        ({"pack_frames": 9, "pack_tokens": 30}, r"has 20 latent frames, over data\.pack_frames"),
        ({"pack_flops": 400.0}, r"has 441 FLOPs, over data\.pack_flops = 400"),
        ({"pack_frames": 27}, r"27 latent frames of 1 tokens are over data\.pack_tokens = 26"),
    ],
)
def test_a_clip_that_no_pack_holds_is_named_with_the_way_out(
    config: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        order_of(clips_of([3, 20, 7]), **config)


def test_no_clip_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.path = data/shapes.*prepare"):
        order_of(clips_of([]))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed = -1"):
        order_of(clips_of([1]), seed=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pack_tokens", 0), ("packs_per_step", -2), ("path", ""), ("balance_steps", 0),
     ("shuffle_clips", 0), ("pack_frames", 0), ("pack_flops", -1.0), ("trim_frames", -1)],
)  # fmt: skip
def test_impossible_configs_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}"):
        replace(DataConfig(), **{name: value})  # type: ignore[arg-type]


def test_legal_worlds_are_the_divisors() -> None:
    assert legal_worlds(12) == [1, 2, 3, 4, 6, 12]
    assert legal_worlds(1) == [1]
