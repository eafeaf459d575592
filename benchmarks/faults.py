"""Faults for a run on raylets of this machine: what is done, and who is to be blamed for it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from clusters import RayNode
from storm import Storm


@dataclass(frozen=True)
class Fault:
    """`do` disturbs the run and returns the machine at fault, or which is left; `cause` as judged.

    Empty where nothing fails. `leaves`: the machine is gone afterwards.
    """

    name: str
    do: Callable[[Storm], str]
    cause: str
    leaves: bool = False


def first(run: Storm) -> RayNode:
    return next(iter(run.used().values()))


def kill_rank(run: Storm) -> str:
    node = first(run)
    node.workers()[0].kill()
    return node.machine


def stop_rank(run: Storm) -> str:
    node = first(run)
    node.workers()[0].suspend()
    return node.machine


def sleep_in_loop(run: Storm) -> str:
    run.sabotage(1, "sleep")
    (launched,) = run.notices("launched")[-1:]
    return list(launched.fields["nodes"])[-1]


def kill_attempt(run: Storm) -> str:
    run.attempts()[0].kill()
    return ""


def kill_raylet(run: Storm) -> str:
    node = first(run)
    node.raylet.kill()
    return node.machine


def freeze_node(run: Storm) -> str:
    node = first(run)
    node.freeze()
    return node.machine


def drain(run: Storm) -> str:
    node = first(run)
    run.leaves(node, within_s=30)
    return node.machine


KILLED_RANK = Fault("a rank is killed", kill_rank, "process")
STOPPED_RANK = Fault("a rank is stopped", stop_rank, "hang")
SLEEPING_RANK = Fault("a rank sleeps in its loop", sleep_in_loop, "hang")
KILLED_ATTEMPT = Fault("the attempt's process is killed", kill_attempt, "controller")
KILLED_RAYLET = Fault("a raylet is killed", kill_raylet, "node", leaves=True)
FROZEN_NODE = Fault("a node freezes", freeze_node, "node", leaves=True)
DRAINED_NODE = Fault("a node is drained", drain, "", leaves=True)

FAULTS = (
    KILLED_RANK, STOPPED_RANK, SLEEPING_RANK, KILLED_ATTEMPT, KILLED_RAYLET, FROZEN_NODE,
    DRAINED_NODE,
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One disturbance: its cost, and whether the machine (or nobody) was blamed as it should."""

    fault: Fault
    at_s: float  # wall time
    detected_s: float
    first_step_s: float
    lost_steps: int
    blamed: str
    right: bool


def disturb(run: Storm, fault: Fault) -> Seen:
    """Do it, and see the run take a step again."""
    machine: list[str] = []
    at_s = time.time()
    seen = run.after(lambda: machine.append(fault.do(run)), limit_s=200)
    cause, blamed = seen.failure.get("cause", ""), seen.failure.get("machine") or ""
    guilty = machine[0] if fault.cause else ""
    if fault.leaves:
        run.nodes[machine[0]].end()
    whom = f"{cause} {blamed}".strip()
    return Seen(
        fault, at_s, seen.detected_s, seen.first_step_s, seen.lost_steps, whom,
        (cause, blamed) == (fault.cause, guilty),
    )  # fmt: skip
