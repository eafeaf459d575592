"""How a fleet stands: laws of the fold over any history, and of the breaker."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    KINDS,
    NOON,
    SURE,
    everything,
    evidence,
    gaps,
    histories,
    machines,
    orders,
    seen,
    told,
)

from scalewright.cluster.breaker import limit
from scalewright.cluster.evidence import (
    Action,
    Event,
    Evidence,
    FleetSize,
    Order,
    Thaw,
    from_record,
    to_record,
)
from scalewright.cluster.fleet import Fleet, fold
from scalewright.cluster.standing import (
    DAY_S,
    RULES,
    Rules,
    standing_at,
    usable,
)


@settings(max_examples=40)
@given(everything, st.integers(0, 25), gaps)
def test_going_on_from_any_event_gives_what_the_whole_history_gives(
    history: list[Event], cut: int, later_s: float
) -> None:
    going = Fleet()
    for event in history[:cut]:
        going.add(event)
        going.standings(event.time_s + later_s)  # asking changes nothing
        going.breaker(event.time_s + later_s)
    for event in history[cut:]:
        going.add(event)
    now_s = (history[-1].time_s if history else NOON) + later_s
    assert going.standings(now_s) == fold(history).standings(now_s)
    assert going.breaker(now_s) == fold(history).breaker(now_s)


@settings(max_examples=40)
@given(histories(st.one_of(evidence, orders)), gaps)
def test_machines_stand_as_their_own_events_say_unless_the_breaker_freezes(
    history: list[Evidence | Order], later_s: float
) -> None:
    wide = Rules(breaker_machines=8)  # as many as there are
    fleet = fold(history, wide)
    now_s = (history[-1].time_s if history else NOON) + later_s
    for machine, standing in fleet.standings(now_s).items():
        own = [event for event in history if event.machine == machine]
        assert standing == standing_at(own, now_s, wide)


@settings(max_examples=40)
@given(everything)
def test_scores_only_decay_while_nothing_is_noted(history: list[Event]) -> None:
    fleet = fold(history)
    begin_s = history[-1].time_s if history else NOON
    times_s = [begin_s + day * DAY_S for day in range(0, 60, 3)]
    for machine in fleet.known():
        path = [fleet.standing(machine, time_s) for time_s in times_s]
        assert all(a.score >= b.score >= 0 for a, b in pairwise(path))
        assert all(a.suspicion >= b.suspicion >= b.score - 1e-9 for a, b in pairwise(path))


@settings(max_examples=40)
@given(everything)
def test_a_machine_that_was_held_is_on_probation_before_it_is_used_freely(
    history: list[Event],
) -> None:
    fleet = Fleet()
    for event in history:
        fleet.add(event)
        if not isinstance(event, Evidence):
            continue
        standing = fleet.standing(event.machine, event.time_s)
        if standing.state == "quarantined" and standing.until_s is not None:
            after = fleet.standing(event.machine, standing.until_s)
            assert after.state == "probation"
            assert after.until_s == standing.until_s + RULES.probation_s
        if standing.state == "retired":
            assert fleet.standing(event.machine, NOON + 1e9).state == "retired"


@settings(max_examples=40)
@given(everything)
def test_a_state_ends_when_it_said(history: list[Event]) -> None:
    fleet = fold(history)
    now_s = history[-1].time_s if history else NOON
    for machine, standing in fleet.standings(now_s).items():
        assert (standing.since_s or NOON) <= now_s
        if standing.until_s is None:
            continue
        assert standing.until_s > now_s
        middle_s = (now_s + standing.until_s) / 2
        assert fleet.standing(machine, middle_s).state == standing.state
        assert fleet.standing(machine, standing.until_s + 0.001).state != standing.state


@settings(max_examples=40)
@given(
    histories(
        st.builds(seen, st.sampled_from(KINDS), machine=machines, confidence=st.floats(0, 0.69))
    )
)
def test_evidence_of_low_confidence_holds_no_machine(history: list[Event]) -> None:
    fleet = Fleet()
    for event in history:
        fleet.add(event)
        states = {one.state for one in fleet.standings(event.time_s).values()}
        assert states <= {"healthy", "suspect"}


@settings(max_examples=40)
@given(
    histories(st.one_of(st.builds(seen, st.sampled_from(SURE), machine=machines), orders)),
    st.integers(0, 60),
)
def test_verdicts_hold_no_more_machines_than_the_breaker_lets(
    history: list[Event], size: int
) -> None:
    fleet = Fleet()
    fleet.add(FleetSize(size, "a run", NOON))
    taken: list[tuple[float, str]] = []
    for event in history:
        rank = usable(fleet.standing(event.machine, event.time_s))  # type: ignore[union-attr]
        fleet.add(event)
        now = fleet.standing(event.machine, event.time_s)  # type: ignore[union-attr]
        if isinstance(event, Evidence) and rank is not None and usable(now) is None:
            taken.append((event.time_s, event.machine))
        begin_s = event.time_s - RULES.breaker_s
        assert len({name for time_s, name in taken if time_s >= begin_s}) <= limit(size)


@settings(max_examples=40)
@given(everything, st.lists(evidence, max_size=10), machines, st.floats(1, 5 * DAY_S))
def test_a_persons_order_wins_over_all_evidence(
    history: list[Event], then: list[Evidence], machine: str, ttl_s: float
) -> None:
    start_s = history[-1].time_s if history else NOON
    later = [replace(one, time_s=start_s + ttl_s * 0.99, machine=machine) for one in then]
    expected: dict[Action, set[int | None]] = {"hold": {None}, "retire": {None}, "release": {0, 1}}
    for action, ranks in expected.items():
        order = told(action, start_s, machine, None if action == "retire" else ttl_s)
        fleet = fold([*history, order])
        if action == "release":
            assert fleet.standing(machine, start_s).state == "healthy"
        for one in later:
            fleet.add(one)
        assert usable(fleet.standing(machine, start_s + ttl_s * 0.995)) in ranks


@settings(max_examples=40)
@given(everything)
def test_events_survive_the_way_through_a_record(history: list[Event]) -> None:
    for event in history:
        assert from_record(*to_record(event)) == event


def test_a_refused_verdict_needs_new_evidence_after_the_thaw() -> None:
    fleet = fold([seen("hardware", NOON + at, name) for at, name in enumerate("ABCD")])
    states = [fleet.standing(name, NOON + 5).state for name in "ABCD"]
    assert states == ["quarantined", "quarantined", "suspect", "suspect"]
    frozen = fleet.breaker(NOON + 5)
    assert (frozen.frozen_since_s, frozen.refused) == (NOON + 2, {"C", "D"})
    assert "verdicts are frozen" in fleet.standing("C", NOON + 5).reasons[-1]
    quiet_s = NOON + 3 + 601
    assert fleet.breaker(quiet_s).frozen_since_s is None
    assert fleet.standing("C", quiet_s).state == "suspect"
    fleet.add(seen("straggler", quiet_s, "C"))
    assert fleet.standing("C", quiet_s).state == "quarantined"
    assert fleet.standing("D", quiet_s).state == "suspect"


def test_verdicts_stay_frozen_while_more_are_called_for_until_a_person_thaws() -> None:
    times_s = [NOON + 300.0 * count for count in range(20)]
    fleet = fold([seen("hardware", NOON, name) for name in "ABC"])
    for time_s in times_s:
        fleet.add(seen("hardware", time_s, "D"))
    assert fleet.breaker(times_s[-1]).frozen_since_s == NOON
    assert fleet.standing("D", times_s[-1]).state == "suspect"
    fleet.add(told("hold", times_s[-1], "C"))  # an order is not bound by it
    assert fleet.standing("C", times_s[-1]).state == "quarantined"
    fleet.add(Thaw("an operator", "they are broken", times_s[-1]))
    fleet.add(seen("hardware", times_s[-1] + 15, "D"))  # still of the same burst
    assert fleet.standing("D", times_s[-1] + 15).state == "quarantined"


def test_the_breaker_counts_the_holds_of_ten_minutes() -> None:
    holds = [seen("hardware", NOON, "A"), seen("hardware", NOON + 5, "B")]
    early = fold([*holds, seen("hardware", NOON + 600, "C")])
    assert early.standing("C", NOON + 600).state == "suspect"
    late = fold([*holds, seen("hardware", NOON + 601, "C")])
    assert late.standing("C", NOON + 601).state == "quarantined"


@pytest.mark.parametrize(("fleet", "most"), [(0, 2), (16, 2), (29, 2), (30, 3), (70, 7), (256, 25)])
def test_the_breaker_lets_a_tenth_of_the_fleet_and_at_least_two(fleet: int, most: int) -> None:
    assert limit(fleet) == most
