"""On which nodes the next attempt runs, and when it pays to grow. Pure: tested without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalewright.data.settings import legal_worlds
from scalewright.errors import ConfigError

if TYPE_CHECKING:  # the simulator places without torch
    from scalewright.train.run import RunConfig

_TOLD = 8  # refused nodes, of perhaps hundreds


@dataclass(frozen=True)
class Node:
    """A machine that is alive, answers now and is not about to leave.

    `slots`: workers it can hold. `rank`: 0 healthy, 1 suspect, 2 on probation, None held back.
    `used`: the attempt before ran here, so that its files are in reach. `refused`: why the run
    itself does not use it, whatever its standing; then it is held back, too.
    """

    machine: str
    node_id: str
    slots: int
    rank: int | None = 0
    used: bool = False
    boot_id: str = ""
    refused: str = ""


def choose(
    nodes: Sequence[Node],
    legal: Sequence[int],
    min_workers: int,
    workers: int,
    shard_size: int | None = None,
) -> dict[str, int] | None:
    """Workers by node id: the largest legal world that fits, on the best nodes; None if too few.

    A worse node is taken only where the better ones do not suffice for that world. With a
    `shard_size`, workers that share one copy of the weights stay on one node where a node can
    hold them.
    """
    ranked = [(node.rank, not node.used, node.machine, node) for node in nodes
              if node.rank is not None and node.slots > 0]  # fmt: skip
    best_first = [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:-1])]
    for world in sorted((w for w in legal if min_workers <= w <= workers), reverse=True):
        if placed := _fill(best_first, world, shard_size):
            return placed
    return None


def _fill(nodes: Sequence[Node], world: int, shard_size: int | None) -> dict[str, int] | None:
    group = shard_size if shard_size and world % shard_size == 0 else 1
    if group > 1 and not any(node.slots >= group for node in nodes):
        group = 1  # no node holds a whole copy: its workers have to talk over the network
    placed: dict[str, int] = {}
    left = world
    for node in nodes:
        take = min(left, node.slots // group * group)
        if take:
            placed[node.node_id] = take
            left -= take
        if not left:
            return placed
    return None


def choose_workers(config: "RunConfig", nodes: Sequence[Node]) -> dict[str, int]:
    """Where the run's next attempt goes; `ConfigError` says what is missing."""
    parallel, packs = config.parallel, config.data.packs_per_step
    legal = legal_worlds(packs, parallel.shard_size)
    placed = choose(nodes, legal, parallel.min_workers, parallel.workers, parallel.shard_size)
    if placed is not None:
        return placed
    kind = "GPUs" if parallel.gpus_per_worker else "CPUs"
    slots = sum(node.slots for node in nodes if node.rank is not None)
    held = sorted(node.machine for node in nodes if node.rank is None and not node.refused)
    because = f" ({len(held)} nodes held back: {', '.join(held[:4])})" if held else ""
    refused = sorted(f"{node.machine} is refused: {node.refused}" for node in nodes if node.refused)
    raise ConfigError(
        f"the cluster has {slots} {kind}{because}; the run needs parallel.min_workers = "
        f"{parallel.min_workers} to parallel.workers = {parallel.workers} that divide "
        f"data.packs_per_step = {packs}; add nodes or lower parallel.min_workers"
        + "".join(f"\n{each}" for each in refused[:_TOLD])
    )


def worth_growing(
    now: int, then: int, left_s: float, restart_s: float, since_start_s: float, cooldown_s: float
) -> bool:
    """Whether to stop at the next checkpoint and go on with `then` workers instead of `now`.

    `left_s`: what the run still takes at its present size; growing saves the share of it that
    more workers take off, and costs one restart. `cooldown_s` keeps a node that comes and goes
    from stopping the run each time.
    """
    if then <= now or since_start_s < cooldown_s:
        return False
    return left_s * (1 - now / then) > restart_s


def machines(placed: Mapping[str, int], nodes: Sequence[Node]) -> dict[str, int]:
    """The same placement by machine, for people and the ledger."""
    names = {node.node_id: node.machine for node in nodes}
    return {names[node_id]: workers for node_id, workers in placed.items()}
