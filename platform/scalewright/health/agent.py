"""The health agent of a node: runs the checks all the time and always has the newest findings.

Each check has a thread and a child of its own, so that one that hangs delays no other and nobody
who asks. Judging is pure (`checks.py`); what is here decides when to ask, and what it means that
a child does not answer.
"""

import logging
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from scalewright.errors import ConfigError
from scalewright.health.checks import Check, Look
from scalewright.health.child import Answer, Child, Failed, Reply, Silent, ask_once
from scalewright.health.finding import Finding, Remedy, Verdict, shadowed

logger = logging.getLogger(__name__)

_FIRST = 4  # a first look may take so many deadlines: drivers initialise
_PATIENCE_S = 5.0  # for the threads to end


class Agent:
    """Runs `checks` at least each `period_s` in the background, and keeps what they found.

    `shadow` names checks that are only to be recorded. Every method may be called by any thread,
    and none but `wait` and `close` waits for a check.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        period_s: float = 15.0,
        shadow: frozenset[str] = frozenset(),
    ) -> None:
        if period_s <= 0:
            raise ConfigError(f"period_s = {period_s} of the health agent; more than 0")
        self._stop = threading.Event()
        self._lanes = [
            _Lane(check, min(check.period_s or period_s, period_s), self._stop) for check in checks
        ]
        self._shadow = shadow
        for lane in self._lanes:
            lane.thread.start()

    def look(self) -> tuple[Finding, ...]:
        """The newest finding of each check, and of each GPU it is about; never waits."""
        findings = tuple(one for lane in self._lanes for one in lane.findings)
        return shadowed(findings, self._shadow)

    def wait(self, timeout_s: float) -> bool:
        """Wait until every check was tried once; False if the time ran out before."""
        deadline = time.monotonic() + timeout_s
        return all(lane.tried.wait(max(0, deadline - time.monotonic())) for lane in self._lanes)

    def children(self) -> tuple[int, ...]:
        """The process numbers of the children there are now."""
        return tuple(lane.child.pid for lane in self._lanes if lane.child.pid is not None)

    def close(self) -> tuple[int, ...]:
        """End threads and children; returns those children that not even SIGKILL ended (state D).

        Closing twice is harmless.
        """
        self._stop.set()
        deadline = time.monotonic() + _PATIENCE_S
        for lane in self._lanes:
            lane.thread.join(max(0, deadline - time.monotonic()))
        left = self.children()
        if left:
            logger.warning("health checks hang in the kernel and cannot be killed: %s", left)
        return left

    def __enter__(self) -> "Agent":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Lane:
    """One check, its child and its thread. `findings` is replaced as a whole, never changed."""

    def __init__(self, check: Check, period_s: float, stop: threading.Event) -> None:
        self.check = check
        self.child = Child(check.name)
        self.findings: tuple[Finding, ...] = ()
        self.tried = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"health-{check.name}", daemon=True)
        self._period_s = period_s
        self._stop = stop
        self._past: Any = None
        self._silent = 0

    def _run(self) -> None:
        """Ask, judge, publish, wait; the child is this thread's and ends with it."""
        deadline_s = _FIRST * self.check.deadline_s
        try:
            while not self._stop.is_set():
                begin = time.monotonic()
                answer = self.child.ask(self.check.question, deadline_s, self._stop)
                if self._stop.is_set():
                    return
                self._publish(answer)
                self.tried.set()
                deadline_s = self.check.deadline_s
                self._stop.wait(max(0.0, begin + self._period_s - time.monotonic()))
        finally:
            self.child.close()

    def _publish(self, answer: Answer) -> None:
        now_s = time.time()
        if isinstance(answer, Reply):
            self._silent = 0
            look = Look(answer.value, now_s, time.monotonic())
            self._past, findings = self.check.judge(self._past, look)
            self.findings = findings
            return
        self._silent = self._silent + 1 if isinstance(answer, Silent) else 0
        silence = self.check.silence
        proven = silence is not None and self._silent >= silence.times and self._others_answer()
        unanswered = judge_unanswered(self.check, answer, self._silent, proven, now_s)
        # What was wrong before stays said, with its own time; what was well is not known any more.
        worse = (Verdict.WARN, Verdict.FAIL)
        kept = tuple(
            one for one in self.findings if one.verdict in worse and one.check != self.check.name
        )
        self.findings = (*kept, unanswered)

    def _others_answer(self) -> bool:
        """Whether a new child that reads nothing answers in the time that this one had.

        If not, the machine is too busy or stopped, and nothing is proven about the reading.
        """
        return isinstance(ask_once("echo", {}, self.check.deadline_s), Reply)


def judge_unanswered(
    check: Check, answer: Silent | Failed, in_a_row: int, proven: bool, time_s: float
) -> Finding:
    """What it says that a check's child gave no answer; pure.

    `in_a_row`: hangs up to this one. `proven`: there were enough of them, and another child
    answered meanwhile. Only then is it a failure; by itself no answer is UNKNOWN.
    """
    verdict, remedy = Verdict.UNKNOWN, Remedy.NONE
    if isinstance(answer, Failed):
        reason = answer.reason
    else:
        reason = f"did not answer in {answer.deadline_s:g} s"
        if in_a_row > 1:
            reason += f", {in_a_row} times in a row"
        if answer.stuck:
            reason += "; its child cannot be killed"
        if proven and check.silence is not None:
            verdict, remedy = Verdict.FAIL, check.silence.remedy
            reason = f"{check.silence.reason}: {reason}, and a child that reads nothing did"
    return Finding(
        check=check.name,
        verdict=verdict,
        reason=reason,
        remedy=remedy,
        evidence={"silent_in_a_row": in_a_row, **check.question},
        time_s=time_s,
    )
