"""Whether to try again after a failure. Pure: decided from the history, tested without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalewright.cluster.classify import Cause, Failure
from scalewright.command import REQUEUE

DO_NOT_REQUEUE = 93  # the run needs a human; again would end in the same way

DAY_S = 86_400.0

# How often a cause may end an attempt within a day; those not named may as often as they come:
# the machine is replaced, or the run shrinks.
BUDGETS: Mapping[Cause, int] = {
    "process": 5,
    "hang": 3,
    "storage": 6,
    "corruption": 3,
    "controller": 5,
}
# Of the run's own making: the same again would come of it.
_OWN: frozenset[Cause] = frozenset({"exception", "oom"})
# A machine's fault, which is left behind with the machine.
_MACHINES: frozenset[Cause] = frozenset({"node", "gpu"})
# Not the run's doing, and over by itself.
_FREE: frozenset[Cause] = frozenset({"preempted", "placement"})

# Back-off of the first, second, third and every later restart in a row without progress.
_DELAYS_S = (0.0, 10.0, 30.0, 120.0)


@dataclass(frozen=True)
class Ended:
    """An attempt that failed: when (wall time), and the newest verified checkpoint's step by then.

    `checkpoint_step` is 0 without one.
    """

    failure: Failure
    checkpoint_step: int
    time_s: float = 0.0


@dataclass(frozen=True)
class Restart:
    """Begin another attempt after `delay_s`."""

    delay_s: float


@dataclass(frozen=True)
class Stop:
    """Give up, with the reason and the exit code of the job."""

    reason: str
    exit_code: int


def decide(history: Sequence[Ended], max_restarts: int) -> Restart | Stop:
    """What follows the last of `history`: attempts of this run, oldest first.

    Restarts are counted since the last new checkpoint: a run that gets on may fail for months.
    """
    failure = history[-1].failure
    if failure.cause in ("refused", "divergence"):
        return Stop(failure.message, 2 if failure.exit_code == 2 else DO_NOT_REQUEUE)
    counted = [ended for ended in history if ended.failure.cause not in _FREE]
    if failure.cause in _FREE:
        return Restart(0.0)
    stuck = _without_progress(counted)
    if failure.cause in _OWN and len(stuck) >= 2 and _same_error(stuck[-2:]):
        return Stop(f"the same error twice at the same place: {failure.message}", DO_NOT_REQUEUE)
    if len(stuck) > max_restarts:
        return Stop(
            f"{len(stuck)} failures without a new checkpoint, more than parallel.max_restarts = "
            f"{max_restarts}; the last: {failure.message}",
            DO_NOT_REQUEUE,
        )
    if (spent := _within_a_day(counted)) > (budget := BUDGETS.get(failure.cause, len(counted))):
        return Stop(
            f"{spent} failures of the kind {failure.cause!r} within a day; {budget} are allowed. "
            f"The last: {failure.message}",
            REQUEUE,
        )
    return Restart(_DELAYS_S[min(len(stuck) - 1, len(_DELAYS_S) - 1)])


def _without_progress(history: Sequence[Ended]) -> list[Ended]:
    """Failures since the last new checkpoint.

    Machines that break one after the other count as one failure: each is replaced, and in a large
    fleet they do so within one interval. A machine that fails again counts again.
    """
    last = history[-1].checkpoint_step
    found: list[Ended] = []
    broken: set[str | None] = set()
    for ended in (each for each in history if each.checkpoint_step == last):
        failure = ended.failure
        if failure.cause in _MACHINES and broken and failure.machine not in broken:
            broken.add(failure.machine)
            continue
        if failure.cause in _MACHINES:
            broken.add(failure.machine)
        found.append(ended)
    return found


def _within_a_day(history: Sequence[Ended]) -> int:
    last = history[-1]
    return sum(
        ended.failure.cause == last.failure.cause and ended.time_s > last.time_s - DAY_S
        for ended in history
    )


def _same_error(pair: Sequence[Ended]) -> bool:
    return pair[0].failure.signature == pair[1].failure.signature
