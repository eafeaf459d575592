"""A slow rank is found by its own work; noise, mixed clips and slow peers accuse nobody."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.health.settings import HealthConfig
from scalewright.health.straggler import Action, Slow, StragglerMonitor, decide
from scalewright.heartbeat import Beat, Phase

CONFIG = HealthConfig()
FLOPS = 1e15
Slowness = Callable[[int, float], float]  # of a rank at a time in seconds: 1 is as fast as others


@dataclass(frozen=True)
class Noise:
    """What a step's own work is multiplied by: log-normal, and now and then a stall."""

    sigma: float = 0.0
    stall_share: float = 0.0
    stall: float = 10.0

    def draw(self, random: np.random.Generator, ranks: int) -> np.ndarray:
        stalled = random.random(ranks) < self.stall_share
        factors: np.ndarray = np.exp(random.normal(0, self.sigma, ranks))
        return np.where(stalled, self.stall, 1.0) * factors


def watch(
    ranks: int, minutes: float, slowness: Slowness, noise: Noise, seed: int = 0,
    step_s: float = 3.0, common: float = 0.2,
) -> list[tuple[float, Slow]]:  # fmt: skip
    """What is said of ranks over some time: when, and of whom.

    Steps hold clips of all sizes, small ones slower per FLOP. `common`: noise that all share.
    """
    random = np.random.default_rng(seed)
    monitor = StragglerMonitor(CONFIG)
    beats = [beat(rank) for rank in range(ranks)]
    said, now_s = [], 0.0
    while now_s < 60 * minutes:
        flops = FLOPS * random.lognormal(0, 0.7) * random.uniform(0.95, 1.05, ranks)
        own_s = step_s / 2 * flops / FLOPS * (flops / FLOPS) ** -0.1
        own_s *= np.exp(random.normal(0, common)) * noise.draw(random, ranks)
        own_s *= [slowness(rank, now_s) for rank in range(ranks)]
        now_s += 2 * own_s.max()
        beats = [
            replace(each, own_s=each.own_s + own_s[r], own_flops=each.own_flops + flops[r])
            for r, each in enumerate(beats)
        ]
        said += [(now_s, slow) for slow in monitor.look(beats, now_s)]
    return said


def beat(rank: int) -> Beat:
    return Beat(
        rank=rank, attempt=1, pid=100 + rank, thread_id=1, phase=Phase.STEP, step=0, moves=0,
        done=0, loop_at=0.0, phase_began=0.0, flops=0.0, last_s=0.0, last_flops=0.0, own_s=0.0,
        own_flops=0.0, thread_at=0.0, read_at=0.0, process=None,
    )  # fmt: skip


def after(begin_s: float, slow_rank: int, factor: float) -> Slowness:
    return lambda rank, now_s: factor if rank == slow_rank and now_s >= begin_s else 1.0


def healthy(rank: int, now_s: float) -> float:
    return 1.0


@settings(max_examples=15, deadline=None)
@given(
    ranks=st.integers(2, 12),
    sigma=st.floats(0, 0.6),
    stall_share=st.floats(0, 0.08),
    stall=st.floats(2, 40),
    step_s=st.floats(0.5, 10),
    seed=st.integers(0, 2**32),
)
def test_noise_accuses_nobody(
    ranks: int, sigma: float, stall_share: float, stall: float, step_s: float, seed: int
) -> None:
    noise = Noise(sigma, stall_share, stall)
    assert watch(ranks, 40, healthy, noise, seed, step_s) == []


@settings(max_examples=10, deadline=None)
@given(
    ranks=st.integers(3, 12), rank=st.integers(0, 2), factor=st.floats(1.2, 4.0),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_the_slow_rank_alone_is_named_within_ten_windows(
    ranks: int, rank: int, factor: float, seed: int
) -> None:
    said = watch(ranks, 22, after(600, rank, factor), Noise(0.05, 0.01), seed, step_s=1.0)
    assert said
    assert {slow.rank for _, slow in said} == {rank}
    assert all(when_s >= 600 + 3 * 60 - 60 for when_s, _ in said)
    when_s, _ = said[0]
    assert when_s <= 600 + 10 * 60
    assert said[-1][1].speed == pytest.approx(1 / factor, rel=0.25)


def test_one_that_is_slow_from_the_beginning_is_named_among_three() -> None:
    said = watch(3, 12, after(0, 1, 1.5), Noise(0.03))
    assert {slow.rank for _, slow in said} == {1}


def test_a_short_dip_is_no_slowness() -> None:
    def dip(rank: int, now_s: float) -> float:
        return 3.0 if rank == 0 and 600 <= now_s < 700 else 1.0

    assert watch(4, 20, dip, Noise(0.03)) == []


def test_all_slow_together_accuses_nobody() -> None:
    def throttled(rank: int, now_s: float) -> float:
        return 2.0 if now_s >= 600 else 1.0

    assert watch(4, 25, throttled, Noise(0.03)) == []
    assert watch(2, 25, throttled, Noise(0.03)) == []


def test_of_two_the_one_that_became_slower_than_it_was_is_named() -> None:
    said = watch(2, 25, after(600, 1, 1.5), Noise(0.02), common=0.02)
    assert {(slow.rank, slow.alone) for _, slow in said} == {(1, True)}
    # One that was never any faster is not: of two, neither is the measure of the other.
    assert watch(2, 25, after(0, 1, 1.5), Noise(0.02), common=0.02) == []


def test_a_new_process_begins_anew() -> None:
    monitor = StragglerMonitor(CONFIG)
    beats = [replace(beat(rank), own_s=1e9, own_flops=FLOPS) for rank in range(3)]
    monitor.look(beats, 0.0)
    restarted = [replace(each, pid=each.pid + 50, own_s=0.0, own_flops=0.0) for each in beats]
    assert monitor.look(restarted, 61.0) == ()


@pytest.mark.parametrize(
    ("speeds", "spare", "measured", "expected"),
    [
        ((0.85, 0.84, 0.86), True, 0.85, Action.SWAP_AT_CHECKPOINT),
        ((0.85, 0.84, 0.86), False, 0.85, Action.TELL),
        ((0.85, 0.84, 0.86), True, 0.99, Action.TELL),
        ((0.6, 0.6, 0.6), True, 0.6, Action.SWAP_NOW),
        ((0.6, 0.6, 0.6), True, 1.0, Action.TELL),
        ((0.6, 0.6, 0.6), True, None, Action.TELL),
        ((0.89, 0.85, 0.81), True, 0.8, Action.SWAP_NOW),
        ((0.81, 0.81, 0.80), True, 0.8, Action.SWAP_AT_CHECKPOINT),
    ],
)
def test_what_is_done_about_it(
    speeds: tuple[float, ...], spare: bool, measured: float | None, expected: Action
) -> None:
    slow = Slow(3, speeds, since_s=0.0, alone=False)
    assert decide(slow, CONFIG, spare=spare, measured=measured) is expected
