"""The run's own policies, asked by a simulation: the ledger, placement, and what follows a failure.

Everything that is decided here is decided by the code that decides for real runs. This file only
asks it about nodes that are numbers, and leaves out of each question what cannot change the answer.
"""

import heapq
import math
from dataclasses import dataclass, field

from scalewright.cluster.classify import Cause, Failure
from scalewright.cluster.evidence import Evidence, EvidenceKind, FleetSize, Order
from scalewright.cluster.fleet import Fleet
from scalewright.cluster.placement import Node, choose, worth_growing
from scalewright.cluster.policy import DAY_S, Ended, Restart, decide
from scalewright.cluster.standing import usable

__all__ = ["Machines", "Restarts", "worth_growing"]

_UNKNOWN = None, -1.0


@dataclass
class Machines:
    """The ledger of `count` machines, and placement by it."""

    count: int
    fleet: Fleet = field(default_factory=Fleet)
    # Those that may not be plainly healthy: their rank, and until when it is theirs.
    noted: dict[int, tuple[int | None, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet.add(FleetSize(self.count, "simulation", 0.0))

    def failed(self, node: int, time_s: float, *, hardware: bool) -> None:
        """A node went down; `hardware`: its agent found out which part."""
        self._seen(node, time_s, "hardware" if hardware else "death")

    def refused(self, node: int, time_s: float) -> None:
        """The full preflight found a node still broken."""
        self._seen(node, time_s, "preflight_failed")

    def repaired(self, node: int, time_s: float) -> None:
        self.fleet.add(Order(_serial(node), "repaired", "operator", "repaired", time_s))
        self.noted[node] = _UNKNOWN

    def retired(self, node: int, time_s: float) -> bool:
        return self.fleet.standing(_serial(node), time_s).state == "retired"

    def place(
        self, idle: set[int], used: set[int], least: int, most: int, time_s: float
    ) -> set[int] | None:
        """The nodes of the next attempt, one worker each; None if there are too few.

        `idle` and `used` are alive; `used`, no more than `most`, held the attempt before, which
        placement prefers. Healthy nodes that are used already come first in any order, so they are
        not asked about.
        """
        doubtful = self.noted.keys()
        kept = used - doubtful
        need = most - len(kept)
        # Of healthy nodes that are idle, the first by serial suffice.
        fresh = heapq.nsmallest(need, idle - doubtful)
        nodes = [
            *(self._node(node, time_s, used=True) for node in used & doubtful),
            *(self._node(node, time_s, used=False) for node in (*(idle & doubtful), *fresh)),
        ]
        more = min(need, sum(node.rank is not None for node in nodes))
        if len(kept) + more < least:
            return None
        placed = choose(nodes, [more], 1, more) if more else {}
        assert placed is not None
        return kept | {int(node) for node in placed}

    def _node(self, node: int, time_s: float, *, used: bool) -> Node:
        return Node(_serial(node), str(node), 1, self._rank(node, time_s), used)

    def _rank(self, node: int, time_s: float) -> int | None:
        if node not in self.noted:
            return 0
        rank, until_s = self.noted[node]
        if until_s <= time_s:
            standing = self.fleet.standing(_serial(node), time_s)
            rank = usable(standing)
            self.noted[node] = rank, math.inf if standing.until_s is None else standing.until_s
            if rank == 0:
                del self.noted[node]
        return rank

    def _seen(self, node: int, time_s: float, kind: EvidenceKind) -> None:
        self.fleet.add(Evidence(_serial(node), None, kind, "simulated", time_s))
        self.noted[node] = _UNKNOWN


@dataclass
class Restarts:
    """What follows each failure of the run."""

    max_restarts: int
    history: list[Ended] = field(default_factory=list)

    def delay_s(self, time_s: float, checkpoints: int, *, hardware: bool) -> float | None:
        """The back-off after a failure at `time_s`; None where the run waits for a human."""
        cause: Cause = "gpu" if hardware else "node"
        self.history.append(Ended(Failure(cause, "a node went down"), checkpoints, time_s))
        # Budgets look back a day, and the row without progress ends at the last checkpoint.
        self.history = [
            ended
            for ended in self.history
            if ended.checkpoint_step == checkpoints or ended.time_s > time_s - DAY_S
        ]
        decision = decide(self.history, self.max_restarts)
        return decision.delay_s if isinstance(decision, Restart) else None

    def begun_by_hand(self) -> None:
        """A human began the run again: a new supervisor remembers nothing."""
        self.history = []


def _serial(node: int) -> str:
    return f"{node:06d}"
