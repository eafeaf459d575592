"""Where wall time went: intervals from event logs, made up and of real killed processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalewright.cluster.goodput import as_json, lost_s, read_timeline, recoveries, shares
from scalewright.cluster.timeline import Timeline, timeline
from scalewright.errors import DataError
from scalewright.events import EVENTS_FILE, BrokenLine, Event, EventLog, Metrics, Notice

DAY_S = 1.7e9  # some day


def note(time_s: float, attempt: int, kind: str, **fields: object) -> Notice:
    return Notice(DAY_S + time_s, attempt, kind, fields)


def steps(
    time_s: float, attempt: int, step: int, step_s: float, wait_s: float = 0.0, slow_s: float = 0.0
) -> Metrics:
    values = {"perf/step_s": step_s, "data/wait_s": wait_s, "perf/straggler_s": slow_s}
    return Metrics(DAY_S + time_s, attempt, step, values)


# A run with a fault, told by workers and supervisor.
FAULT: list[Event] = [
    note(0, 1, "queued"),
    note(5, 1, "preflight"),
    note(15, 1, "launched"),
    note(25, 1, "attempt", start_step=0),
    note(30, 1, "first_step"),
    steps(50, 1, 20, 1.0),
    note(52, 1, "save", step=20, stall_s=2.0),
    steps(62, 1, 30, 1.0, wait_s=0.2, slow_s=0.1),
    note(80, 1, "detected", cause="node", machine="SN7", began_s=DAY_S + 68),
    note(90, 1, "attempt_failed", cause="node", machine="SN7", rank=3, reason="raylet died"),
    note(91, 2, "queued"),
    note(95, 2, "preflight"),
    note(100, 2, "launched"),
    note(112, 2, "attempt", start_step=20),
    note(117, 2, "first_step"),
    steps(136, 2, 40, 1.0),
    Metrics(DAY_S + 140, 2, 40, {"eval/loss_video": 1.0}),
    note(142, 2, "done", steps=40),
]


def seconds(line: Timeline) -> dict[str, float]:
    return {str(p): round(s, 3) for p, s in shares(line.intervals).parts_s.items() if s}


def test_every_second_of_a_run_with_a_fault_has_its_phase() -> None:
    line = timeline(FAULT)
    assert seconds(line) == {
        "queue": 5 + 1 + 4,
        "preflight": 10 + 5,
        "init": 10 + 12,
        "restore": 5 + 5,
        "step": 20 + 7 + 9.5,  # of the twenty steps of attempt 2 ten are new
        "data_wait": 2,
        "straggler": 1,
        "checkpoint": 2 + 2,
        "recompute": 6 + 9.5,  # lost before they were told of, and done again
        "detect": 12,
        "teardown": 10,
        "validation": 4,
    }
    numbers = shares(line.intervals)
    assert numbers.wall_s == pytest.approx(142)
    assert numbers.effective_time == pytest.approx((36.5 + 15.5 + 2 + 1) / 142)
    assert numbers.goodput == pytest.approx(36.5 / 142)
    assert numbers.availability == pytest.approx((55 + 10 + 4 + 4) / 142)
    assert numbers.goodput + sum(numbers.badput.values()) == pytest.approx(1)


def test_after_a_preflight_that_refused_nodes_the_run_waits_for_others() -> None:
    line = timeline(
        [
            note(0, 1, "queued"), note(5, 1, "preflight"),
            note(15, 1, "preflight", took_s=10.0, measured=["m1"], refused={"m1": "slow"}),
            note(40, 1, "preflight"), note(41, 1, "preflight", took_s=1.0),
            note(41, 1, "launched"), note(50, 1, "attempt", start_step=0),
        ],
        DAY_S + 50,
    )  # fmt: skip
    assert {phase: seconds(line)[phase] for phase in ("queue", "preflight", "init")} == {
        "queue": 30, "preflight": 11, "init": 9,
    }  # fmt: skip


def test_a_setback_tells_when_why_where_and_what_it_cost() -> None:
    line = timeline(FAULT)
    (setback,) = line.setbacks
    assert (setback.cause, setback.machine, setback.rank) == ("node", "SN7", 3)
    assert setback.reason == "raylet died"
    assert setback.began_s == DAY_S + 68
    assert setback.recovered_s == DAY_S + 117
    (lost,) = lost_s(line)
    assert {str(phase): round(s, 3) for phase, s in lost.items()} == {
        "detect": 12, "teardown": 10, "queue": 5, "preflight": 5, "init": 12, "restore": 5,
        "recompute": 9.5,
    }  # fmt: skip


# What a log holds without the supervisor's newer kinds: the same run, told more coarsely.
OLD = [e for e in FAULT if not isinstance(e, Notice) or e.kind in
       {"attempt", "save", "attempt_failed", "done"}]  # fmt: skip


def test_a_log_without_the_supervisors_lines_falls_to_coarser_phases() -> None:
    line = timeline(OLD)
    parts = seconds(line)
    assert parts["init"] == 112 - 90
    assert parts["detect"] == 90 - 62
    assert "unknown" not in parts
    # Without a line of the first step, what the steps did not take was the restore.
    assert parts["restore"] == pytest.approx(5 + 4)
    assert line.setbacks[0].recovered_s == pytest.approx(DAY_S + 117)


def test_the_first_wait_for_data_is_part_of_coming_back() -> None:
    told = seconds(timeline([*FAULT[:5], steps(50, 1, 20, 1.2, wait_s=0.2)]))
    assert (told["restore"], told["step"]) == (5, 20)
    assert "data_wait" not in told
    untold = seconds(timeline([*FAULT[:4], steps(50, 1, 20, 1.2, wait_s=0.2)]))
    assert (untold["restore"], untold["step"]) == (5, 20)


def test_a_save_without_its_stall_took_all_the_time_since_the_report() -> None:
    parts = seconds(timeline([*FAULT[:6], note(53, 1, "save", step=20)]))
    assert parts["checkpoint"] == 3


def test_a_save_told_late_stalled_right_after_the_report() -> None:
    line = timeline([*FAULT[:6], note(58, 1, "save", step=20, stall_s=2.0), steps(62, 1, 30, 1.0)])
    assert seconds(line)["checkpoint"] == 2
    assert seconds(line)["step"] == 30


def test_lines_of_an_attempt_that_was_replaced_are_left_out_and_counted() -> None:
    stale: list[Event] = [
        steps(120, 1, 900, 1.0), note(121, 1, "save", step=900), note(122, 1, "done")
    ]  # fmt: skip
    line = timeline([*FAULT[:15], *stale, *FAULT[15:]])
    assert line.stale_lines == 3
    assert seconds(line) == seconds(timeline(FAULT))
    assert line.last_step == 40


def test_without_a_supervisor_the_time_to_the_next_attempt_is_nobodys() -> None:
    line = timeline([*FAULT[:8], *(_later(event, 4 * 3600) for event in FAULT[10:])])
    assert seconds(line)["stopped"] == 4 * 3600 + 91 - 62
    (setback,) = line.setbacks
    assert setback.cause == "controller"


def test_a_back_off_waits_in_the_queue_but_a_night_waits_for_a_human() -> None:
    night = timeline([*FAULT[:10], *(_later(event, 8 * 3600) for event in FAULT[10:])])
    assert seconds(night)["stopped"] == 8 * 3600 + 1


def test_after_a_stop_it_waits_for_a_human() -> None:
    stop = note(95, 1, "stopped", reason="budget")
    line = timeline([*FAULT[:10], stop, *(_later(event, 600) for event in FAULT[10:])])
    assert seconds(line)["stopped"] == 691 - 95
    assert not timeline([*FAULT[:10], stop]).done


def test_a_pause_saves_loses_no_step_and_costs_its_way_back() -> None:
    pause = [*FAULT[:7], note(55, 1, "paused", reason="node SN7 leaves"), *FAULT[10:]]
    line = timeline(pause)
    assert seconds(line)["teardown"] == 3
    assert [(setback.cause, setback.reason) for setback in line.setbacks] == [
        ("paused", "node SN7 leaves")
    ]
    assert "recompute" not in seconds(line)


def test_now_counts_for_a_run_that_is_not_done() -> None:
    assert seconds(timeline(FAULT, DAY_S + 10_000)) == seconds(timeline(FAULT))
    assert seconds(timeline(FAULT[:11], DAY_S + 291))["queue"] == 5 + 1 + 200
    assert seconds(timeline(FAULT[:8], DAY_S + 72))["unknown"] == 10


def test_a_rewind_makes_steps_that_are_done_again() -> None:
    line = timeline([
        *FAULT[:6],
        note(53, 1, "rewind", to_step=10, reason="three skipped"),
        steps(75, 1, 30, 1.0),
    ])  # fmt: skip
    assert seconds(line)["recompute"] == 10
    assert seconds(line)["restore"] == 5 + 3 + 2
    assert [setback.cause for setback in line.setbacks] == ["divergence"]


def test_a_clock_set_back_by_an_hour_hides_no_training() -> None:
    back = [*FAULT[:7], *(_later(event, -3600) for event in FAULT[7:])]
    line = timeline(back)
    assert line.clock_steps > 0
    assert seconds(line)["step"] == pytest.approx(seconds(timeline(FAULT))["step"], abs=11)
    assert shares(line.intervals).wall_s == pytest.approx(142, abs=40)


def _later(event: Event, by_s: float) -> Event:
    if isinstance(event, Metrics):
        return Metrics(event.time_s + by_s, event.attempt, event.step, event.values)
    assert isinstance(event, Notice)
    fields = dict(event.fields)
    if "began_s" in fields:
        fields["began_s"] += by_s
    return Notice(event.time_s + by_s, event.attempt, event.kind, fields)


TIMES_S = st.floats(-5, 1e4)
NUMBERS = TIMES_S | st.sampled_from([math.inf, math.nan])
KINDS = (
    *("queued", "preflight", "launched", "attempt", "first_step", "save", "rewind", "detected"),
    *("attempt_failed", "paused", "stopped", "done", "skip"),
)
FIELDS = st.dictionaries(
    st.sampled_from(["start_step", "stall_s", "to_step", "began_s", "cause", "machine", "rank"]),
    NUMBERS | st.just("x") | st.none() | st.integers(0, 100),
)
EVENTS = st.lists(
    st.builds(note, TIMES_S, st.integers(0, 4), st.sampled_from(KINDS))
    | st.builds(
        lambda time_s, attempt, kind, fields: note(time_s, attempt, kind, **fields),
        TIMES_S, st.integers(0, 4), st.sampled_from(KINDS), FIELDS,
    )
    | st.builds(
        steps, TIMES_S, st.integers(0, 4), st.integers(0, 100),
        NUMBERS, NUMBERS, NUMBERS,
    )
    | st.just(BrokenLine(0, "torn"))
)  # fmt: skip


@given(EVENTS, st.none() | st.floats(DAY_S - 10, DAY_S + 2e4))
def test_whatever_the_log_the_parts_are_the_wall_time(
    events: list[Event], now_s: float | None
) -> None:
    line = timeline(events, now_s)
    if not line.intervals:
        return
    for before, after in pairwise(line.intervals):
        assert before.end_s == after.begin_s
    assert all(each.begin_s < each.end_s for each in line.intervals)
    lengths = sum(Fraction(each.end_s) - Fraction(each.begin_s) for each in line.intervals)
    assert lengths == Fraction(line.intervals[-1].end_s) - Fraction(line.intervals[0].begin_s)
    numbers = shares(line.intervals)
    assert numbers.wall_s == pytest.approx(float(lengths))
    assert 0 <= numbers.goodput <= numbers.effective_time <= numbers.availability <= 1 + 1e-12
    lost = sum(sum(each.values()) for each in lost_s(line))
    assert lost <= numbers.wall_s * (1 + 1e-12)
    json.dumps(as_json(line))


def test_of_recoveries_the_tail_is_told() -> None:
    line = timeline(FAULT)
    many = [line.setbacks[0]] * 18
    slow = [timeline([*FAULT[:10], *(_later(e, 500) for e in FAULT[10:])]).setbacks[0]] * 2
    told = recoveries([*many, *slow])
    assert told is not None
    assert (told.count, told.p50_s, told.p95_s, told.max_s) == (20, 49, 549, 549)
    assert recoveries([]) is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_timeline(tmp_path)
    EventLog(tmp_path / EVENTS_FILE, 1).event("queued")
    with pytest.raises(DataError, match="span no time"):
        read_timeline(tmp_path)


TRAIN = """
import sys
from pathlib import Path
import torch
from ranks import small, train_rank
torch.set_num_threads(1)
config = small("steps=4000", "log.every_steps=4", "checkpoint.every_steps=8",
    "log.validate_every_steps=16")
