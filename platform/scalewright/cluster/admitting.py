"""Has nodes compared and measured before they are used, and remembers what came of it.

The attempt's process asks them (`preflight.py`), `admission.py` judges; here the answers are kept
over attempts, in a file over supervisors, and told to the ledger.
"""

import json
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from scalewright.cluster.admission import (
    Boot,
    Devices,
    Findings,
    Identity,
    Passed,
    boot,
    clones,
    devices_of_record,
    identity_findings,
    joined,
    measured_findings,
    pair_test_findings,
    passed_fully,
    passed_of_record,
    refusals,
    slow_ones,
    wanted,
)
from scalewright.cluster.blame import of_full_preflight, of_preflight
from scalewright.cluster.notes import Notes
from scalewright.cluster.placement import Node
from scalewright.cluster.process import AttemptProcess, LostError, raise_error
from scalewright.errors import ScalewrightError
from scalewright.events import EventLog
from scalewright.health.finding import Verdict
from scalewright.health.machine import Machine
from scalewright.health.pairs import PairTest
from scalewright.health.preflight import PreflightLimits
from scalewright.train.place import write_json
from scalewright.train.run import RunConfig

logger = logging.getLogger(__name__)

PREFLIGHT = "preflight.json"
IDENTIFY_S = 90.0
MEASURE_S = 1800.0  # the child has deadlines of its own for every part of it

# Yields orders to measure, takes what was measured, and returns what it means.
Measuring = Generator[dict[str, Any], dict[str, Any], Findings]


