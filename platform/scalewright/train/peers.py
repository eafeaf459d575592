"""What the ranks of a run tell each other about saving, such that an error of one is known to all.

Each of these is a collective over a gloo group of its own: one for the main thread and one for the
thread that saves, since collectives of two threads must not meet.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from scalewright.train.parallel import World

Value = TypeVar("Value")


class Peers:
    """The ranks as one thread of each talks to the others; alone where the world is not sharded.

    `timeout_s`: how long a rank waits for the others; None as long as other collectives do.
    """

    def __init__(self, world: World, timeout_s: float | None = None) -> None:
        self.rank, self.size = world.rank, world.size
        self.group: Any = None
        if world.sharded:
            timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
            self.group = dist.new_group(backend="gloo", timeout=timeout)

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What rank 0 makes, on every rank; its error is raised on every rank, too."""
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except Exception as caught:
                box[1] = caught
        if self.group is not None:
            dist.broadcast_object_list(box, src=0, group=self.group)
        value, error = box
        if error is not None:
            raise error
        made: Value = value
        return made

    def everywhere(self, do: Callable[[], Value]) -> list[Value]:
        """What each rank makes of `do`, by rank; raises on all when it failed on any."""
        mine: tuple[Value | None, Exception | None]
        try:
            mine = do(), None
        except Exception as caught:
            mine = None, caught
        results = self.gather(mine)
        for rank, (_, error) in enumerate(results):
            if error is not None:
                error.add_note(f"on rank {rank}")
                raise error
        return [value for value, _ in results]  # type: ignore[misc]
