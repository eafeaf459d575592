"""What is noted about machines: evidence for and against them, and what people order.

An event is one row of the ledger. Faults of a user's program (an exception, out of memory, a
refused config, a preemption) have no kind here: they never count against a machine.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from scalewright.errors import DataError

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

EvidenceKind = Literal[
    "hardware",
    "preflight_failed",
    "corruption",
    "repeated_xid",
    "hang",
    "death",
    "unreachable",
    "unresponsive",
    "network",
    "straggler",
    "process",
    "warning",
    "full_preflight_passed",
    "burn_in_passed",
]
Action = Literal["hold", "release", "retire", "repaired"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """How much one report of a kind counts.

    `points`: added to the machine's score, times the confidence; negative for good evidence.
    `sure`: a fault of the machine beyond doubt; a second one soon after makes it a lemon.
    `fault`: it makes the machine suspect: every report of the kind, only one that repeats an
    earlier one soon, or none. `of_attempt`: every attempt that ends in it is one incident, on
    whichever GPU of the machine; the others are told apart by their GPU.
    """

    points: float
    sure: bool = False
    fault: Literal["always", "repeated", "never"] = "always"
    of_attempt: bool = False


WEIGHTS: Mapping[EvidenceKind, Weight] = {
    "hardware": Weight(points=5.0, sure=True),  # double-bit ECC, GPU lost, failed row remapping
    "preflight_failed": Weight(points=5.0, sure=True),
    "corruption": Weight(points=4.0),  # wrong bits: twice within 19 days holds the machine
    "repeated_xid": Weight(points=3.0),
    "hang": Weight(points=2.0, of_attempt=True),  # guilty by the stacks of all ranks
    "death": Weight(points=1.0),  # of the node, whatever the reason
    "unreachable": Weight(points=1.0),
    "unresponsive": Weight(points=1.0),  # a checker that hangs; confirmed, it is "hardware"
    "network": Weight(points=1.0),
    "straggler": Weight(points=1.0),
    "process": Weight(points=0.5, fault="repeated", of_attempt=True),  # a worker crashed
    "warning": Weight(points=0.5, fault="never"),
    "full_preflight_passed": Weight(points=-2.0, fault="never"),  # the full one, not the light
    "burn_in_passed": Weight(points=-5.0, fault="never"),
}


@dataclass(frozen=True)
class Evidence:
    """One thing seen on a machine.

    `machine`: its serial. `gpu`: UUID of the GPU at fault, if one is. `reason`: one line for
    people. `time_s`: wall time. `confidence`: 0 to 1. `run`, `attempt`: during which it was seen.
    `detail`: what was measured; numbers that are not finite are kept as text.
    """

    machine: str
    gpu: str | None
    kind: EvidenceKind
    reason: str
    time_s: float
    confidence: float = 1.0
    run: str = ""
    attempt: int = 0
    detail: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_machine(self.machine)
        _check_time(self.time_s)
        if self.kind not in WEIGHTS:
            raise DataError(
                f"evidence on {self.machine}: kind {self.kind!r}; known: {', '.join(WEIGHTS)} "
                "(faults of a user's program are no evidence on a machine)"
            )
        if not 0 <= self.confidence <= 1:
            raise DataError(
                f"evidence on {self.machine}: confidence {self.confidence}; allowed: 0 to 1"
            )


@dataclass(frozen=True)
class Order:
    """What a person decided about a machine; `ttl_s` bounds a hold, or protects a release.

    hold: not to be used. release: the hold was wrong, use it and forget what was seen; with
    `ttl_s` no verdict touches it so long. retire: not to be used again. repaired: use it on
    probation.
    """

    machine: str
    action: Action
    who: str
    reason: str
    time_s: float
    ttl_s: float | None = None

    def __post_init__(self) -> None:
        _check_machine(self.machine)
        _check_time(self.time_s)
        if self.action not in get_args(Action):
            raise DataError(f"order {self.action!r}; known: {', '.join(get_args(Action))}")
        if self.ttl_s is None:
            return
        if self.action not in ("hold", "release"):
            raise DataError(f"order {self.action!r} takes no time to live; hold and release do")
        if not 0 < self.ttl_s < math.inf:
            raise DataError(f"order {self.action!r} for {self.ttl_s} s; more than 0, and finite")


@dataclass(frozen=True)
class FleetSize:
    """How many machines there are, as `who` sees it; the latest word counts."""

    machines: int
    who: str
    time_s: float

    def __post_init__(self) -> None:
        _check_time(self.time_s)
        if self.machines < 0:
            raise DataError(f"fleet of {self.machines} machines; at least 0")


@dataclass(frozen=True)
class Thaw:
    """A person lets automatic verdicts take effect again."""

    who: str
    reason: str
    time_s: float

    def __post_init__(self) -> None:
        _check_time(self.time_s)


Event = Evidence | Order | FleetSize | Thaw
_TYPES: dict[str, type[Evidence] | type[Order] | type[FleetSize] | type[Thaw]] = {
    "evidence": Evidence,
    "order": Order,
    "fleet": FleetSize,
    "thaw": Thaw,
}


def to_record(event: Event) -> tuple[str, dict[str, Any]]:
    """The event's type and its fields as plain JSON values."""
    name = next(name for name, kind in _TYPES.items() if isinstance(event, kind))
    keys = (one.name for one in dataclasses.fields(event))
    return name, {key: _strict(getattr(event, key)) for key in keys}


def from_record(name: str, fields: Mapping[str, Any]) -> Event:
    """The inverse of `to_record`; `DataError` for what is no event."""
    try:
        return _TYPES[name](**fields)
    except (KeyError, TypeError) as error:
        raise DataError(f"{name!r} with fields {sorted(fields)} is no event: {error!r}") from None


def _check_machine(serial: str) -> None:
    if not isinstance(serial, str) or not serial.strip():
        raise DataError(f"machine {serial!r}; expected its serial, a text that is not empty")


def _check_time(time_s: float) -> None:
    if not 0 <= time_s < math.inf:
        raise DataError(f"time_s {time_s}; expected seconds since 1970")


def _strict(value: Any) -> Any:
    """`value` with non-finite floats as text: JSON has no NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
