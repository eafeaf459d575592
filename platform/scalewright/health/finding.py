"""What a check found: one small record, the same for every check, pure data.

PASS and WARN let a node work. FAIL counts against it. UNKNOWN says that the check could not be
done: it never counts against a node by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How bad it is; UNKNOWN is not a degree of bad."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Remedy(StrEnum):
    """The least that cures it, in NVIDIA's order; INSPECT asks for a person."""

    NONE = "none"
    RESTART_APP = "restart_app"
    RESET_GPU = "reset_gpu"
    REBOOT = "reboot"
    REPLACE = "replace"
    INSPECT = "inspect"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's answer about a node, or about one of its GPUs (`gpu`, a UUID).

    `check` is dotted, `gpus.ecc`: the part before the dot names the child that read it. `time_s`
    is wall time, of the event where there was one and else of the look. `evidence` is plain JSON.
    A `shadow` finding is to be recorded and never acted upon.
    """

    check: str
    verdict: Verdict
    reason: str
    gpu: str | None = None
    remedy: Remedy = Remedy.NONE
    evidence: Mapping[str, Any] = field(default_factory=dict)
    time_s: float
    shadow: bool = False

    def record(self) -> dict[str, Any]:
        """The finding as plain JSON values; `from_record` reads it back."""
        return {
            "check": self.check,
            "verdict": str(self.verdict),
            "reason": self.reason,
            "gpu": self.gpu,
            "remedy": str(self.remedy),
            "evidence": dict(self.evidence),
            "time_s": self.time_s,
            "shadow": self.shadow,
        }


def from_record(record: Mapping[str, Any]) -> Finding:
    """The finding that `Finding.record` wrote; `KeyError` or `ValueError` if it is none."""
    return Finding(
        check=str(record["check"]),
        verdict=Verdict(record["verdict"]),
        reason=str(record["reason"]),
        gpu=record["gpu"],
        remedy=Remedy(record["remedy"]),
        evidence=dict(record["evidence"]),
        time_s=float(record["time_s"]),
        shadow=bool(record["shadow"]),
    )


def shadowed(findings: Iterable[Finding], shadow: frozenset[str]) -> tuple[Finding, ...]:
    """The findings, those named by `shadow` marked: a whole child (`gpus`) or one check of it."""
    return tuple(
        replace(one, shadow=True) if {one.check, one.check.partition(".")[0]} & shadow else one
        for one in findings
    )


def failures(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those that count against the node: FAIL, and not in shadow mode."""
    return tuple(one for one in findings if one.verdict is Verdict.FAIL and not one.shadow)
