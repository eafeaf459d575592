"""What a failure or a finding says about a machine, for the ledger. Pure."""

from collections.abc import Mapping
from typing import Any

from scalewright.cluster.classify import Cause, Failure, is_fatal
from scalewright.cluster.evidence import Evidence, EvidenceKind
from scalewright.health.finding import Finding, Verdict
from scalewright.health.straggler import Action

# A cause that is not here is not a machine's: the run's own, storage's, Ray's, or nobody's.
_KINDS: Mapping[Cause, EvidenceKind] = {
    "process": "process",
    "hang": "hang",
    "node": "death",
    "gpu": "hardware",
    "corruption": "corruption",
}


def of_failure(failure: Failure, run: str, attempt: int, time_s: float) -> Evidence | None:
    """The evidence that the end of an attempt is; None where it is none against a machine."""
    kind = _KINDS.get(failure.cause)
    if kind is None or failure.machine is None:
        return None
    return Evidence(
        machine=failure.machine,
        gpu=failure.gpu,
        kind=kind,
        reason=failure.signature,
        time_s=time_s,
        confidence=failure.confidence,
        run=run,
        attempt=attempt,
        detail={} if failure.rank is None else {"rank": failure.rank},
    )


def of_finding(machine: str, finding: Finding, run: str, attempt: int) -> Evidence | None:
    """The same of what a node found on itself; a shadowed or passed check is no evidence."""
    if finding.verdict is not Verdict.FAIL or finding.shadow:
        return None
    return Evidence(
        machine=machine,
        gpu=finding.gpu,
        kind="hardware" if is_fatal(finding) else "warning",
        reason=f"{finding.check}: {finding.reason}",
        time_s=finding.time_s,
        run=run,
        attempt=attempt,
        detail=dict(finding.evidence),
    )


def of_preflight(machine: str, finding: Finding, run: str, attempt: int) -> Evidence | None:
    """The same of a measurement or a test with another node.

    A clock, a serial or software of its own is no fault of a machine, and no evidence.
    """
    failed = finding.verdict is Verdict.FAIL and not finding.shadow
    if not failed or not finding.check.startswith("preflight."):
        return None
    return Evidence(
        machine=machine,
        gpu=finding.gpu,
        kind="preflight_failed",
        reason=f"{finding.check}: {finding.reason}",
        time_s=finding.time_s,
        run=run,
        attempt=attempt,
        detail=dict(finding.evidence),
    )


def of_full_preflight(machine: str, run: str, attempt: int, time_s: float) -> Evidence:
    """Good evidence: all of a machine was measured, and is as it should be."""
    return Evidence(
        machine=machine,
        gpu=None,
        kind="full_preflight_passed",
        reason="full preflight: passed",
        time_s=time_s,
        run=run,
        attempt=attempt,
    )


def of_slow(word: Mapping[str, Any], run: str, attempt: int, time_s: float) -> Evidence | None:
    """A rank that is slower than its peers, once its machine was measured and is slow, too."""
    if word["machine"] is None or word["action"] == Action.TELL:
        return None
    return Evidence(
        machine=word["machine"],
        gpu=None,
        kind="straggler",
        reason=f"rank {word['rank']} works at {word['speed']:.0%} of its peers' speed",
        time_s=time_s,
        run=run,
        attempt=attempt,
        detail={"measured": word["measured"]},
    )
