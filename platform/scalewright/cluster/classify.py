"""What ended an attempt: the first error that is not a consequence of another's death."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scalewright.errors import ScalewrightError

Cause = Literal["refused", "exception", "process", "placement", "controller"]

# What the surviving ranks say when a peer is gone.
_CONSEQUENCES = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "timed out waiting",
    "remote process exited",
    "nccl communicator was aborted",
)

# Ray's errors for a worker that is gone or does not answer, by name: this file needs no Ray.
_DEATHS = frozenset(
    {
        "RayActorError",
        "WorkerCrashedError",
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
    }
)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended: the cause, the rank it began on if known, and what was said.

    refused: the platform itself stopped with a message for the user; restarting cannot help.
    exception: code of a worker raised. process: a worker died. placement: too few workers fit the
    cluster. controller: Ray's side failed.
    """

    cause: Cause
    message: str
    rank: int | None = None
    exit_code: int = 1

    @property
    def signature(self) -> str:
        """Equal for two failures of the same kind at the same place."""
        return f"{self.cause}: {self.message.strip().splitlines()[-1] if self.message else ''}"


def classify(failures: Mapping[int, BaseException]) -> Failure:
    """Judge the errors of one worker group by rank, as they were raised in the workers."""
    if not failures:
        return Failure("controller", "the worker group ended without an error of a worker")
    for rank, error in failures.items():
        if isinstance(error, ScalewrightError):
            return Failure("refused", str(error), rank, error.exit_code)
    causes = {rank: error for rank, error in failures.items() if not _is_consequence(error)}
    dead = {rank: error for rank, error in causes.items() if _is_death(error)}
    if dead:
        rank, error = next(iter(dead.items()))
        return Failure("process", _text(error), rank)
    rank, error = next(iter((causes or failures).items()))
    return Failure("exception" if causes else "process", _text(error), rank)


def _is_consequence(error: BaseException) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in _CONSEQUENCES)


def _is_death(error: BaseException) -> bool:
    return bool(_DEATHS & {kind.__name__ for kind in type(error).__mro__})


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
