"""Where one machine stands: the score as it is defined, and the way of a machine."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import (
    BAD,
    HOUR_S,
    NOON,
    histories,
    seen,
    told,
)

from scalewright.cluster.evidence import (
    WEIGHTS,
    Action,
    Evidence,
    EvidenceKind,
    Order,
)
from scalewright.cluster.standing import (
    DAY_S,
    RULES,
    Rules,
    Standing,
    State,
    standing_at,
    usable,
)
from scalewright.errors import ConfigError, DataError


def state_at(time_s: float, *history: Evidence | Order) -> State:
    return standing_at(history, time_s).state


def direct_scores(history: Sequence[Evidence], now_s: float) -> tuple[float, float]:
    """Score and suspicion from their definition: each burst counts as its gravest, decayed."""
    score = suspicion = 0.0
    for burst in bursts_of(history):
        points = [
            WEIGHTS[one.kind].points
            * one.confidence
            * math.exp(-(now_s - one.time_s) / RULES.decay_s)
            for one in burst
        ]
        sure = [
            value
            for one, value in zip(burst, points, strict=True)
            if one.confidence >= RULES.confidence and WEIGHTS[one.kind].fault != "never"
        ]
        suspicion += max(points)
        score += max(sure, default=0.0)
    return score, suspicion


def bursts_of(history: Sequence[Evidence]) -> list[list[Evidence]]:
    open_bursts: dict[object, list[Evidence]] = {}
    bursts = []
    for one in history:
        of_attempt = WEIGHTS[one.kind].of_attempt
        key = (one.kind, None if of_attempt else one.gpu)
        last = open_bursts.get(key)
        if (
            last is None
            or one.time_s - last[-1].time_s > RULES.burst_s
            or (of_attempt and last[-1].attempt != one.attempt)
        ):
            bursts.append(last := [])
            open_bursts[key] = last
        last.append(one)
    return bursts


bad_on_one = histories(
    st.builds(
        seen,
        st.sampled_from(BAD),
        gpu=st.sampled_from([None, "GPU-0"]),
        confidence=st.sampled_from([1.0, 0.8, 0.6]),
        attempt=st.integers(0, 2),
    )
)


@settings(max_examples=40)
@given(bad_on_one, st.floats(0, 60 * DAY_S))
def test_the_score_is_the_decayed_sum_over_bursts(history: list[Evidence], later_s: float) -> None:
    now_s = (history[-1].time_s if history else NOON) + later_s
    never = Rules(hold_points=1e9, lemon_s=1e-9)  # so that nothing is ever paid for
    standing = standing_at(history, now_s, never)
    assert (standing.score, standing.suspicion) == pytest.approx(
        direct_scores(history, now_s), abs=1e-6
    )


@settings(max_examples=40)
@given(histories(st.builds(seen, st.sampled_from(["warning", "full_preflight_passed"]))))
def test_warnings_hold_no_machine(history: list[Evidence]) -> None:
    assert standing_at(history, NOON).state in ("healthy", "suspect")


def test_a_sure_fault_holds_then_probation_then_healthy() -> None:
    fault = seen("hardware", gpu="GPU-3", reason="XID 79")
    held = standing_at([fault], NOON)
    assert (held.state, held.score) == ("quarantined", 5.0)
    assert held.until_s == NOON + 2 * DAY_S
    assert held.reasons == ("hardware on GPU-3: XID 79 (score 5.0)",)
    assert state_at(NOON + 2 * DAY_S, fault) == "probation"
    assert state_at(NOON + 9 * DAY_S - 1, fault) == "probation"
    after = standing_at([fault], NOON + 9 * DAY_S)
    assert after == Standing("healthy", since_s=NOON + 9 * DAY_S)


def test_a_full_preflight_ends_a_quarantine_early_but_not_an_ordered_hold() -> None:
    passed = seen("full_preflight_passed", NOON + HOUR_S)
    assert state_at(NOON + HOUR_S, seen("hardware"), passed) == "probation"
    assert state_at(NOON + HOUR_S, told("hold"), passed) == "quarantined"
    unsure = replace(passed, confidence=0.5)
    assert state_at(NOON + HOUR_S, seen("hardware"), unsure) == "quarantined"


def test_a_fault_on_probation_retires_until_a_person_decides() -> None:
    history = [seen("hardware"), seen("straggler", NOON + 3 * DAY_S)]
    retired = standing_at(history, NOON + 300 * DAY_S)
    assert retired.state == "retired"
    assert retired.reasons[0] == "a fault on probation: straggler: as told"
    again = told("repaired", NOON + 301 * DAY_S)
    assert state_at(NOON + 301 * DAY_S, *history, again) == "probation"
    assert state_at(NOON + 301 * DAY_S, *history, told("release", again.time_s)) == "healthy"


def test_a_crash_on_probation_retires_only_when_it_repeats() -> None:
    start_s = NOON + 3 * DAY_S
    crashes = [seen("process", start_s, attempt=1), seen("process", start_s + 60, attempt=2)]
    assert state_at(start_s, seen("hardware"), crashes[0]) == "probation"
    assert state_at(start_s + 60, seen("hardware"), *crashes) == "retired"


def test_two_sure_faults_within_thirty_days_make_a_lemon() -> None:
    second = seen("preflight_failed", NOON + 20 * DAY_S)
    lemon = standing_at([seen("hardware"), second], second.time_s)
    assert lemon.state == "retired"
    assert lemon.reasons[0].startswith("a lemon, two sure faults within 30 d: preflight_failed")
    late = replace(second, time_s=NOON + 31 * DAY_S)
    assert state_at(late.time_s, seen("hardware"), late) == "quarantined"
    cleared = told("release", NOON + DAY_S)  # the first was none
    assert state_at(second.time_s, seen("hardware"), cleared, second) == "quarantined"
    mended = told("repaired", NOON + DAY_S)  # it was one
    assert state_at(second.time_s, seen("hardware"), mended, second) == "retired"


def test_several_faults_of_one_incident_are_no_lemon() -> None:
    other = seen("preflight_failed", NOON + 60)
    held = standing_at([seen("hardware", gpu="GPU-0"), seen("hardware", gpu="GPU-1"), other], NOON)
    assert held.state == "quarantined"
    assert held.until_s == other.time_s + 2 * DAY_S  # it begins anew with each fault


def test_crashes_make_suspect_only_twice_within_an_hour() -> None:
    first = seen("process", attempt=1)
    assert state_at(NOON, first) == "healthy"
    assert state_at(NOON + 50, first, seen("process", NOON + 50, attempt=2)) == "suspect"
    same = seen("process", NOON + 50, attempt=1, gpu="GPU-1")  # another rank of that machine
    assert state_at(NOON + 50, first, same) == "healthy"
    late = seen("process", NOON + 2 * HOUR_S, attempt=2)
    assert state_at(late.time_s, first, late) == "healthy"


def test_a_dead_node_is_suspect_for_a_day_and_then_healthy() -> None:
    death = seen("death")
    suspect = standing_at([death], NOON)
    assert (suspect.state, suspect.until_s) == ("suspect", NOON + DAY_S)
    assert suspect.reasons == ("death: as told",)
    assert standing_at([death], NOON + DAY_S) == replace(
        standing_at([death], NOON + DAY_S), state="healthy", since_s=NOON + DAY_S, reasons=()
    )


def test_a_fault_that_is_reported_again_and_again_counts_once() -> None:
    history = [seen("hang", NOON + 100.0 * count) for count in range(200)]
    standing = standing_at(history, history[-1].time_s)
    assert (standing.state, round(standing.score, 9)) == ("suspect", 2.0)
    apart = [seen("hang", NOON + HOUR_S * count) for count in range(3)]
    assert state_at(apart[-1].time_s, *apart) == "quarantined"


def test_a_sure_report_counts_within_a_burst_that_began_unsure() -> None:
    unsure = seen("hardware", confidence=0.5)
    assert state_at(NOON, unsure) == "suspect"
    assert state_at(NOON + 15, unsure, seen("hardware", NOON + 15)) == "quarantined"


def test_an_unsure_report_neither_retires_nor_adds_to_the_score() -> None:
    fault = seen("hardware")
    for later_s in (3 * DAY_S, 20 * DAY_S):  # on probation; where a sure one would make a lemon
        unsure = seen("hardware", NOON + later_s, confidence=0.69)
        standing = standing_at([fault, unsure], unsure.time_s)
        assert standing.state == ("probation" if later_s < 9 * DAY_S else "suspect")
        assert standing.score < 1e-9 < standing.suspicion


def test_what_is_seen_during_an_ordered_hold_does_not_make_it_longer() -> None:
    hold, fault = told("hold", ttl_s=HOUR_S), seen("hardware", NOON + 60)
    held = standing_at([hold, fault], NOON + 60)
    assert (held.until_s, held.by_order) == (NOON + HOUR_S, True)
    assert state_at(NOON + HOUR_S, hold, fault) == "probation"


def test_two_wrong_results_hold_a_machine() -> None:
    first, second = seen("corruption", gpu="GPU-0"), seen("corruption", NOON + 9 * DAY_S)
    assert state_at(NOON, first) == "suspect"
    assert state_at(second.time_s, first, second) == "quarantined"


def test_good_evidence_ends_suspicion() -> None:
    death, passed = seen("death"), seen("full_preflight_passed", NOON + HOUR_S)
    cleared = standing_at([death, passed], NOON + HOUR_S)
    assert (cleared.state, cleared.since_s) == ("healthy", NOON + HOUR_S)
    assert state_at(NOON + HOUR_S + 1, death, passed, seen("death", NOON + HOUR_S + 1)) == "suspect"


def test_ranks_for_placement() -> None:
    states: list[State] = ["healthy", "suspect", "probation", "quarantined", "retired"]
    assert [usable(Standing(state)) for state in states] == [0, 1, 2, None, None]


@pytest.mark.parametrize("kind", ["exception", "oom", "refused", "preempted", ""])
def test_faults_of_a_users_program_cannot_be_noted(kind: EvidenceKind) -> None:
    with pytest.raises(DataError, match=r"known: hardware, .*no evidence on a machine"):
        seen(kind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"machine": " "}, "machine ' '; expected its serial"),
        ({"confidence": 1.5}, "confidence 1.5; allowed: 0 to 1"),
        ({"confidence": math.nan}, "confidence nan; allowed"),
        ({"time_s": math.inf}, "time_s inf; expected seconds"),
    ],
)
def test_bad_evidence_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen("hardware", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("action", "ttl_s"), [("retire", 5.0), ("hold", 0.0), ("hold", math.nan)])
def test_bad_orders_are_refused(action: Action, ttl_s: float) -> None:
    with pytest.raises(DataError, match=action):
        told(action, ttl_s=ttl_s)


def test_bad_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="burst_s = 0"):
        Rules(burst_s=0)
    with pytest.raises(ConfigError, match=r"breaker_share = 1\.2; at most 1"):
        Rules(breaker_share=1.2)
    with pytest.raises(ConfigError, match="suspect_points = 9"):
        Rules(suspect_points=9)
