"""When a run saves: Young's interval, pauses after failures, and when to stop."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.train.interval import LONGEST_PAUSE_S, Saves, mtbf_s, pause_s, young_s

SECONDS = st.floats(0.01, 1e6)


@given(SECONDS, SECONDS, st.floats(0.2, 5.0))
def test_no_other_interval_loses_less(stall_s: float, mtbf: float, factor: float) -> None:
    def lost(interval_s: float) -> float:  # share of time: saves, and half an interval a fault
        return stall_s / interval_s + interval_s / (2 * mtbf)

    best = young_s(stall_s, mtbf)
    assert lost(best) <= lost(factor * best) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("nodes", "stall_s", "minutes"), [(64, 5.0, 30), (16, 5.0, 60), (64, 0.5, 9)]
)
def test_the_intervals_of_known_sizes(nodes: int, stall_s: float, minutes: float) -> None:
    assert young_s(stall_s, mtbf_s(nodes, 4.2)) / 60 == pytest.approx(minutes, rel=0.06)


def test_pauses_grow_to_a_limit() -> None:
    pauses = [pause_s(missed) for missed in range(40)]
    assert pauses[:5] == [0, 0, 10, 20, 40]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pause_s(10**6) == LONGEST_PAUSE_S


def test_the_interval_is_of_the_stalls_measured_but_the_first() -> None:
    saves = Saves(begun_s=0.0, kept_s=0.0)
    assert saves.interval_s(300, 1e5) == 300
    assert saves.begun(0.0, 60.0).interval_s(300, 1e5) == 300
    for _ in range(3):
        saves = saves.begun(0.0, 60.0 if not saves.stalls_s else 2.0)
    assert saves.interval_s(300, 1e5) == pytest.approx(math.sqrt(4e5))
    assert saves.interval_s(3600, 1e5) == 3600


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 900.0)), max_size=30))
def test_a_run_stops_only_after_failures_and_too_long_without_a_save(
    tries: list[tuple[bool, float]],
) -> None:
    saves, now_s = Saves(begun_s=0.0, kept_s=0.0), 0.0
    for number, (works, wait_s) in enumerate(tries):
        now_s += wait_s
        before = now_s
        saves = saves.kept(number, before) if works else saves.lost_one(now_s)
        failures = [works for works, _ in tries[: number + 1]][::-1]
        in_a_row = failures.index(True) if True in failures else len(failures)
        assert saves.missed == in_a_row
        assert saves.alarm is (in_a_row >= 2)
        assert saves.too_long(now_s, 1800) is (in_a_row >= 2 and now_s - saves.kept_s >= 1800)
        assert saves.due(now_s + 301, 1e9) is (in_a_row > 0)  # made up for before the interval


def test_a_missed_save_is_tried_at_once_and_then_after_pauses() -> None:
    saves = Saves(begun_s=0.0, kept_s=0.0).lost_one(100.0)
    assert saves.may_try(100.0)
    saves = saves.lost_one(100.0)
    assert not saves.may_try(109.0)
    assert saves.may_try(110.0)
    assert saves.kept(1, 120.0).may_try(120.0)
