"""What the cluster has now: nodes that answer, what they hold, which of them are to leave.

Ray calls a node alive for up to 20 s after it died, so each is asked directly.
"""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import ray

from scalewright.cluster.agents import Agents, Eyes, Report
from scalewright.health.xid import XidEvent

CONNECT_S = 1.5  # more than the second after which a lost first packet is sent again
ANSWER_S = 2.0
# An agent that starts imports first; on a busy machine that takes its time.
START_S = 20.0


@dataclass(frozen=True)
class NodeState:
    """A node as it is now. `leaves_s`: wall time at which it is asked back, None if it is not.

    `source`: where the machine's name is from; `slots`: workers it can hold; `answers`: whether its
    agent did.
    """

    node_id: str
    machine: str
    boot_id: str
    source: str
    slots: int
    answers: bool
    leaves_s: float | None
    findings: tuple[dict[str, Any], ...] = ()
    xids: tuple[XidEvent, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Surveyor:
    """Asks Ray and every node. `gpus_per_worker` says which resource makes a slot."""

    def __init__(self, gpus_per_worker: int, eyes: Eyes) -> None:
        self._resource = "GPU" if gpus_per_worker else "CPU"
        self.agents = Agents(eyes)
        self.nodes: dict[str, dict[str, Any]] = {}
        self._known: dict[str, tuple[str, str, str]] = {}

    def look(self, *, check: bool) -> list[NodeState]:
        """The nodes that Ray calls alive, each with what it answered.

        `check`: have every node run its checks first.
        """
        self.refresh()
        if check:
            self.agents.ask("first_look", START_S, within_s=START_S)
        return self.states(self.agents.ask("report", None, within_s=START_S))

    def refresh(self) -> None:
        """Ask Ray for its nodes, and have an agent on each that can be reached."""
        self.nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        self.agents.on(reachable(self.nodes))

    def slots(self) -> dict[str, int]:
        """Workers that each node can hold, by Ray's node id."""
        held = {n: int(node["Resources"].get(self._resource, 0)) for n, node in self.nodes.items()}
        return {node: slots for node, slots in held.items() if slots}

    def machine(self, node_id: str) -> str:
        """The machine of a node that answered once; else the node's id."""
        return self._known.get(node_id, (node_id, "", ""))[0]

    def states(self, reports: Mapping[str, Report]) -> list[NodeState]:
        """Ray's nodes, with these reports of them."""
        self._known |= {n: (r.machine, r.boot_id, r.source) for n, r in reports.items()}
        leaving = draining()
        states = []
        for node_id, node in self.nodes.items():
            machine, boot_id, source = self._known.get(node_id, ("", "", ""))
            report = reports.get(node_id)
            findings = tuple(one.record() for one in report.findings) if report else ()
            slots = int(node["Resources"].get(self._resource, 0))
            states.append(
                NodeState(
                    node_id, machine, boot_id, source, slots, report is not None,
                    leaving.get(node_id), findings, report.xids if report else (),
                )
            )  # fmt: skip
        return states


def reachable(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The nodes whose raylet takes a connection now."""
    if not nodes:
        return []
    with ThreadPoolExecutor(min(64, len(nodes))) as threads:
        answers = threads.map(_connects, nodes.values())
    return [node for node, answer in zip(nodes, answers, strict=True) if answer]


def draining() -> dict[str, float]:
    """Nodes that are to leave, and until when (wall time; infinity where no time is set)."""
    # Ray's only list of them; its own preemption watcher reads it there.
    leaving: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: at_ms / 1000 if at_ms else float("inf") for node, at_ms in leaving.items()}


def _connects(node: Mapping[str, Any]) -> bool:
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True
