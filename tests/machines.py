"""Histories of machines for tests: single events, and strategies for whole ones."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from scalewright.cluster.evidence import (
    WEIGHTS,
    Action,
    Event,
    Evidence,
    EvidenceKind,
    FleetSize,
    Order,
    Thaw,
)
from scalewright.cluster.standing import DAY_S

HOUR_S = 3600.0
NOON = 1_700_000_000.0  # seconds since 1970

KINDS: list[EvidenceKind] = list(WEIGHTS)
BAD = [kind for kind in KINDS if WEIGHTS[kind].points > 0]
SURE: list[EvidenceKind] = [kind for kind in KINDS if WEIGHTS[kind].sure]


def seen(
    kind: EvidenceKind, time_s: float = NOON, machine: str = "A", **fields: object
) -> Evidence:
    return replace(Evidence(machine, None, kind, "as told", time_s), **fields)  # type: ignore[arg-type]


def told(
    action: Action, time_s: float = NOON, machine: str = "A", ttl_s: float | None = None
) -> Order:
    return Order(machine, action, "an operator", "because", time_s, ttl_s)


machines = st.sampled_from("ABCDEFGH")
gaps = st.one_of(
    st.floats(0, 10), st.floats(0, 400), st.floats(0, 2 * HOUR_S), st.floats(0, 12 * DAY_S)
)
evidence = st.builds(
    seen,
    st.sampled_from(KINDS),
    machine=machines,
    gpu=st.sampled_from([None, "GPU-0", "GPU-1"]),
    confidence=st.sampled_from([1.0, 1.0, 0.9, 0.7, 0.69, 0.3]),
    attempt=st.integers(0, 3),
)
orders = st.builds(
    lambda action, machine, ttl_s: told(
        action, NOON, machine, ttl_s if action in ("hold", "release") else None
    ),
    st.sampled_from(["hold", "release", "retire", "repaired"]),
    machines,
    st.sampled_from([None, 600.0, HOUR_S, 3 * DAY_S]),
)
sizes = st.builds(FleetSize, st.integers(0, 60), st.just("a run"), st.just(NOON))
thaws = st.just(Thaw("an operator", "looked", NOON))


def histories(events: st.SearchStrategy[Event]) -> st.SearchStrategy[list[Event]]:
    """Events in the order of noting, each some time after the one before."""

    def timed(pairs: Sequence[tuple[Event, float]]) -> list[Event]:
        time_s, out = NOON, []
        for event, gap_s in pairs:
            time_s += gap_s
            out.append(replace(event, time_s=time_s))
        return out

    return st.lists(st.tuples(events, gaps), max_size=25).map(timed)


everything = histories(st.one_of(evidence, evidence, evidence, orders, sizes, thaws))
