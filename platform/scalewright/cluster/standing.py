"""Where a machine stands: a pure fold over what was noted about it, in the order of noting.

```
healthy <-> suspect --> quarantined --> probation --> healthy
                             \\------------\\--> retired, until a person decides
```

`Track` is the fold so far, a value of bounded size. `weigh` adds evidence and says which verdict
it calls for; whether that takes effect is decided elsewhere (`breaker.py`) and told by `held` or
`withheld`. `obeyed` adds a person's order, which always takes effect. States end by themselves as
time passes: `standing` tells of a track at any later time.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from scalewright.cluster.evidence import WEIGHTS, Evidence, EvidenceKind, Order
from scalewright.errors import ConfigError

State = Literal["healthy", "suspect", "quarantined", "probation", "retired"]

DAY_S = 86400.0
_REASONS = 6  # kept of a state; the history has all
_ROUNDING = 1e-9  # points


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The thresholds of the fold; the whole fleet must be judged by the same ones.

    Times in seconds. A fault counts exp(-age / `decay_s`). `burst_s`: reports of the same fault
    that follow each other so soon count once. `suspect_s`: how long one fault makes suspect at
    least; `repeat_s`: how soon a crash must repeat to be a fault. `breaker_share` of the fleet,
    but at least `breaker_machines`, may be held by verdicts within `breaker_s`.
    """

    decay_s: float = 14 * DAY_S
    hold_points: float = 5.0
    suspect_points: float = 1.0
    confidence: float = 0.7  # of evidence that can hold a machine
    burst_s: float = 180.0
    repeat_s: float = 3600.0
    suspect_s: float = DAY_S
    quarantine_s: float = 2 * DAY_S  # twice the median repair
    probation_s: float = 7 * DAY_S
    lemon_s: float = 30 * DAY_S
    breaker_s: float = 600.0
    breaker_share: float = 0.1
    breaker_machines: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"rule {name} = {value}; more than 0, and finite")
        for name in ("confidence", "breaker_share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"rule {name} = {getattr(self, name)}; at most 1")
        if self.suspect_points > self.hold_points:
            raise ConfigError(
                f"rule suspect_points = {self.suspect_points}; at most hold_points = "
                f"{self.hold_points}"
            )


RULES = Rules()


@dataclass(frozen=True)
class Standing:
    """What a machine may be used for at one time, and why.

    `score`: decayed points of confident evidence; `suspicion`: of all evidence. `since_s`: wall
    time; None when it never was in another state. `until_s`: when the state ends if nothing more is
    noted; None when only a person ends it, or for healthy. `by_order`: a person put it there.
    """

    state: State = "healthy"
    score: float = 0.0
    suspicion: float = 0.0
    since_s: float | None = None
    until_s: float | None = None
    reasons: tuple[str, ...] = ()
    by_order: bool = False


def usable(standing: Standing) -> int | None:
    """The rank of a machine for placement, lower first; 2 only without a spare, None never."""
    return {"healthy": 0, "suspect": 1, "probation": 2}.get(standing.state)


@dataclass(frozen=True)
class Verdict:
    """A state that evidence calls for."""

    state: Literal["quarantined", "retired"]
    reason: str
    sure: bool


class Decaying(NamedTuple):
    """Points as they were at `time_s`."""

    points: float = 0.0
    time_s: float = 0.0

    def at(self, now_s: float, decay_s: float) -> float:
        return self.points * math.exp(-max(0.0, now_s - self.time_s) / decay_s)


class Burst(NamedTuple):
    """The last reports of one fault; its parts of the score and of the suspicion."""

    time_s: float
    attempt: tuple[str, int]
    score: Decaying
    suspicion: Decaying


class Track(NamedTuple):
    """All that the future standing of a machine depends on; `time_s` is that of its last event."""

    time_s: float = 0.0
    state: State = "healthy"
    since_s: float | None = None
    until_s: float | None = None
    by_order: bool = False
    reasons: tuple[str, ...] = ()
    score: Decaying = Decaying()
    suspicion: Decaying = Decaying()
    bursts: Mapping[tuple[EvidenceKind, str | None], Burst] = MappingProxyType({})
    fault_s: float | None = None  # the last fault, of any confidence
    suspect_since_s: float | None = None  # of a machine that is in use
    sure_hold_s: float | None = None  # the last quarantine for a sure fault
    protected_until_s: float = 0.0


def fold(history: Iterable[Evidence | Order], rules: Rules = RULES) -> Track:
    """The track of one machine from its history, every verdict taking effect."""
    track = Track()
    for event in history:
        if isinstance(event, Order):
            track = obeyed(track, event, rules)
            continue
        track, verdict = weigh(track, event, rules)
        if verdict is not None:
            track = held(track, verdict, rules)
    return track


def standing_at(
    history: Iterable[Evidence | Order], now_s: float, rules: Rules = RULES
) -> Standing:
    """Where one machine stands, if nothing holds its verdicts back."""
    return standing(fold(history, rules), now_s, rules)


def standing(track: Track, now_s: float, rules: Rules = RULES) -> Standing:
    """Where the machine stands at `now_s`, if nothing is noted after the track's last event."""
    now_s = max(now_s, track.time_s)
    track = _advanced(track, now_s, rules)
    points = track.score.at(now_s, rules.decay_s), track.suspicion.at(now_s, rules.decay_s)
    if track.state != "healthy":
        return Standing(
            track.state, *points, track.since_s, track.until_s, track.reasons, track.by_order
        )
    if track.suspect_since_s is None:
        return Standing("healthy", *points, track.since_s)
    end_s = _suspect_until(track, rules)
    return Standing("suspect", *points, track.suspect_since_s, end_s, track.reasons)


def weigh(track: Track, evidence: Evidence, rules: Rules = RULES) -> tuple[Track, Verdict | None]:
    """Add evidence, and say which verdict it calls for, if any.

    Time does not go back: evidence that is older than the last event counts as of that.
    """
    now_s = max(evidence.time_s, track.time_s)
    track = _advanced(track, now_s, rules)._replace(time_s=now_s)
    weight = WEIGHTS[evidence.kind]
    confident = evidence.confidence >= rules.confidence
    if weight.points < 0:
        return (_counted_for(track, evidence, rules) if confident else track), None
    confident = confident and weight.fault != "never"
    track, fault = _counted_against(track, evidence, confident, rules)
    if not confident or track.by_order or track.state == "retired":
        return track, None
    if track.state == "quarantined":
        return (_renewed(track, rules) if fault else track), None
    if now_s < track.protected_until_s:
        return track, None
    return track, _verdict(track, evidence, fault, rules)


def held(track: Track, verdict: Verdict, rules: Rules = RULES) -> Track:
    """The verdict takes effect."""
    now_s = track.time_s
    return track._replace(
        state=verdict.state,
        since_s=now_s,
        until_s=now_s + rules.quarantine_s if verdict.state == "quarantined" else None,
        reasons=_with((), verdict.reason),
        sure_hold_s=now_s if verdict.sure else track.sure_hold_s,
    )


def withheld(track: Track, verdict: Verdict, why: str) -> Track:
    """The verdict does not take effect, now or later; new evidence may call for it again."""
    return track._replace(reasons=_with(track.reasons, f"not {verdict.state}: {why}"))


def obeyed(track: Track, order: Order, rules: Rules = RULES) -> Track:
    """Add a person's order. A hold leaves a retired machine retired: it is not in use already."""
    now_s = max(order.time_s, track.time_s)
    track = _advanced(track, now_s, rules)._replace(time_s=now_s)
    reason = f"{order.action} by {order.who}: {order.reason}"
    if order.action == "repaired":
        return _on_probation(track, now_s, reason, rules)
    if order.action == "release":
        end_s = 0.0 if order.ttl_s is None else now_s + order.ttl_s
        return Track(time_s=now_s, since_s=now_s, protected_until_s=end_s)
    if order.action == "hold" and track.state == "retired":
        return track._replace(reasons=_with(track.reasons, reason))
    return track._replace(
        state="quarantined" if order.action == "hold" else "retired",
        since_s=now_s,
        until_s=None if order.ttl_s is None else now_s + order.ttl_s,
        by_order=True,
        reasons=(reason,),
        protected_until_s=0.0,
    )


def _advanced(track: Track, now_s: float, rules: Rules) -> Track:
    """The track after the states that end by `now_s` without an event."""
    if track.state == "quarantined" and track.until_s is not None and track.until_s <= now_s:
        what = "the hold" if track.by_order else "the quarantine"
        track = _on_probation(track, track.until_s, f"{what} ended: {track.reasons[0]}", rules)
    if track.state == "probation" and track.until_s is not None and track.until_s <= now_s:
        end_s = track.until_s
        track = track._replace(state="healthy", since_s=end_s, until_s=None, suspect_since_s=end_s)
    if track.suspect_since_s is not None and _suspect_until(track, rules) <= now_s:
        end_s = max(track.suspect_since_s, _suspect_until(track, rules))
        track = track._replace(suspect_since_s=None, since_s=end_s, reasons=())
    return track


def _suspect_until(track: Track, rules: Rules) -> float:
    """When a day has passed since the last fault, and suspicion has decayed to the threshold."""
    suspicion, threshold = track.suspicion, rules.suspect_points
    end_s = 0.0 if track.fault_s is None else track.fault_s + rules.suspect_s
    if suspicion.points <= threshold:
        return end_s
    decayed_s = suspicion.time_s + rules.decay_s * math.log(suspicion.points / threshold)
    return max(end_s, decayed_s)


def _on_probation(track: Track, now_s: float, reason: str, rules: Rules) -> Track:
    """What was seen before has been paid for, but for the memory of a lemon."""
    return Track(
        time_s=track.time_s,
        state="probation",
        since_s=now_s,
        until_s=now_s + rules.probation_s,
        reasons=(reason,),
        sure_hold_s=track.sure_hold_s,
    )


def _renewed(track: Track, rules: Rules) -> Track:
    if track.until_s is None:
        return track
    return track._replace(until_s=max(track.until_s, track.time_s + rules.quarantine_s))


def _counted_for(track: Track, evidence: Evidence, rules: Rules) -> Track:
    """Add good evidence: it lowers the points, ends suspicion of the last fault, and a quarantine
    that no person ordered."""
    now_s, key = track.time_s, (evidence.kind, evidence.gpu)
    reason = _text(evidence)
    if track.state == "quarantined" and not track.by_order:
        return _on_probation(track, now_s, reason, rules)
    last = track.bursts.get(key)
    same = last is not None and now_s - last.time_s <= rules.burst_s
    points = 0.0 if same else WEIGHTS[evidence.kind].points * evidence.confidence
    nothing = Decaying(0.0, now_s)
    track = track._replace(
        score=_plus(track.score, points, now_s, rules),
        suspicion=_plus(track.suspicion, points, now_s, rules),
        bursts={key: Burst(now_s, ("", 0), nothing, nothing)},  # what is seen again counts again
        fault_s=None,
    )
    if track.suspect_since_s is None or _suspect_until(track, rules) > now_s:
        return track
    return track._replace(suspect_since_s=None, since_s=now_s, reasons=())


def _counted_against(
    track: Track, evidence: Evidence, confident: bool, rules: Rules
) -> tuple[Track, bool]:
    """Add bad evidence, and say whether it is a fault.

    A burst counts as its gravest report, at its latest: a report within it adds only what has
    decayed or was not yet counted.
    """
    now_s, weight = track.time_s, WEIGHTS[evidence.kind]
    key = (evidence.kind, None if weight.of_attempt else evidence.gpu)
    attempt = (evidence.run, evidence.attempt)
    last = track.bursts.get(key)
    quiet_s = math.inf if last is None else now_s - last.time_s
    same = quiet_s <= rules.burst_s and (
        not weight.of_attempt or (last is not None and last.attempt == attempt)
    )
    score = last.score.at(now_s, rules.decay_s) if same and last else 0.0
    suspicion = last.suspicion.at(now_s, rules.decay_s) if same and last else 0.0
    points = weight.points * evidence.confidence
    new_score, new_suspicion = max(score, points if confident else 0.0), max(suspicion, points)
    burst = Burst(now_s, attempt, Decaying(new_score, now_s), Decaying(new_suspicion, now_s))
    repeated = not same and quiet_s <= rules.repeat_s
    fault = weight.fault == "always" or (weight.fault == "repeated" and repeated)
    track = track._replace(
        score=_plus(track.score, new_score - score, now_s, rules),
        suspicion=_plus(track.suspicion, new_suspicion - suspicion, now_s, rules),
        bursts={**track.bursts, key: burst},
        fault_s=now_s if fault else track.fault_s,
    )
    return _explained(track, _text(evidence), rules), fault


def _explained(track: Track, reason: str, rules: Rules) -> Track:
    """The track with the reason of its last event, which may have made it suspect."""
    if track.state != "healthy" or track.suspect_since_s is not None:
        return track._replace(reasons=_with(track.reasons, reason))
    since_s = track.time_s if _suspect_until(track, rules) > track.time_s else None
    return track._replace(reasons=(reason,), suspect_since_s=since_s)


def _verdict(track: Track, evidence: Evidence, fault: bool, rules: Rules) -> Verdict | None:
    """What confident evidence on a machine in use calls for."""
    now_s, text, sure = track.time_s, _text(evidence), WEIGHTS[evidence.kind].sure
    if track.state == "probation":
        return Verdict("retired", f"a fault on probation: {text}", sure) if fault else None
    if sure and track.sure_hold_s is not None and now_s - track.sure_hold_s <= rules.lemon_s:
        days = rules.lemon_s / DAY_S
        return Verdict("retired", f"a lemon, two sure faults within {days:g} d: {text}", sure)
    score = track.score.at(now_s, rules.decay_s)
    if score >= rules.hold_points - _ROUNDING:
        return Verdict("quarantined", f"{text} (score {score:.1f})", sure)
    return None


def _plus(points: Decaying, more: float, now_s: float, rules: Rules) -> Decaying:
    return Decaying(max(0.0, points.at(now_s, rules.decay_s) + more), now_s)


def _text(evidence: Evidence) -> str:
    where = f" on {evidence.gpu}" if evidence.gpu else ""
    return f"{evidence.kind}{where}: {evidence.reason}"


def _with(reasons: tuple[str, ...], reason: str) -> tuple[str, ...]:
    """The reasons and one more; the first is why the state began, and stays."""
    if reason in reasons:
        return reasons
    return (*reasons[:1], *reasons[1:][2 - _REASONS :], reason)
