"""Whether to try again after a failure. Pure: decided from the history, tested without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from scalewright.cluster.classify import Failure


@dataclass(frozen=True)
class Ended:
    """An attempt that failed, and the newest checkpoint's step by then (0 without one)."""

    failure: Failure
    checkpoint_step: int


@dataclass(frozen=True)
class Restart:
    """Begin another attempt after `delay_s`."""

    delay_s: float


@dataclass(frozen=True)
class Stop:
    """Give up, with the reason and the exit code of the job."""

    reason: str
    exit_code: int


# Back-off of the first, second, third and every later restart in a row without progress.
_DELAYS_S = (0.0, 5.0, 15.0, 30.0)


def decide(history: Sequence[Ended], max_restarts: int) -> Restart | Stop:
    """What follows the last of `history`: attempts of this driver, oldest first.

    Restarts are counted since the last new checkpoint: a run that gets on may fail for months.
    """
    failure = history[-1].failure
    if failure.cause == "refused":
        return Stop(failure.message, failure.exit_code)
    stuck = _without_progress(history)
    if len(stuck) >= 2 and failure.cause == "exception" and _same_error(stuck[-2:]):
        return Stop(f"the same error twice at the same checkpoint: {failure.message}", 1)
    if len(stuck) > max_restarts:
        return Stop(
            f"{len(stuck)} failures without a new checkpoint, more than parallel.max_restarts = "
            f"{max_restarts}; the last: {failure.message}",
            1,
        )
    return Restart(_DELAYS_S[min(len(stuck) - 1, len(_DELAYS_S) - 1)])


def _without_progress(history: Sequence[Ended]) -> list[Ended]:
    last = history[-1].checkpoint_step
    return [ended for ended in history if ended.checkpoint_step == last]


def _same_error(pair: Sequence[Ended]) -> bool:
    return pair[0].failure.signature == pair[1].failure.signature
