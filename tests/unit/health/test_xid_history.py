"""XIDs over attempts: what is kept for a day, and what the next checks make of it."""

import json
import time
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from scalewright.health.checks import Look, gpu_check
from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.gpu_rules import GpuLimits
from scalewright.health.gpus import GpuSnapshot, NodeGpus
from scalewright.health.xid import DAY_S, XidEvent
from scalewright.health.xid_history import History, from_record, known_to, remembered, to_record

NOW_S = 1e9
seen = st.builds(
    XidEvent, st.floats(NOW_S - 2 * DAY_S, NOW_S), st.sampled_from([None, "a", "b"]),
    st.sampled_from([13, 31, 79]),
)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["m1", "m2"]), st.lists(seen, max_size=4)), max_size=6))
def test_each_event_of_a_day_is_kept_once_however_often_it_is_told(
    told: list[tuple[str, list[XidEvent]]],
) -> None:
    history: History = {}
    for machine, events in (*told, *told):
        history = remembered(history, machine, events, NOW_S)
    for machine in ("m1", "m2"):
        of_it = {event for each, events in told if each == machine for event in events}
        kept = history.get(machine, ())
        assert set(kept) == {event for event in of_it if NOW_S - event.time_s <= DAY_S}
        assert len(kept) == len(set(kept))
    assert from_record(json.loads(json.dumps(to_record(history)))) == history


def test_a_machine_knows_of_others_only_the_gpus_that_have_a_name() -> None:
    nameless, named = XidEvent(NOW_S, None, 79), XidEvent(NOW_S, "b", 79)
    history = {"m1": (nameless,), "m2": (nameless, named)}
    assert known_to("m1", history) == (nameless, named)
    assert known_to("m3", history) == (named,)


def judged(history: History, xid: int, look_s: float) -> tuple[Finding, tuple[XidEvent, ...]]:
    """What the checks of an attempt on m1 find when its GPU `a` errs, and what they hear."""
    heard: list[XidEvent] = []
    check = gpu_check(GpuLimits(), None, None, known_to("m1", history), heard.extend)
    event = XidEvent(look_s, "a", xid)
    gpus = NodeGpus((GpuSnapshot(index=0, uuid="a", name="H100"),), (event,))
    _, findings = check.judge(None, Look(asdict(gpus), look_s, 0.0))
    (found,) = (one for one in findings if one.check == "gpus.xid")
    return found, tuple(heard)


def test_what_repeats_over_attempts_is_seen() -> None:
    # Checks begin now; attempts before were hours ago.
    now_s = time.time() + 1.0
    history: History = {}
    found, heard = judged(history, 31, now_s)
    assert (found.verdict, found.remedy) == (Verdict.WARN, Remedy.RESTART_APP)
    assert heard == (XidEvent(now_s, "a", 31),)
    earlier = [XidEvent(now_s - 3600, "a", 31)]
    found, _ = judged(remembered(history, "m1", earlier, now_s), 31, now_s)
    assert found.remedy is Remedy.INSPECT
    elsewhere = [XidEvent(now_s - 7200, "b", 31)]
    both = remembered(remembered({}, "m1", earlier, now_s), "m2", elsewhere, now_s)
    found, _ = judged(both, 31, now_s)
    assert "the workload's" in found.reason
