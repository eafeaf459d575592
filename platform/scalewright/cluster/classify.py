"""What ended an attempt: the first error in time that is not a consequence of another's.

Pure: judged from what the ranks said last, what their nodes found, and which of them are gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scalewright.health.finding import Finding, Remedy, Verdict

Cause = Literal[
    "refused", "exception", "oom", "process", "hang", "node", "gpu", "storage", "divergence",
    "corruption", "placement", "controller", "preempted",
]  # fmt: skip

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
    "watchdog caught collective operation timeout",
    "store is closed",
)

# Names of the errors that say: this rank's process is gone, or does not answer.
_DEATHS = frozenset(
    {
        "RayActorError",
        "WorkerCrashedError",
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
        "ProcessGone",
    }
)
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
_OUT_OF_MEMORY_TEXTS = ("out of memory", "running low on memory")
_GPU_TEXTS = ("cuda error", "xid", "uncorrectable ecc", "nvlink", "device-side hardware error")
# A fault that a node found explains an error that came so long after it, or so shortly before.
_BEFORE_S, _AFTER_S = 60.0, 10.0
_NAMED = 4  # machines in a message

# Errors of the platform that have a cause of their own; any other of them is `refused`.
_CAUSES: Mapping[str, Cause] = {
    "CorruptionError": "corruption",
    "DivergedError": "divergence",
    "FencedError": "controller",
    "StorageError": "storage",
}


@dataclass(frozen=True)
class RankError:
    """The end of one rank: `kinds` are the names of the error's class and its bases.

    `time_s` is wall time; `exit_code` that of an error of the platform, None of any other;
    `culprit` the rank that the error itself names, with so much
    `confidence`.
    """

    rank: int
    kinds: tuple[str, ...]
    message: str
    time_s: float
    machine: str | None = None
    exit_code: int | None = None
    culprit: int | None = None
    confidence: float = 1.0


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, and on whom it is blamed: nobody, a rank, its machine, one GPU.

    refused: the platform stopped with a message for the user; restarting cannot help.
    exception, oom: the run's own code or size; never a machine's fault. process: a rank died.
    hang: ranks did not move on. node: a machine is gone or silent. gpu: a machine's hardware was
    found broken. storage, divergence, corruption: as told by the platform. placement: too few
    workers fit the cluster. controller: Ray's side failed. preempted: its node was asked back.
    """

    cause: Cause
    message: str
    rank: int | None = None
    machine: str | None = None
    gpu: str | None = None
    confidence: float = 1.0
    exit_code: int = 1
    step: int | None = None

    @property
    def signature(self) -> str:
        """Equal for two failures of the same kind at the same place."""
        return f"{self.cause}: {self.message.strip().splitlines()[-1] if self.message else ''}"


def classify(
    errors: Sequence[RankError],
    findings: Mapping[str, Iterable[Finding]] | None = None,
    lost: frozenset[str] = frozenset(),
) -> Failure:
    """Judge the ends of an attempt's ranks.

    `findings`: what the nodes found, by machine. `lost`: machines that are gone or do not answer.
    """
    in_time = sorted(errors, key=lambda error: error.time_s)
    for error in in_time:
        if error.exit_code is not None:
            return _of_platform(error)
    if broken := _hardware(in_time, findings or {}):
        return broken
    if lost:
        return _lost(lost, in_time)
    if not errors:
        return Failure("controller", "the worker group ended without an error of a worker")
    return _of_ranks(in_time)


def _lost(lost: frozenset[str], errors: Sequence[RankError]) -> Failure:
    """One machine that is gone is blamed; several at once have something else in common."""
    if len(lost) > 1:
        names = ", ".join(sorted(lost)[:_NAMED])
        return Failure("node", f"{len(lost)} machines at once are gone or do not answer: {names}")
    (machine,) = lost
    rank = next((error.rank for error in errors if error.machine == machine), None)
    return Failure("node", f"machine {machine} is gone or does not answer", rank, machine)


def _of_platform(error: RankError) -> Failure:
    cause: Cause = next((_CAUSES[kind] for kind in error.kinds if kind in _CAUSES), "refused")
    # Every rank raises where bits differ, and names the wrong one if that is known.
    rank = error.culprit if cause == "corruption" else error.rank
    machine = error.machine if rank == error.rank else None
    return Failure(
        cause, error.message, rank, machine, confidence=error.confidence,
        exit_code=error.exit_code or 1,
    )  # fmt: skip


def _hardware(
    errors: Sequence[RankError], findings: Mapping[str, Iterable[Finding]]
) -> Failure | None:
    """A fault that a machine of the attempt found on itself around the first error."""
    first_s = errors[0].time_s if errors else None
    candidates = [
        (finding.time_s, machine, finding)
        for machine, found in findings.items()
        for finding in found
        if is_fatal(finding)
        and (first_s is None or first_s - _BEFORE_S <= finding.time_s <= first_s + _AFTER_S)
    ]
    if not candidates:
        return None
    _, machine, finding = min(candidates, key=lambda candidate: candidate[0])
    ranks = [error.rank for error in errors if error.machine == machine]
    cause: Cause = "gpu" if finding.gpu is not None else "node"
    text = f"{finding.check}: {finding.reason}"
    return Failure(cause, text, ranks[0] if ranks else None, machine, finding.gpu)


def is_fatal(finding: Finding) -> bool:
    """Whether a finding alone ends an attempt: a sure fault that a restart of the job leaves."""
    return (
        finding.verdict is Verdict.FAIL
        and not finding.shadow
        and finding.remedy in (Remedy.RESET_GPU, Remedy.REBOOT, Remedy.REPLACE)
    )


def _of_ranks(errors: Sequence[RankError]) -> Failure:
    causes = [error for error in errors if not _is_consequence(error)]
    if not causes:
        first = errors[0]
        text = f"{_text(first)} (every rank speaks of another; none says what happened to it)"
        return Failure("process", text, None, confidence=0.3)
    for error in causes:
        if _is_out_of_memory(error):
            return Failure("oom", _text(error), error.rank)
    # A process that is gone left no word of when it went: those it left behind spoke later.
    dead = [error for error in causes if _DEATHS & set(error.kinds)]
    if dead and not any(_says_more(error) for error in causes):
        return Failure("process", _text(dead[0]), dead[0].rank, dead[0].machine)
    first = next(error for error in causes if _says_more(error) or error in dead)
    cause: Cause = "gpu" if _is_of_gpu(first) else "exception"
    blamed = first.machine if cause == "gpu" else None
    confidence = 0.6 if cause == "gpu" else 1.0  # an illegal address may be the code's own
    return Failure(cause, _text(first), first.rank, blamed, confidence=confidence)


def _says_more(error: RankError) -> bool:
    return not (_DEATHS & set(error.kinds))


def _is_consequence(error: RankError) -> bool:
    text = error.message.lower()
    return not (_DEATHS & set(error.kinds)) and any(phrase in text for phrase in _CONSEQUENCES)


def _is_out_of_memory(error: RankError) -> bool:
    # Ray's word of any death names the kernel's out-of-memory killer among what it may have been.
    text = error.message.lower().partition("some common causes")[0]
    return any(kind in _OUT_OF_MEMORY for kind in error.kinds) or any(
        phrase in text for phrase in _OUT_OF_MEMORY_TEXTS
    )


def _is_of_gpu(error: RankError) -> bool:
    return any(phrase in error.message.lower() for phrase in _GPU_TEXTS)


def _text(error: RankError) -> str:
    return f"{error.kinds[0]}: {error.message}" if error.kinds else error.message
