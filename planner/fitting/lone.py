"""Whether a group's best loss is one that its neighbours belie.

One cell that is wrong (a loss of 0.01 among losses of 3) would make every other run of its group
look diverged. A true best that stands alone, because all else diverged, is like those of the
groups nearest in N and D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from planner.fitting.grid import DIVERGED_RATIO
from planner.reading.runs import Run

NEIGHBOURS = 5  # groups that tell what loss to expect in another


@dataclass(frozen=True, slots=True)
class Lone:
    """A run far below all others of its group; `usual` is the median best of the nearest groups."""

    run: Run
    usual: float


def lone_losses(groups: Sequence[Sequence[Run]]) -> list[Lone | None]:
    """For each group (at least one run) the run whose loss the others belie, None where none."""
    ranked = [sorted(runs, key=lambda run: run.loss) for runs in groups]
    told = [runs[0] for runs in ranked if not _stands_alone(runs)]
    return [_belied(runs, told) if _stands_alone(runs) else None for runs in ranked]


def _stands_alone(ranked: Sequence[Run]) -> bool:
    return len(ranked) > 1 and ranked[1].loss > DIVERGED_RATIO * ranked[0].loss


def _belied(ranked: Sequence[Run], told: Sequence[Run]) -> Lone | None:
    first, second = ranked[:2]
    nearest = sorted(told, key=lambda best: math.dist(_place(best), _place(first)))[:NEIGHBOURS]
    if not nearest:
        return None
    usual = median(best.loss for best in nearest)
    off, next_off = (abs(math.log(run.loss / usual)) for run in (first, second))
    return Lone(first, usual) if off > math.log(DIVERGED_RATIO) and next_off < off else None


def _place(run: Run) -> tuple[float, float]:
    return math.log(run.params), math.log(run.tokens)
