"""Which checkpoints are kept: the newest, some of all ages, and one to go back to at any time."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scalewright.train.retention import Held, Policy, expendable, superseded

HOUR_S = 3600.0
# Kept by time: all of a test's in one stretch.
BY_STEPS = Policy(keep_every_s=1e9, keep_for_s=0.0)


@given(st.integers(1, 30), st.integers(2, 4), st.integers(0, 100), st.integers(5, 60))
def test_a_run_can_go_back_as_far_as_it_may_have_to(
    every: int, keep: int, horizon: int, saves: int
) -> None:
    there: list[int] = []
    policy = replace(BY_STEPS, keep=keep)
    for step in range(every, (saves + 1) * every, every):
        there.append(step)
        held = [Held(s, time_s=2e9 + s) for s in there]
        gone = superseded(held, policy, now_s=2e9 + step, horizon=step - horizon)
        there = [s for s in there if s not in {one.step for one in gone}]
        assert there[-keep:] == list(range(step, 0, -every))[: len(there[-keep:])][::-1]
        assert len(there) <= keep + 3
        # Until the next save the run may have to go back to any step of these.
        for target in range(max(every, step - horizon), step + every):
            assert min(there) <= target
            assert max(s for s in there if s <= target) >= target - 2 * horizon - 2 * every


@given(
    st.integers(2, 4),
    st.floats(0.5, 12.0),
    st.floats(0.0, 72.0),
    st.lists(st.floats(0.05, 20.0), min_size=1, max_size=120),
)
def test_silent_corruption_that_is_found_in_time_has_a_state_before_it(
    keep: int, every_h: float, for_h: float, gaps_h: list[float]
) -> None:
    policy = Policy(keep, every_h * HOUR_S, for_h * HOUR_S)
    there, now_s, begin_s = list[Held](), 1e9, 1e9
    for step, gap_h in enumerate(gaps_h, start=1):
        now_s += gap_h * HOUR_S
        there.append(Held(step, now_s))
        begin_s = min(begin_s, there[0].time_s)
        gone = superseded(there, policy, now_s=now_s)
        there = [one for one in there if one not in gone]
        assert len(there) <= keep + for_h / every_h + 3
        # For every age up to the limit there is one at least so old and not much older.
        for age_h in (0.0, for_h / 2, for_h):
            wanted_s = now_s - age_h * HOUR_S
            if wanted_s >= there[0].time_s and there[0].step > 1:
                older = max(one.time_s for one in there if one.time_s <= wanted_s)
                assert wanted_s - older <= (2 * every_h + max(gaps_h)) * HOUR_S
        assert there[0].step == 1 or there[0].time_s <= now_s - for_h * HOUR_S


@given(st.data())
def test_what_a_run_cannot_do_without_never_goes(data: st.DataObject) -> None:
    steps = sorted(data.draw(st.sets(st.integers(1, 400), min_size=1, max_size=20)))
    held = [Held(s, 1e9 + s, data.draw(st.booleans())) for s in steps]
    horizon, trusted = (data.draw(st.none() | st.integers(0, 400)) for _ in range(2))
    every = data.draw(st.none() | st.integers(1, 100))
    policy = Policy(data.draw(st.integers(2, 4)), 50.0, 100.0, every)
    gone = superseded(held, policy, now_s=1e9 + 500, horizon=horizon, trusted=trusted)
    full = expendable(held, policy, horizon=horizon, trusted=trusted)
    verified = [one for one in held if one.verified]
    for lost in (gone, full):
        left = [one for one in held if one not in lost]
        assert set(verified[-2:]) <= set(left)
        for limit in (horizon, trusted):
            if limit is not None and any(one.step <= limit for one in verified):
                newest = [one for one in verified if one.step <= limit][-1]
                assert newest in left
        if every is not None:
            for multiple in range(every, steps[-1] + 1, every):
                after = next(one for one in held if one.step >= multiple)
                assert after in left
    assert held[-policy.keep :] == [one for one in held if one not in gone][-policy.keep :]
    assert full == sorted(full, key=lambda one: one.step)
    again = [one for one in held if one not in gone]
    assert superseded(again, policy, now_s=1e9 + 500, horizon=horizon, trusted=trusted) == []