train_rank(0, config, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.chaos
@pytest.mark.slow
def test_a_real_run_that_was_killed_leaves_less_than_a_percent_unknown(
    tmp_path: Path, data_folder: Path
) -> None:
    """Training processes, killed in a step, under what a supervisor would tell of them."""
    for attempt in (1, 2):
        log = EventLog(tmp_path / EVENTS_FILE, attempt)
        log.event("queued")
        log.event("launched", workers=1)
        child = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path), str(data_folder), str(attempt)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            _until_step(tmp_path, attempt, 12 if attempt == 1 else 20)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        log.event("detected", cause="process", began_s=time.time())
        log.event("attempt_failed", cause="process", rank=0)
        log.close()
    line = read_timeline(tmp_path)
    numbers = shares(line.intervals)
    assert numbers.badput["unknown"] < 0.01
    assert line.attempts == 2
    parts = seconds(line)
    assert parts["step"] > 0
    assert parts["recompute"] > 0
    assert parts["init"] > 0
    assert parts["restore"] > 0
    assert parts["checkpoint"] > 0
    assert [setback.recovered_s is not None for setback in line.setbacks] == [True, False]


def _until_step(folder: Path, attempt: int, step: int) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        lines = (folder / EVENTS_FILE).read_text().splitlines()
        told = (json.loads(line) for line in lines if line.endswith("}"))
        if any(e["attempt"] == attempt and e.get("step", 0) >= step for e in told):
            return
        time.sleep(0.05)
    raise AssertionError(f"attempt {attempt} did not reach step {step}")
