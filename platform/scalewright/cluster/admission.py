"""Which nodes a run may use: what must be measured, and what the answers mean. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalewright.cluster.placement import Node
from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Remedy, Verdict, shadowed
from scalewright.health.fingerprint import Fingerprint, drifted
from scalewright.health.host_judge import judge_clock
from scalewright.health.machine import Machine, check_distinct
from scalewright.health.pairs import PairTest
from scalewright.health.pairs import findings as pair_findings
from scalewright.health.preflight import (
    LastPreflight,
    Measurement,
    PreflightLimits,
    compare,
    due,
)

PROBATION = 2  # the rank of a node that is used only without a spare

Devices = tuple[Measurement, ...]
Boot = tuple[str, str]  # a machine until it is booted again


@dataclass(frozen=True)
class Passed:
    """A machine that was measured and let in, when, and how thoroughly.

    `devices` are its results by budget, empty where it gave no answer: that is known, too, and not
    asked for again.
    """

    time_s: float
    boot_id: str
    budget: str
    devices: Mapping[str, Devices]


@dataclass(frozen=True)
class Identity:
    """What a node said of itself; None where it gave no answer in time."""

    clock_offset_s: float | None = None
    fingerprint: Fingerprint | None = None


Findings = Mapping[str, tuple[Finding, ...]]  # by node id


def boot(node: Node) -> Boot:
    return node.machine, node.boot_id


def wanted(
    nodes: Iterable[Node],
    passed: Mapping[str, Passed],
    now_s: float,
    cache_s: float,
    *,
    restart: bool,
) -> dict[str, str]:
    """How thoroughly each of these nodes must be measured, by node id; none of those that need not.

    A node with a history is measured fully. In a restart what is known of this boot is enough, but
    for a node on probation: a restart is to be fast. Of nodes on one machine one is measured.
    """
    budgets: dict[str, str] = {}
    seen: set[str] = set()
    for node in nodes:
        last = passed.get(node.machine)
        here = last is not None and last.boot_id == node.boot_id
        enough = restart and here and node.rank != PROBATION
        budget = "full" if node.rank else "light"
        known = None if last is None else LastPreflight(last.time_s, last.boot_id, last.budget)
        if node.machine in seen or enough or not due(known, node.boot_id, now_s, budget, cache_s):
            continue
        seen.add(node.machine)
        budgets[node.node_id] = budget
    return budgets


def clones(machines: Mapping[str, Machine], admitted: Collection[Boot], time_s: float) -> Findings:
    """The nodes, by node id, that share a serial though they were booted apart.

    One that was `admitted` already stays: it is the other that came.
    """
    wrong: dict[str, tuple[Finding, ...]] = {}
    for serial in sorted({one.serial for one in machines.values()}):
        alike = {node: one for node, one in machines.items() if one.serial == serial}
        try:
            check_distinct(alike)
        except ConfigError as error:
            told = Finding(
                check="machine",
                verdict=Verdict.FAIL,
                reason=str(error),
                remedy=Remedy.INSPECT,
                time_s=time_s,
            )
            new = [node for node, one in alike.items() if (serial, one.boot_id) not in admitted]
            wrong |= dict.fromkeys(new, (told,))
    return wrong


def identity_findings(
    placed: Iterable[str], told: Mapping[str, Identity], time_s: float, shadow: frozenset[str]
) -> Findings:
    """What the clocks and fingerprints of the placed nodes mean; the others have a vote."""
    here = {node: told.get(node, Identity()) for node in placed}
    prints = {n: one.fingerprint for n, one in told.items() if one.fingerprint is not None}
    mine = {node: each for node, each in prints.items() if node in here}
    spares = {node: each for node, each in prints.items() if node not in here}
    wrong = drifted(mine, time_s, spares)
    usual_s = _usual_clock_s([one.clock_offset_s for one in told.values()])
    found: dict[str, tuple[Finding, ...]] = {}
    for node, one in here.items():
        match one.clock_offset_s:
            case None:
                clock = _unknown("clock", "no answer to a call", time_s)
            case offset_s:
                clock = judge_clock(offset_s - usual_s, time_s)
        same = Finding(
            check="fingerprint", verdict=Verdict.PASS, reason="as the others'", time_s=time_s
        )
        if one.fingerprint is None:
            same = _unknown("fingerprint", "the node could not tell in time", time_s)
        found[node] = shadowed((clock, wrong.get(node, same)), shadow)
    return found


def measured_findings(
    measured: Mapping[str, Mapping[str, Devices]],
    others: Mapping[str, Mapping[str, Devices]],
    limits: PreflightLimits,
    time_s: float,
    shadow: frozenset[str],
) -> Findings:
    """What the measurements of nodes mean, beside each other and those known of `others`.

    Each is the devices of a node by budget; budgets are compared apart.
    """
    found: dict[str, tuple[Finding, ...]] = {}
    for node, results in measured.items():
        if not any(results.values()):
            found[node] = (_unknown("preflight.speed", "it was not measured in time", time_s),)
    for budget in ("light", "full"):
        known = {f"known {node}": each[budget] for node, each in others.items() if budget in each}
        here = {node: each[budget] for node, each in measured.items() if each.get(budget)}
        for node, findings in compare(known | here, limits, time_s).items():
            if node in here:
                found[node] = (*found.get(node, ()), *_named(findings, budget))
    return {node: shadowed(findings, shadow) for node, findings in found.items()}


def slow_ones(findings: Findings) -> list[str]:
    """Nodes that failed by speed alone: worth a second measurement, as noise also slows."""
    return [
        node
        for node, found in findings.items()
        if {one.check for one in found if _counts(one)} == {"preflight.speed"}
    ]


def pair_test_findings(
    nodes: Sequence[str],
    rounds: Sequence[Sequence[PairTest]],
    time_s: float,
    shadow: frozenset[str],
) -> Findings:
    """What tests of two nodes at a time mean."""
    found = pair_findings(nodes, rounds, time_s)
    return {node: shadowed((one,), shadow) for node, one in found.items()}


def refusals(findings: Findings) -> dict[str, str]:
    """Nodes that must not be used, each with why."""
    told = {node: [one for one in found if _counts(one)] for node, found in findings.items()}
    return {
        node: "; ".join(f"{one.check}: {one.reason}" for one in wrong)
        for node, wrong in told.items()
        if wrong
    }


def passed_fully(
    findings: Iterable[Finding], full: Devices, fleet: Iterable[Devices], limits: PreflightLimits
) -> bool:
    """Whether a full measurement proves a node well: all is as it should be, beside enough others.

    `full`: the node's devices, `fleet`: all that were measured fully, the node's own with them.
    """
    models = [one.model for devices in fleet for one in devices]
    compared = all(models.count(one.model) >= limits.min_devices for one in full)
    well = all(one.verdict in (Verdict.PASS, Verdict.UNKNOWN) for one in findings)
    return bool(full) and compared and well


def joined(*findings: Findings) -> dict[str, tuple[Finding, ...]]:
    """All findings of each node."""
    nodes = {node for each in findings for node in each}
    return {node: tuple(one for each in findings for one in each.get(node, ())) for node in nodes}


def devices_of_record(record: Mapping[str, Any]) -> dict[str, Devices]:
    """Measurements by budget, out of JSON values."""
    return {
        budget: tuple(Measurement(**device) for device in told) for budget, told in record.items()
    }


def passed_of_record(record: Mapping[str, Any]) -> dict[str, Passed]:
    """The machines that a file of `asdict(Passed)` holds; raises whatever damage leads to."""
    return {
        str(machine): Passed(
            float(one["time_s"]),
            str(one["boot_id"]),
            str(one["budget"]),
            devices_of_record(one["devices"]),
        )
        for machine, one in record.items()
    }


def _counts(finding: Finding) -> bool:
    return finding.verdict is Verdict.FAIL and not finding.shadow


def _named(findings: Iterable[Finding], budget: str) -> tuple[Finding, ...]:
    return tuple(replace(one, evidence={**one.evidence, "budget": budget}) for one in findings)


def _usual_clock_s(offsets_s: Iterable[float | None]) -> float:
    """The middle of all clocks, this process's too; of two in the middle the one nearer to it."""
    clocks = sorted([0.0, *(each for each in offsets_s if each is not None)])
    middle = clocks[(len(clocks) - 1) // 2 : len(clocks) // 2 + 1]
    return min(middle, key=abs)


def _unknown(check: str, reason: str, time_s: float) -> Finding:
    return Finding(
        check=check, verdict=Verdict.UNKNOWN, reason=reason, remedy=Remedy.NONE, time_s=time_s
    )
