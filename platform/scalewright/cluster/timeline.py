"""What a run was doing at every moment: its event log, in order, to intervals without gaps.

Every line explains the time since the line before it. A log may lack the kinds that only a
supervisor writes; their time then falls to the coarser phase around them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from scalewright.events import Artifact, BrokenLine, Event, Metrics, Notice


class Phase(StrEnum):
    """What a moment of wall time went to."""

    STEP = "step"  # steps that were kept
    RECOMPUTE = "recompute"  # steps done again, and steps lost before any line told of them
    DATA_WAIT = "data_wait"  # steps waiting for data
    STRAGGLER = "straggler"  # steps waiting for the slowest rank
    CHECKPOINT = "checkpoint"  # training stood still to save
    VALIDATION = "validation"  # held-out clips and samples
    QUEUE = "queue"  # back-off and waiting for nodes
    PREFLIGHT = "preflight"
    INIT = "init"  # launched, but the loop of the workers has not begun
    RESTORE = "restore"  # from the loop's begin to the first step
    DETECT = "detect"  # from the last sign of progress to its absence being noticed
    TEARDOWN = "teardown"
    STOPPED = "stopped"  # nobody supervised the run: it waited for a human
    UNKNOWN = "unknown"


# An attempt that failed is followed by the next within the longest back-off of the policy; where
# it took longer than this, nobody was there to begin it.
UNATTENDED_S = 600.0
# Clocks of two machines may differ by this much, and lines are told in another order than written.
CLOCK_TOLERANCE_S = 1.0

STEP_S, WAIT_S = "perf/step_s", "data/wait_s"  # seconds a step
STRAGGLER_S = "perf/straggler_s"  # seconds a step that the other ranks waited for the slowest
_SUPERVISOR = frozenset(
    {
        "queued",
        "preflight",
        "launched",
        "standby",
        "detected",
        "attempt_failed",
        "paused",
        "stopped",
    }
)


@dataclass(frozen=True, slots=True)
class Interval:
    """Wall time from `begin_s` to `end_s`, seconds since 1970, within an attempt."""

    begin_s: float
    end_s: float
    phase: Phase
    attempt: int


@dataclass(frozen=True, slots=True)
class Setback:
    """A failure, a pause or a rewind: since when nothing got on, and when the next step was done.

    `recovered_s` is None where no step followed.
    """

    began_s: float
    attempt: int
    cause: str
    machine: str | None = None
    rank: int | None = None
    reason: str = ""
    recovered_s: float | None = None


@dataclass(frozen=True)
class Timeline:
    """Intervals that tile the time from the first event to the last, and what went wrong.

    `stale_lines` were written by an attempt that a newer one had replaced, `broken_lines` are no
    events; both are left out. `clock_steps` counts lines that were older than those before them.
    """

    intervals: tuple[Interval, ...]
    setbacks: tuple[Setback, ...]
    attempts: int
    last_step: int
    stale_lines: int
    broken_lines: int
    clock_steps: int
    done: bool


def timeline(events: Iterable[Event], now_s: float | None = None) -> Timeline:
    """The timeline of a log's events in their order, to the last or, of a run not done, `now_s`."""
    walk = _Walk()
    for event in events:
        walk.take(event)
    walk.finish(now_s)
    return Timeline(
        tuple(walk.intervals),
        tuple(walk.setbacks),
        walk.attempt,
        walk.highest,
        walk.stale_lines,
        walk.broken_lines,
        walk.clocks.steps,
        walk.ended == "done",
    )


@dataclass
class _Clocks:
    """One time from several clocks: it never goes back.

    A writer's clock that falls behind is put forward for good, so that a clock set back by an hour
    does not hide an hour of training.
    """

    newest_s: float = -math.inf
    behind_s: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def time_s(self, writer: str, told_s: float) -> float:
        time_s = told_s + self.behind_s.get(writer, 0.0)
        if time_s < self.newest_s - CLOCK_TOLERANCE_S:
            self.behind_s[writer] = self.newest_s - told_s
            self.steps += 1
        self.newest_s = max(self.newest_s, time_s)
        return self.newest_s


