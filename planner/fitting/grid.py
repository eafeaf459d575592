"""Which (learning rate, batch) of a group of runs were tried, and how each came out.

Repeats are merged and diverged settings marked here; what the grid says about the optimum is for
hyper.py to judge.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.reading.records import Run, Stopped

AXES = ("lr", "batch_tokens")
LR, BATCH = 0, 1
# Values this close, relative, are one setting: tables round rates (0.01105 and 0.0111), and a run's
# tokens are rounded to whole steps.
SAME_SETTING = (0.01, 0.05)
DIVERGED_RATIO = 1.5  # a run with 1.5x the loss of its group's best is as good as diverged

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a group; `lr` and `batch_tokens` are None where the table does not tell.

    `loss` is None where the setting diverged. `place` counts the group's learning rates and
    batches from the smallest, from 0.
    """

    lr: float | None
    batch_tokens: float | None
    loss: float | None
    place: Place

    @property
    def values(self) -> tuple[float | None, float | None]:
        """By axis: 0 is the learning rate, 1 the batch."""
        return self.lr, self.batch_tokens

    def setting(self, axis: int) -> float:
        """The value along an axis that the table tells."""
        value = self.values[axis]
        if value is None:
            raise ValueError(f"a point without {AXES[axis]} has no place along it")
        return value


@dataclass(frozen=True)
class Grid:
    """The settings of a group, smallest learning rate first, then smallest batch.

    `left_out` counts the runs without a learning rate or batch that others of the group have.
    """

    points: tuple[Point, ...]
    left_out: int = 0

    @cached_property
    def stable(self) -> tuple[Point, ...]:
        """The settings that gave a loss."""
        return tuple(point for point in self.points if point.loss is not None)

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """Of the stable settings, in their order."""
        return tuple(point.loss for point in self.stable if point.loss is not None)

    @property
    def best_loss(self) -> float:
        return min(self.losses)

    @property
    def best(self) -> Point:
        return self.stable[self.losses.index(self.best_loss)]

    def tried(self, axis: int) -> int:
        """How many learning rates (or batches) were tried, diverged ones included."""
        return len({point.place[axis] for point in self.points})

    def stable_values(self, axis: int) -> list[float]:
        """One value for each learning rate (or batch) that gave a loss, ascending."""
        found = {point.place[axis]: point.setting(axis) for point in self.stable}
        return [found[level] for level in sorted(found)]

    def slice_through_best(self, axis: int) -> "Grid":
        """The points that differ from the best one along `axis` alone."""
        across = self.best.place[1 - axis]
        return Grid(tuple(point for point in self.points if point.place[1 - axis] == across))

    @property
    def lr_unstable(self) -> float | None:
        """The lowest learning rate above the best one that diverged, at its batch or a larger one.

        What diverges at a small batch says nothing of a larger, less noisy one.
        """
        (lr_place, batch_place) = self.best.place
        above = [
            point.lr
            for point in self.points
            if point.loss is None and point.lr is not None
            if point.place[LR] > lr_place and point.place[BATCH] >= batch_place
        ]
        return min(above, default=None)


def lay_out(runs: Sequence[Run], diverged: Sequence[Stopped]) -> Grid:
    """The grid of one group, from its runs (at least one) and what diverged in it.

    A setting at which any seed diverged, or lost `DIVERGED_RATIO` times the best loss, has
    diverged; where that leaves nothing, the losses that there are count.
    """
    axes, members = _placeable(runs, diverged)
    places = _places(members, axes)
    finished: dict[Place, list[Run]] = defaultdict(list)
    at: dict[Place, list[Run | Stopped]] = defaultdict(list)
    for member, place in zip(members, places, strict=True):
        at[place].append(member)
        if isinstance(member, Run):
            finished[place].append(member)
    unstable = {place for m, place in zip(members, places, strict=True) if isinstance(m, Stopped)}
    losses = _losses(finished, unstable, has_lr=LR in axes)
    points = tuple(_point(at[place], losses.get(place), place) for place in sorted(at))
    return Grid(points, left_out=len(runs) - sum(map(len, finished.values())))


def levels(values: Sequence[float], tolerance: float) -> list[int]:
    """The rank of each positive value, those within `tolerance` of a rank's smallest sharing it."""
    ranks = [0] * len(values)
    rank, smallest = -1, 0.0
    for index in sorted(range(len(values)), key=lambda index: values[index]):
        if rank < 0 or values[index] > smallest * (1 + tolerance):
            rank, smallest = rank + 1, values[index]
        ranks[index] = rank
    return ranks


def geometric_mean(values: Sequence[float]) -> float:
    """Exact where all values are equal, and the same in any order."""
    if min(values) == max(values):
        return values[0]
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _setting(member: Run | Stopped, axis: int) -> float | None:
    return member.batch_tokens if axis == BATCH else member.lr


def _placeable(
    runs: Sequence[Run], diverged: Sequence[Stopped]
) -> tuple[list[int], list[Run | Stopped]]:
    """The axes that the table tells, and the members that have a setting on each of them."""
    axes: list[int] = []
    members: list[Run | Stopped] = [*runs, *diverged]
    for axis in (LR, BATCH):
        told = [member for member in members if _setting(member, axis) is not None]
        if any(isinstance(member, Run) for member in told):
            axes, members = [*axes, axis], told
    return axes, members


def _places(members: Sequence[Run | Stopped], axes: Sequence[int]) -> list[Place]:
    ranks = [[0] * len(members), [0] * len(members)]
    for axis in axes:
        values = [_setting(member, axis) or math.nan for member in members]
        ranks[axis] = levels(values, SAME_SETTING[axis])
    return list(zip(*ranks, strict=True))


def _losses(
    finished: dict[Place, list[Run]], unstable: set[Place], *, has_lr: bool
) -> dict[Place, float]:
    """The loss of each stable setting."""
    by_seed = {
        place: _seed_losses(runs) if has_lr else [run.loss for run in runs]
        for place, runs in finished.items()
    }
    limit = DIVERGED_RATIO * min(min(losses) for losses in by_seed.values())
    means = {place: math.fsum(losses) / len(losses) for place, losses in by_seed.items()}
    stable = {
        place: mean
        for place, mean in means.items()
        if place not in unstable and max(by_seed[place]) <= limit
    }
    return stable or means


def _seed_losses(runs: Sequence[Run]) -> list[float]:
    """One loss a seed: repeats without one may differ in things not told, so the best counts."""
    best: dict[int | None, float] = {}
    for run in runs:
        best[run.seed] = min(run.loss, best.get(run.seed, math.inf))
    return list(best.values())


def _point(members: Sequence[Run | Stopped], loss: float | None, place: Place) -> Point:
    values = [
        [value for member in members if (value := _setting(member, axis)) is not None]
        for axis in (LR, BATCH)
    ]
    lr, batch = (geometric_mean(found) if found else None for found in values)
    return Point(lr, batch, loss, place)
