"""What the history of XIDs means, without a GPU."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.health.finding import Remedy, Verdict
from scalewright.health.xid import (
    DAY_S,
    XidClass,
    XidEvent,
    assess,
    blames_workload,
    bursts,
    xid_class,
    xid_of_line,
)

NOW_S = 1e9


def events(*seen: tuple[float, str, int]) -> tuple[XidEvent, ...]:
    """(minutes ago, GPU, XID)."""
    return tuple(XidEvent(NOW_S - 60 * minutes, gpu, xid) for minutes, gpu, xid in seen)


def asked(gpu: str, history: tuple[XidEvent, ...], action: int | None = None) -> object:
    found = assess(gpu, history, NOW_S - DAY_S, NOW_S, action)
    return found and (found.verdict, found.remedy)


APP = (Verdict.WARN, Remedy.RESTART_APP)
INSPECT = (Verdict.WARN, Remedy.INSPECT)
RESET = (Verdict.FAIL, Remedy.RESET_GPU)


@pytest.mark.parametrize("xid", [13, 31])
def test_an_error_of_programs_is_the_gpus_if_it_repeats_there_alone(xid: int) -> None:
    assert asked("a", events((1, "a", xid))) == APP
    assert asked("a", events((1.5, "a", xid), (1, "a", xid))) == APP  # one burst
    assert asked("a", events((60, "a", xid), (1, "a", xid))) == INSPECT
    # On several GPUs it is the workload's, however often.
    several = events((60, "a", xid), (5, "b", xid), (1, "a", xid))
    assert asked("a", several) == APP
    assert blames_workload(several, NOW_S)
    assert asked("a", events((60, "b", 44 - xid), (30, "a", xid), (1, "a", xid))) == INSPECT
    assert not blames_workload(events((60, "a", xid), (1, "a", xid)), NOW_S)


def test_other_errors_of_programs_do_not_become_the_gpus() -> None:
    assert asked("a", events((60, "a", 94), (1, "a", 94))) == APP


def test_a_fatal_one_five_times_a_day_is_for_a_person() -> None:
    four = tuple((60.0 * i + 5, "a", 95) for i in range(4))
    assert asked("a", events(*four)) == RESET
    assert asked("a", events(*four, (1300, "a", 95))) == (Verdict.FAIL, Remedy.INSPECT)
    assert asked("a", events(*four, (1500, "a", 95))) == RESET  # that was yesterday
    assert asked("a", events(*four, (1300, "b", 95))) == RESET
    burst = tuple((10 + i / 10, "a", 95) for i in range(20))
    assert asked("a", events(*burst)) == RESET


def test_history_counts_but_is_not_told_again() -> None:
    old = events((60, "a", 79))
    assert assess("a", old, NOW_S - 600, NOW_S, None) is None
    again = old + events((1, "a", 31), (120, "a", 31))
    found = assess("a", again, NOW_S - 600, NOW_S, None)
    assert found is not None
    assert (found.remedy, found.xids) == (Remedy.INSPECT, (31,))


def test_the_worst_is_told_and_a_small_one_is_forgotten() -> None:
    assert asked("a", events((30, "a", 95), (1, "a", 31), (1, "a", 63))) == RESET
    assert asked("a", events((11, "a", 94))) is None
    assert asked("a", events((11, "a", 95))) == RESET
    # One that goes on for an hour is still there.
    steady = tuple((minutes, "a", 94) for minutes in range(60))
    assert asked("a", events(*steady)) == APP


def test_the_recovery_action_wins() -> None:
    assert asked("a", events((1, "a", 95)), action=0) == APP
    assert asked("a", events((1, "a", 95)), action=1) == RESET
    assert asked("a", events((1, "a", 154)), action=1) is None  # read from the field itself
    assert asked("a", events((1, "a", 154))) == INSPECT


def test_classes() -> None:
    assert xid_class(109) is XidClass.RESET_GPU
    assert xid_class(151) is XidClass.REBOOT
    assert xid_class(45) is XidClass.INFORMATIONAL
    assert xid_class(4711) is XidClass.SUPPORT


def test_lines_of_the_kernels_log() -> None:
    line = "NVRM: Xid (PCI:0000:C1:00): 79, pid='<unknown>', GPU has fallen off the bus."
    assert xid_of_line(line) == ("0000:c1:00", 79)
    assert xid_of_line("NVRM: Xid (PCI:00000009:0a:00.0): 31, pid=7") == ("0009:0a:00", 31)
    assert xid_of_line("NVRM: loading NVIDIA UNIX driver") is None


seen = st.lists(
    st.builds(
        XidEvent,
        st.floats(NOW_S - DAY_S, NOW_S),
        st.sampled_from(["a", "b"]),
        st.sampled_from([13, 31, 63, 79, 95]),
    )
)


@settings(deadline=None)
@given(seen)
def test_bursts_are_apart_and_leave_nothing_out(some: list[XidEvent]) -> None:
    counted = bursts(some)
    assert counted == bursts(counted)
    for event in some:
        assert any(
            (one.gpu, one.xid) == (event.gpu, event.xid) and 0 <= event.time_s - one.time_s < 180
            for one in counted
        )


@settings(deadline=None)
@given(seen)
def test_no_verdict_without_a_fatal_event(some: list[XidEvent]) -> None:
    for gpu in ("a", "b"):
        found = assess(gpu, some, 0, NOW_S, None)
        fatal = any(one.gpu == gpu and one.xid in (79, 95) for one in some)
        assert (found is not None and found.verdict is Verdict.FAIL) == fatal