class _Walk:
    """The state between two lines. Up to `at_s` all time is in `intervals`; since then: `phase`."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.setbacks: list[Setback] = []
        self.clocks = _Clocks()
        self.stale_lines = self.broken_lines = 0
        self.at_s = -math.inf
        self.attempt = -1
        self.phase = Phase.UNKNOWN
        self.ended: str | None = None  # how the newest attempt ended: failed, paused, ...
        self.detected: Setback | None = None
        self.step = self.highest = 0  # the last step told of in this attempt, and in any
        self._tellers: dict[str, Callable[[float, dict[str, Any]], None]] = {
            "queued": self._queued, "preflight": self._preflight, "launched": self._launched,
            "attempt": self._attempt, "first_step": self._first_step, "save": self._save,
            "rewind": self._rewind, "detected": self._detected, "stopped": self._stopped,
            "attempt_failed": self._attempt_failed, "paused": self._paused, "done": self._done,
        }  # fmt: skip

    def take(self, event: Event) -> None:
        if isinstance(event, BrokenLine):
            self.broken_lines += 1
            return
        if event.attempt < self.attempt:
            self.stale_lines += 1
            return
        kind = event.kind if isinstance(event, Notice) else ""
        writer = "supervisor" if kind in _SUPERVISOR else f"attempt {event.attempt}"
        time_s = self.clocks.time_s(writer, event.time_s)
        if self.attempt < 0:
            self.at_s = time_s
        if event.attempt > self.attempt:
            self._begin_attempt(time_s, event.attempt, kind)
        if isinstance(event, Metrics):
            self._metrics(time_s, event)
        elif isinstance(event, Artifact):
            self._measured(time_s)
        elif teller := self._tellers.get(kind):
            try:
                teller(time_s, dict(event.fields))
            except (TypeError, ValueError, OverflowError):  # a field that is not a number
                self.broken_lines += 1

    def finish(self, now_s: float | None) -> None:
        if self.attempt < 0:
            return
        end_s = self.clocks.newest_s
        if now_s is not None and self.ended != "done":
            end_s = max(end_s, now_s)
        self._fill(end_s, Phase.UNKNOWN if self.phase is Phase.STEP else self._idle(end_s))

    def _fill(self, to_s: float, phase: Phase) -> None:
        """The time up to `to_s` went to `phase`."""
        if to_s <= self.at_s:
            return
        last = self.intervals[-1] if self.intervals else None
        if last is not None and (last.phase, last.attempt) == (phase, self.attempt):
            self.intervals[-1] = replace(last, end_s=to_s)
        else:
            self.intervals.append(Interval(self.at_s, to_s, phase, self.attempt))
        self.at_s = to_s

    def _idle(self, to_s: float) -> Phase:
        """The phase up to `to_s`, also where an attempt has ended and none has begun."""
        if self.ended in ("failed", "paused"):
            return Phase.QUEUE if to_s - self.at_s <= UNATTENDED_S else Phase.STOPPED
        return self.phase

    def _begin_attempt(self, time_s: float, attempt: int, kind: str) -> None:
        if self.attempt >= 0 and self.ended is None:
            # A supervisor that lives tells how an attempt ended: this one died with it.
            reason = f"attempt {attempt} began, and no line told how this one ended"
            lost = Setback(self.at_s, self.attempt, "controller", reason=reason)
            self.setbacks.append(self.detected or lost)
            self.phase = Phase.STOPPED
        idle = self._idle(time_s)
        # Without the supervisor's lines, the time before an attempt's loop is mostly its launch.
        self._fill(time_s, Phase.INIT if idle is Phase.QUEUE and kind == "attempt" else idle)
        self.attempt, self.ended, self.detected = attempt, None, None
        self.phase = Phase.UNKNOWN

    def _turn(self, time_s: float, phase: Phase) -> None:
        """What was going on went on until now; from here on it is `phase`."""
        self._fill(time_s, self.phase)
        self.phase = phase

    def _queued(self, time_s: float, fields: dict[str, Any]) -> None:
        self._turn(time_s, Phase.QUEUE)

    def _preflight(self, time_s: float, fields: dict[str, Any]) -> None:
        """Told of at its begin and at its end, which says how long it took."""
        self._turn(time_s, Phase.QUEUE if "took_s" in fields else Phase.PREFLIGHT)

    def _launched(self, time_s: float, fields: dict[str, Any]) -> None:
        self._turn(time_s, Phase.INIT)

    def _attempt(self, time_s: float, fields: dict[str, Any]) -> None:
        self._turn(time_s, Phase.RESTORE)
        self.step = int(fields.get("start_step", 0))

    def _first_step(self, time_s: float, fields: dict[str, Any]) -> None:
        self._fill(time_s, Phase.RESTORE)
        self._recovered(time_s)

    def _recovered(self, time_s: float) -> None:
        """A step is done: whatever was wrong before is over."""
        self.phase = Phase.STEP
        for index in reversed(range(len(self.setbacks))):
            if self.setbacks[index].recovered_s is not None:
                break
            self.setbacks[index] = replace(self.setbacks[index], recovered_s=time_s)

    def _metrics(self, time_s: float, metrics: Metrics) -> None:
        values = metrics.values
        if STEP_S not in values and any(name.startswith("eval/") for name in values):
            self._measured(time_s)
            return
        steps = max(metrics.step - self.step, 1)
        span_s = time_s - self.at_s
        told_s = _told(values.get(STEP_S), steps)
        waited_s = _told(values.get(WAIT_S), steps) or 0.0
        if self.phase is not Phase.STEP and told_s is not None:
            # The first wait fills the loader's buffers: to begin is part of coming back.
            told_s, waited_s = told_s - min(waited_s, told_s), 0.0
        stepped_s = span_s if told_s is None else min(told_s, span_s)
        if self.phase is not Phase.STEP:
            self._fill(time_s - stepped_s, self.phase)
            self._recovered(time_s - stepped_s + stepped_s / steps)
        self._fill(time_s - stepped_s, Phase.UNKNOWN)
        # What was told from before `at_s` on was the beginning, and its waits lie there, too.
        wait_s = min(max(waited_s - ((told_s or 0.0) - stepped_s), 0.0), stepped_s)
        slow_s = min(_told(values.get(STRAGGLER_S), steps) or 0.0, stepped_s - wait_s)
        worked_s = stepped_s - wait_s - slow_s
        again = max(min(metrics.step, self.highest) - self.step, 0) / steps
        self._fill(self.at_s + worked_s * again, Phase.RECOMPUTE)
        self._fill(time_s - wait_s - slow_s, Phase.STEP)
        self._fill(time_s - slow_s, Phase.DATA_WAIT)
        self._fill(time_s, Phase.STRAGGLER if slow_s else Phase.STEP)
        self.step = metrics.step
        self.highest = max(self.highest, self.step)

    def _measured(self, time_s: float) -> None:
        """A number or a sample that took its time beside the steps."""
        if self.phase is Phase.STEP:
            self._fill(time_s, Phase.VALIDATION)

    def _save(self, time_s: float, fields: dict[str, Any]) -> None:
        # A save follows a report, so its stall is the beginning of the time since then; the line
        # itself may come when the writing in the background is over.
        stall_s = _told(fields.get("stall_s"), 1)
        self._fill(
            time_s if stall_s is None else min(self.at_s + stall_s, time_s), Phase.CHECKPOINT
        )

    def _rewind(self, time_s: float, fields: dict[str, Any]) -> None:
        reason = str(fields.get("reason", ""))
        self.setbacks.append(Setback(self.at_s, self.attempt, "divergence", reason=reason))
        self._fill(time_s, Phase.RESTORE)
        self.phase = Phase.RESTORE
        self.step = int(fields.get("to_step", 0))

    def _detected(self, time_s: float, fields: dict[str, Any]) -> None:
        told_s = float(fields.get("began_s", math.nan))
        shifted_s = told_s + self.clocks.behind_s.get("supervisor", 0.0)
        began_s = min(max(self.at_s, shifted_s), time_s)  # as old as the line before, if not told
        # No line tells of the steps up to then, and no later attempt takes them for done.
        self._fill(began_s, Phase.RECOMPUTE if self.phase is Phase.STEP else self.phase)
        self.detected = _setback(began_s, self.attempt, fields)
        self._fill(time_s, Phase.DETECT)
        self.phase = Phase.TEARDOWN

    def _attempt_failed(self, time_s: float, fields: dict[str, Any]) -> None:
        told = self.detected or Setback(self.at_s, self.attempt, "unknown")
        judged = _setback(told.began_s, self.attempt, fields, told)
        self.setbacks.append(judged)
        self._fill(time_s, Phase.DETECT if self.phase is Phase.STEP else self.phase)
        self.ended, self.phase = "failed", Phase.TEARDOWN

    def _paused(self, time_s: float, fields: dict[str, Any]) -> None:
        # A planned end, to leave a node or to grow: it saved before, so no step is lost.
        told = Setback(self.at_s, self.attempt, "paused")
        self.setbacks.append(_setback(self.at_s, self.attempt, fields, told))
        self._fill(time_s, Phase.TEARDOWN if self.phase is Phase.STEP else self.phase)
        self.ended, self.phase = "paused", Phase.TEARDOWN

    def _stopped(self, time_s: float, fields: dict[str, Any]) -> None:
        self._fill(time_s, Phase.RECOMPUTE if self.phase is Phase.STEP else self.phase)
        self.ended, self.phase = "stopped", Phase.STOPPED

    def _done(self, time_s: float, fields: dict[str, Any]) -> None:
        # What an attempt waits for at its end is its last checkpoint.
        self._fill(time_s, Phase.CHECKPOINT if self.phase is Phase.STEP else self.phase)
        self.ended, self.phase = "done", Phase.STOPPED


def _setback(
    began_s: float, attempt: int, fields: dict[str, Any], before: Setback | None = None
) -> Setback:
    """A setback as the fields of a line tell it; what they leave out, as told `before`."""
    told = before or Setback(began_s, attempt, "unknown")
    machine, rank = fields.get("machine"), fields.get("rank")
    return Setback(
        began_s,
        attempt,
        str(fields.get("cause", told.cause)),
        told.machine if machine is None else str(machine),
        told.rank if rank is None else int(rank),
        str(fields.get("reason", told.reason)),
    )


def _told(each_s: float | None, count: int) -> float | None:
    """`count` times `each_s`; None where no sensible time is told."""
    if each_s is None or not 0 <= float(each_s) < math.inf:
        return None
    return float(each_s) * count
