"""What a run knows of its nodes, and where its next attempt goes."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalewright.cluster.admitting import Admission
from scalewright.cluster.blame import of_finding
from scalewright.cluster.classify import is_fatal
from scalewright.cluster.notes import Notes
from scalewright.cluster.placement import Node, choose_workers, machines
from scalewright.cluster.process import AttemptProcess
from scalewright.cluster.run_folder import RunStoppedError, checkpoint_step
from scalewright.command import REQUEUE
from scalewright.errors import ConfigError
from scalewright.events import EventLog
from scalewright.health.finding import from_record
from scalewright.health.xid import XidEvent
from scalewright.health.xid_history import History, remembered
from scalewright.train.run import RunConfig

logger = logging.getLogger(__name__)

SURVEY_S = 60.0
ASK_AGAIN_S = 1.0
# A cluster that has just been started is joined by its nodes meanwhile.
JOINING_S = 60.0


class Placing:
    """The nodes as they were found, and the placement that follows from it.

    `joined`: all nodes are there, so that none is waited for where the run never ran.
    """

    def __init__(self, config: RunConfig, folder: Path, notes: Notes, *, joined: bool) -> None:
        self.config, self.notes, self._folder = config, notes, folder
        self._joined = joined
        self.xids: History = {}
        self._admission = Admission(config, folder, notes)
        self._used: frozenset[str] = frozenset()
        self._placed_once = False
        self._findings: dict[tuple[str, str], Sequence[dict[str, Any]]] = {}

    def place(
        self, process: AttemptProcess, attempt: int, log: EventLog
    ) -> tuple[dict[str, int], list[Node]]:
        """Where to run, as soon as there are nodes enough that may be used."""
        ran = self._placed_once or checkpoint_step(self._folder) > 0
        wait_s = self.config.parallel.wait_for_nodes_s
        if not ran:
            wait_s = 0.0 if self._joined else min(wait_s, JOINING_S)
        end, told = time.monotonic() + wait_s, False
        while True:
            # What the nodes found on themselves is known from the attempt before, if there was one.
            process.tell("survey", check=not self._findings)
            states = process.wait_for("survey", SURVEY_S)["nodes"]
            self.note(states, attempt)
            self._admission.tell_apart(states)
            nodes = self.nodes(states)
            try:
                placed = choose_workers(self.config, nodes)
            except ConfigError as error:
                if time.monotonic() >= end:
                    if not ran:
                        raise
                    raise RunStoppedError(str(error), REQUEUE) from None
                if not told:
                    logger.warning("%s; waiting up to %.0f s for nodes", error, wait_s)
                    told = True
                time.sleep(ASK_AGAIN_S)
                continue
            restart = self._placed_once
            if self._admission.admit(process, nodes, placed, log, attempt, restart=restart):
                self._placed_once = True
                self._used = frozenset(machines(placed, nodes))
                return placed, nodes

    def note(self, states: Sequence[dict[str, Any]], attempt: int) -> None:
        """Hand what nodes newly found on themselves to the ledger, which decides what it means."""
        known = [state for state in states if state["machine"]]
        self._findings |= {_booted(s): s["findings"] for s in known if s["findings"]}
        if known:
            self.notes.fleet(len({state["machine"] for state in known}))
        for state in known:
            heard = (XidEvent(**each) for each in state["xids"])
            self.xids = remembered(self.xids, state["machine"], heard, time.time())
            for record in state["findings"]:
                finding = from_record(record)
                self.notes.add(of_finding(state["machine"], finding, self.config.name, attempt))

    def has_spare(self, states: Sequence[dict[str, Any]]) -> bool:
        """Whether a node that the run does not use could take the place of one that it does."""
        return any(
            node.slots and node.rank is not None and node.machine not in self._used
            for node in self.nodes(states)
        )

    def nodes(self, states: Sequence[dict[str, Any]]) -> list[Node]:
        """The nodes with what is known of each."""
        return [self._node(state) for state in states]

    def prepare(
        self,
        process: AttemptProcess | None,
        states: Sequence[dict[str, Any]],
        log: EventLog,
        attempt: int,
    ) -> None:
        """Have the process that stands by look at the nodes that the run does not use."""
        self._admission.ahead(process, self.nodes(states), log, attempt)

    def _node(self, state: dict[str, Any]) -> Node:
        machine = state["machine"] or state["node_id"]
        here = state["answers"] and state["leaves_s"] is None
        findings = map(from_record, self._findings.get(_booted(state), ()))
        broken = any(is_fatal(finding) for finding in findings)
        refused = self._admission.refused(*_booted(state)) if here else ""
        return Node(
            machine,
            state["node_id"],
            slots=state["slots"] if here else 0,
            rank=None if broken or refused else self.notes.rank(machine),
            used=machine in self._used,
            boot_id=state["boot_id"],
            refused=refused,
        )


def _booted(state: dict[str, Any]) -> tuple[str, str]:
    """A machine until it is booted again: what was found on it may be gone then."""
    return state["machine"], state["boot_id"]