class Admission:
    """Which nodes a run uses: those it refused are refused until they are booted again."""

    def __init__(self, config: RunConfig, folder: Path, notes: Notes) -> None:
        self._run, self._health = config.name, config.health
        self._variables = config.parallel.environment_variables()
        self._shadow = frozenset(config.health.shadow)
        self._limits = PreflightLimits()
        self._path, self._notes = folder / PREFLIGHT, notes
        self._passed = read_passed(self._path)
        self._refused: dict[Boot, str] = {}
        self._admitted: set[Boot] = set()
        self._tags = count()
        self._ahead: tuple[Measuring, int] | None = None

    def refused(self, machine: str, boot_id: str) -> str:
        """Why a node is not to be used; empty if it may be."""
        return self._refused.get((machine, boot_id), "")

    def tell_apart(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Refuse nodes that have the serial of another machine."""
        there = [state for state in states if state["answers"] and self._health.preflight]
        machines = {
            s["node_id"]: Machine(s["machine"], "", s["boot_id"], s["source"]) for s in there
        }
        found = clones(machines, self._admitted, time.time())
        self._refuse(found, {n: (one.serial, one.boot_id) for n, one in machines.items()})

    def admit(
        self,
        process: AttemptProcess,
        nodes: Sequence[Node],
        placed: Mapping[str, int],
        log: EventLog,
        attempt: int,
        *,
        restart: bool,
    ) -> bool:
        """Whether the placement may be used as it is; else look at the nodes and place again."""
        self._ahead = None
        usable = self._usable(nodes)
        if not self._health.preflight or len(usable) < 2:  # nothing to compare with
            self._admitted |= {boot(usable[node]) for node in placed}
            return True
        begin_s = time.monotonic()
        log.event("preflight")
        before = set(self._refused)
        self._compare(process, usable, placed)
        due: dict[str, str] = {}
        if before == set(self._refused):
            here = [n for n in usable.values() if not restart or n.node_id in placed]
            due = self._due(usable, here, restart=restart)
            if due:
                self._drive(process, self._measure(due, usable, attempt))
        new = {one[0]: why for one, why in self._refused.items() if one not in before}
        log.event(
            "preflight",
            took_s=time.monotonic() - begin_s,
            measured=sorted(usable[node].machine for node in due),
            refused=new,
        )
        if due or new:
            return False  # time has passed, and nodes may be gone
        self._admitted |= {boot(usable[node]) for node in placed}
        return True

    def ahead(
        self,
        process: AttemptProcess | None,
        nodes: Sequence[Node],
        log: EventLog,
        attempt: int,
    ) -> None:
        """Have the process that stands by measure nodes that are not used; returns at once."""
        if process is None or not self._health.preflight:
            self._ahead = None
            return
        try:
            while word := process.hear(within_s=0.0):
                raise_error(word)
                self._take_ahead(process, word, log)
        except (LostError, ScalewrightError) as error:
            logger.warning("the process that stands by does not measure: %s", error)
            self._ahead = None
            return
        if self._ahead is None and process.said("joined"):
            usable = self._usable(nodes)
            due = self._due(usable, [n for n in usable.values() if not n.used], restart=False)
            if due:
                measuring = self._measure(due, usable, attempt)
                self._ahead = measuring, self._order(process, next(measuring))

    def _take_ahead(self, process: AttemptProcess, word: dict[str, Any], log: EventLog) -> None:
        if self._ahead is None or word["is"] != "measured" or word["tag"] != self._ahead[1]:
            return
        measuring, _ = self._ahead
        try:
            self._ahead = measuring, self._order(process, measuring.send(word))
        except StopIteration as end:
            self._ahead = None
            log.event("measured_ahead", nodes=len(end.value), refused=refusals(end.value))

    def _usable(self, nodes: Sequence[Node]) -> dict[str, Node]:
        return {
            node.node_id: node
            for node in nodes
            if node.slots and node.rank is not None and boot(node) not in self._refused
        }

    def _due(
        self, usable: Mapping[str, Node], nodes: Sequence[Node], *, restart: bool
    ) -> dict[str, str]:
        if len({node.machine for node in usable.values()}) < 2:
            return {}  # nothing to compare with
        cache_s = self._health.preflight_cache_s
        return wanted(nodes, self._passed, time.time(), cache_s, restart=restart)

    def _compare(
        self, process: AttemptProcess, usable: Mapping[str, Node], placed: Mapping[str, int]
    ) -> None:
        """Refuse nodes whose clock or software differs."""
        process.tell("identify", nodes=sorted(usable))
        told = process.wait_for("identified", IDENTIFY_S)["nodes"]
        identities = {node: Identity(**one) for node, one in told.items()}
        found = identity_findings(placed, identities, time.time(), self._shadow)
        self._refuse(found, {node: boot(one) for node, one in usable.items()})

    def _measure(
        self, due: Mapping[str, str], nodes: Mapping[str, Node], attempt: int
    ) -> Measuring:
        """Measure these nodes, those that seem slow once more, and remember what came of it."""
        told = yield {"nodes": dict(due), "again": False}
        measured = {node: devices_of_record(one) for node, one in told["measured"].items()}
        rounds = [[PairTest(*one) for one in each] for each in told["rounds"]]
        names = {nodes[node].machine for node in due}
        others = {m: one.devices for m, one in self._passed.items() if m not in names}
        shadow, limits = self._shadow, self._limits
        speeds = measured_findings(measured, others, limits, time.time(), shadow)
        if slow := slow_ones(speeds):
            told = yield {"nodes": {node: due[node] for node in slow}, "again": True}
            measured |= {node: devices_of_record(one) for node, one in told["measured"].items()}
            speeds = measured_findings(measured, others, limits, time.time(), shadow)
        pairs = pair_test_findings(sorted(due), rounds, time.time(), shadow) if rounds else {}
        found = joined(speeds, pairs)
        self._refuse(found, {node: boot(nodes[node]) for node in due})
        self._note(found, {node: nodes[node].machine for node in due}, measured, attempt)
        self._keep(due, nodes, measured)
        return found

    def _drive(self, process: AttemptProcess, measuring: Measuring) -> None:
        """Measure, and wait for it."""
        order = next(measuring)
        while True:
            tag = self._order(process, order)
            word: dict[str, Any] = {"tag": None}
            while word["tag"] != tag:
                word = process.wait_for("measured", MEASURE_S)
            try:
                order = measuring.send(word)
            except StopIteration:
                return

    def _order(self, process: AttemptProcess, order: dict[str, Any]) -> int:
        tag = next(self._tags)
        process.tell("measure", tag=tag, variables=self._variables, **order)
        return tag

    def _refuse(self, found: Findings, boots: Mapping[str, Boot]) -> None:
        for node, findings in found.items():
            for one in findings:
                if one.verdict in (Verdict.WARN, Verdict.FAIL):
                    shadow = " (only recorded)" if one.shadow else ""
                    told = (boots[node][0], one.check, one.verdict, one.reason)
                    logger.warning("%s: %s: %s: %s%s", *told, shadow)
        self._refused |= {boots[node]: why for node, why in refusals(found).items()}

    def _note(
        self,
        found: Findings,
        machines: Mapping[str, str],
        measured: Mapping[str, Mapping[str, Devices]],
        attempt: int,
    ) -> None:
        """Tell the ledger what it means."""
        known = [one.devices.get("full", ()) for one in self._passed.values()]
        fleet = [*known, *(one.get("full", ()) for one in measured.values())]
        for node, findings in found.items():
            machine = machines[node]
            for one in findings:
                self._notes.add(of_preflight(machine, one, self._run, attempt))
            if passed_fully(findings, measured[node].get("full", ()), fleet, self._limits):
                self._notes.add(of_full_preflight(machine, self._run, attempt, time.time()))

    def _keep(
        self,
        due: Mapping[str, str],
        nodes: Mapping[str, Node],
        measured: Mapping[str, Mapping[str, Devices]],
    ) -> None:
        """Remember those that are let in, also for a supervisor to come."""
        for node, budget in due.items():
            one = nodes[node]
            self._passed.pop(one.machine, None)
            if boot(one) not in self._refused:
                passed = Passed(time.time(), one.boot_id, budget, measured[node])
                self._passed[one.machine] = passed
        try:
            write_json(self._path, {name: asdict(one) for name, one in self._passed.items()})
        except OSError as error:
            logger.warning("%s: %s; a supervisor to come measures anew", self._path, error)


def read_passed(path: Path) -> dict[str, Passed]:
    """The machines that were measured before; none where the file is damaged."""
    try:
        return passed_of_record(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s); nodes are measured anew", path, error)
        return {}
