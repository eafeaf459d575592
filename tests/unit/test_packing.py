"""Packs: every clip once an epoch, never over the limit, the same whoever asks."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.data.order import PackOrder
from scalewright.data.packing import WINDOW, plan_epoch
from scalewright.data.sample import Entry
from scalewright.data.settings import DataConfig, legal_worlds
from scalewright.errors import ConfigError, DataError
from scalewright.model.shape import ClipTokens

clip_tokens = st.builds(ClipTokens, visual=st.integers(1, 40), text=st.integers(1, 8))
clip_lists = st.lists(clip_tokens, min_size=1, max_size=200)
seeds = st.integers(0, 2**63)
epochs = st.integers(0, 1000)
limits = st.integers(48, 200)


def size(clip: ClipTokens) -> int:
    return clip.visual + clip.text


def entry(number: int) -> Entry:
    return Entry(
        id=number + 1,
        shard="000000.tar",
        offset=512,
        bytes=1,
        crc32c=0,
        latent_frames=3,
        height=8,
        width=12,
        text_tokens=1,
    )


def order_of(clips: list[ClipTokens], config: DataConfig, seed: int = 0) -> PackOrder:
    return PackOrder([entry(number) for number in range(len(clips))], clips, config, seed)


def mixture(frames: np.ndarray, seed: int = 0) -> list[ClipTokens]:
    """Clips of `frames` latent frames of 16 tokens, with 1 to 20 tokens of text."""
    text = np.random.default_rng(seed).integers(1, 21, len(frames))
    return [ClipTokens(16 * int(f), int(t)) for f, t in zip(frames, text, strict=True)]


@given(clip_lists, limits, seeds, epochs)
def test_each_clip_is_in_exactly_one_pack(
    clips: list[ClipTokens], limit: int, seed: int, epoch: int
) -> None:
    packs = plan_epoch(clips, limit, seed, epoch)
    assert sorted(index for pack in packs for index in pack) == list(range(len(clips)))


@given(clip_lists, limits, seeds, epochs)
def test_no_pack_is_empty_or_over_the_limit(
    clips: list[ClipTokens], limit: int, seed: int, epoch: int
) -> None:
    for pack in plan_epoch(clips, limit, seed, epoch):
        assert 0 < sum(size(clips[index]) for index in pack) <= limit


@given(clip_lists, limits, seeds, epochs)
def test_a_plan_depends_on_its_arguments_alone(
    clips: list[ClipTokens], limit: int, seed: int, epoch: int
) -> None:
    assert plan_epoch(clips, limit, seed, epoch) == plan_epoch(list(clips), limit, seed, epoch)


@given(clip_lists, limits, seeds, epochs)
def test_the_order_stays_a_shuffle(
    clips: list[ClipTokens], limit: int, seed: int, epoch: int
) -> None:
    # Clips that fill a pack alone come in the order of the shuffle, which no size can change.
    alone = plan_epoch([ClipTokens(limit, 0)] * len(clips), limit, seed, epoch)
    arrival = {index: place for place, (index,) in enumerate(alone)}
    waiting = set(arrival)
    for pack in plan_epoch(clips, limit, seed, epoch):
        assert pack[0] == min(waiting, key=arrival.__getitem__)
        for index in pack:
            assert arrival[index] < len(clips) - len(waiting) + WINDOW
            waiting.remove(index)


@given(clip_lists, limits, seeds, epochs)
def test_a_pack_is_closed_only_when_nothing_in_the_window_fits(
    clips: list[ClipTokens], limit: int, seed: int, epoch: int
) -> None:
    packs = plan_epoch(clips[:WINDOW], limit, seed, epoch)
    for number, pack in enumerate(packs):
        room = limit - sum(size(clips[index]) for index in pack)
        assert all(size(clips[index]) > room for later in packs[number + 1 :] for index in later)


def test_epochs_and_seeds_shuffle_differently() -> None:
    clips = mixture(np.full(500, 4))
    plans = [plan_epoch(clips, 2048, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert plans[0] != plans[1] != plans[2] != plans[0]


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_the_shuffle_has_nothing_to_do_with_numbers_drawn_from_the_same_seed(seed: int) -> None:
    frames = np.where(np.random.default_rng(seed).random(4000) < 0.4, 1, 12)
    packs = plan_epoch(mixture(frames), 25 * 16 + 20, seed, epoch=0)
    early = [frames[index] for pack in packs[: len(packs) // 4] for index in pack]
    assert np.mean(early) == pytest.approx(frames.mean(), rel=0.1)


def test_plans_are_pinned() -> None:
    """A change here breaks the resume of every run begun before it."""
    packs = plan_epoch([ClipTokens(4, 1)] * 8, 10, seed=3, epoch=2)
    assert packs == [(3, 7), (5, 0), (6, 2), (4, 1)]
    clips = [ClipTokens(number % 25 + 1, number % 3 + 1) for number in range(500)]
    many = plan_epoch(clips, 64, seed=3, epoch=2)
    assert hashlib.sha256(repr(many).encode()).hexdigest()[:12] == "985af38e80ac"


@pytest.mark.parametrize(
    ("name", "least"), [("pictures", 0.985), ("videos", 0.965), ("four_k_plus_one", 0.89)]
)
def test_packs_are_nearly_full(name: str, least: float) -> None:
    random = np.random.default_rng(0)
    videos = random.integers(2, 26, 10_000)
    frames = {
        "pictures": np.where(random.random(10_000) < 0.4, 1, videos),
        "videos": videos,
        "four_k_plus_one": random.choice([5, 9, 13, 17, 21, 25], 10_000),
    }[name]
    order = order_of(mixture(frames), DataConfig(pack_tokens=25 * 16 + 20))
    assert least <= order.fill() <= 1


def test_fill_is_the_share_of_the_limit_that_is_used() -> None:
    order = order_of([ClipTokens(50, 10)] * 3, DataConfig(pack_tokens=100))
    assert order.fill() == pytest.approx(0.6)


@settings(max_examples=50, deadline=None)
@given(clip_lists, limits, st.integers(1, 9), seeds)
def test_steps_are_the_epochs_laid_end_to_end(
    clips: list[ClipTokens], limit: int, packs_per_step: int, seed: int
) -> None:
    config = DataConfig(pack_tokens=limit, packs_per_step=packs_per_step)
    planned = [pack for epoch in range(3) for pack in plan_epoch(clips, limit, seed, epoch)]
    order = order_of(clips, config, seed)
    steps = len(planned) // packs_per_step
    for step in reversed(range(steps)):
        begin = step * packs_per_step
        expected = planned[begin : begin + packs_per_step]
        assert [tuple(e.id - 1 for e in pack) for pack in order.packs(step)] == expected
        assert order.tokens(step) == [clips[index] for pack in expected for index in pack]


def test_random_access_and_order_of_asking_change_nothing() -> None:
    clips = mixture(np.random.default_rng(1).integers(1, 26, 300))
    config = DataConfig(pack_tokens=420, packs_per_step=4)
    forward, backward = order_of(clips, config), order_of(clips, config)
    there = [forward.packs(step) for step in range(200)]
    back = [backward.packs(step) for step in reversed(range(200))]
    assert there == back[::-1]


def test_each_epoch_holds_each_clip_once_over_step_borders() -> None:
    clips = mixture(np.random.default_rng(2).integers(1, 26, 101))
    order = order_of(clips, DataConfig(pack_tokens=420, packs_per_step=4))
    seen: Counter[int] = Counter()
    step = 0
    while order.epoch_of(step) < 5:
        seen.update(entry.id for pack in order.packs(step) for entry in pack)
        step += 1
    assert set(seen) == set(range(1, 102))
    assert set(seen.values()) <= {5, 6}


def test_epoch_of_grows_evenly() -> None:
    order = order_of([ClipTokens(50, 10)] * 6, DataConfig(pack_tokens=60, packs_per_step=4))
    assert [order.epoch_of(step) for step in range(4)] == pytest.approx([0, 4 / 6, 8 / 6, 2])


def test_a_clip_over_the_limit_is_named_with_the_way_out() -> None:
    clips = [ClipTokens(100, 5), ClipTokens(3000, 20), ClipTokens(2100, 1)]
    with pytest.raises(ConfigError) as caught:
        order_of(clips, DataConfig(pack_tokens=2048))
    for part in ("clip 2 ", "3 x 8 x 12", "3020", "data.pack_tokens = 2048", "at least 3020"):
        assert part in str(caught.value)
    order_of(clips, DataConfig(pack_tokens=3020))


def test_no_clip_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.path = data/shapes.*prepare"):
        order_of([], DataConfig())


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed = -1"):
        order_of([ClipTokens(1, 1)], DataConfig(), seed=-1)


@pytest.mark.parametrize(
    ("name", "value"), [("pack_tokens", 0), ("packs_per_step", -2), ("path", "")]
)
def test_impossible_configs_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}"):
        replace(DataConfig(), **{name: value})


def test_legal_worlds_are_the_divisors() -> None:
    assert legal_worlds(12) == [1, 2, 3, 4, 6, 12]
    assert legal_worlds(1) == [1]
