"""After a sweep: the runs that would tell most about the target next.

Greedy c-optimal design: of all candidate (N, D) take the one that shrinks the variance of ln N* at
the target most, add what it would tell (Sherman & Morrison 1950), and again. Learning rates whose
best lies at an edge of their grid come first: their losses are upper bounds until the grid holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from planner.designing.information import (
    Aim,
    aim,
    condition,
    factor,
    gradients,
    half_width,
    information,
    inverse,
    tokens_follow_params,
    unit_sd,
)
from planner.errors import InputError
from planner.fitting.frontier import Frontier
from planner.fitting.grid import AXES, BATCH, LR
from planner.fitting.hyper import Edge, Group
from planner.fitting.surface import Floats, Points, Surfaces
from planner.reading.runs import counted

CAP = 3.0  # of the largest run tried
REACH = 8.0  # sizes this far from the best of a budget; sizes and tokens beyond the largest tried
BUDGETS_A_DECADE = 4
SIZES_EACH_SIDE = 4
SAME = 1e-3  # sizes and tokens are rounded
DEFAULT_RATIO = 2.0  # between learning rates, where the sweep shows none


class Per(Enum):
    """What a candidate's gain is divided by."""

    RUN = "run"
    FLOPS = "flops"


@dataclass(frozen=True)
class Candidates:
    """Runs that could be next, (n,) each."""

    params: Floats
    tokens: Floats
    flops: Floats

    def run(self, at: int, half_before: float, half_after: float) -> "NextRun":
        n, d, flops = (float(column[at]) for column in (self.params, self.tokens, self.flops))
        return NextRun(n, d, flops, half_before, half_after)


@dataclass(frozen=True, slots=True)
class NextRun:
    """One run, and half of the 90% interval of ln N* at the target before and after it."""

    params: float
    tokens: float
    flops: float
    half_before: float
    half_after: float

    @property
    def factor_before(self) -> float:
        return factor(self.half_before)

    @property
    def factor_after(self) -> float:
        return factor(self.half_after)


@dataclass(frozen=True)
class NextRuns:
    """The runs in order, for which best run of the target; `condition` is that of the sweep.

    `collinear` where its tokens rise with its sizes as one power throughout.
    """

    aim: Aim
    runs: tuple[NextRun, ...]
    half_before: float
    condition: float
    collinear: bool

    @property
    def half_after(self) -> float:
        return self.runs[-1].half_after if self.runs else self.half_before


@dataclass(frozen=True, slots=True)
class EdgeRun:
    """The next setting beyond an edge that holds a group's best; `beyond`: lr or batch_tokens."""

    params: float
    tokens: float
    flops: float
    beyond: str
    side: Edge
    lr: float | None
    batch_tokens: float | None


def next_runs(
    surfaces: Surfaces,
    frontier: Frontier,
    params: Floats,
    tokens: Floats,
    noise: float,
    target_flops: float,
    candidates: Candidates,
    count: int,
    per: Per = Per.RUN,
) -> NextRuns:
    """The `count` candidates to run after runs at `params`, `tokens` (n,), most telling first.

    `noise` is the relative standard deviation of one loss; no candidate is taken twice.
    """
    goal = aim(surfaces, frontier, target_flops)
    covariance = inverse(information(gradients(surfaces, params, tokens), np.ones(len(params))))
    sd = float(unit_sd(covariance, goal.of_params))
    half = before = half_width(len(params), noise * sd)
    if not math.isfinite(before):
        raise InputError(
            f"{counted(len(params), 'pair')} of (N, D) do not tell the five constants of a "
            "surface: their interval is unbounded and no run can be ranked. Sweep more sizes and "
            "token counts"
        )
    rows = gradients(surfaces, candidates.params, candidates.tokens)
    free = np.ones(len(rows), dtype=bool)
    found = []
    for number in range(1, count + 1):
        at = _most_telling(covariance, goal.of_params, rows, free, candidates.flops, per)
        free[at] = False
        covariance = updated(covariance, rows[at])
        after = half_width(len(params) + number, noise * float(unit_sd(covariance, goal.of_params)))
        found.append(candidates.run(at, half_before=half, half_after=after))
        half = after
    return NextRuns(
        aim=goal,
        runs=tuple(found),
        half_before=before,
        condition=condition(surfaces.surface(), params, tokens),
        collinear=tokens_follow_params(params, tokens),
    )


def updated(covariance: Floats, row: Floats) -> Floats:
    """The constants' covariance for a noise of one after a run with gradient `row`, (5, 5)."""
    moved = covariance @ row
    return np.asarray(covariance - np.outer(moved, moved) / (1 + row @ moved))


def _most_telling(
    covariance: Floats, wanted: Floats, rows: Floats, free: Floats, flops: Floats, per: Per
) -> int:
    moved = rows @ covariance
    gain = (moved @ wanted) ** 2 / (1 + np.einsum("ni,ni->n", moved, rows))
    if per is Per.FLOPS:
        gain = gain / flops
    return int(np.argmax(np.where(free, gain, -1.0)))


def candidate_runs(
    surfaces: Surfaces,
    frontier: Frontier,
    tried: Points,
    cap_flops: float,
    rungs: Floats | None = None,
) -> Candidates:
    """(N, D) on isoFLOP curves from the smallest tried to the cap, sizes within 8x of the best.

    Sizes are the nearest of `rungs` where models come in steps. Neither N nor D goes below what was
    tried (a run of a few steps obeys no law), nor 8x above.
    """
    smallest = float(tried.flops.min())
    count = 1 + max(1, math.ceil(math.log10(cap_flops / smallest) * BUDGETS_A_DECADE))
    budgets = np.geomspace(smallest, cap_flops, count)
    spread = np.linspace(-1, 1, 2 * SIZES_EACH_SIDE + 1) * math.log(REACH)
    best = np.array([float(frontier.best(surfaces[:1], c).log_params[0]) for c in budgets])
    wanted = np.exp(best[:, None] + spread)
    inside = (wanted >= frontier.smallest_params) & (wanted <= frontier.largest_params)
    flops = np.broadcast_to(budgets[:, None], wanted.shape)[inside]
    params = wanted[inside]
    if rungs is not None:
        places = np.abs(np.log(params)[:, None] - np.log(rungs)).argmin(axis=1)
        _, first = np.unique(np.stack([places, np.log(flops)]), axis=1, return_index=True)
        first.sort()
        params, flops = rungs[places][first], flops[first]
    tokens = flops / frontier.flops_per_token(params)
    within = _near(params, tried.params) & _near(tokens, tried.tokens)
    return Candidates(params[within], tokens[within], flops[within])


def _near(values: Floats, tried: Floats) -> NDArray[np.bool_]:
    return (values >= tried.min() * (1 - SAME)) & (values <= tried.max() * REACH)


def edge_runs(found: Sequence[Group]) -> list[EdgeRun]:
    """The next learning rate or batch for every group whose best lies at an edge, cheapest first.

    Below the first rate that diverged the step is the geometric middle to it.
    """
    runs = [run for group in found for run in _beyond(group)]
    return sorted(runs, key=lambda run: run.flops)


def _beyond(group: Group) -> list[EdgeRun]:
    best = group.grid.best
    found = []
    for axis, side in ((LR, group.lr_edge), (BATCH, group.batch_edge)):
        if side not in (Edge.LOWER, Edge.UPPER):
            continue
        unstable = group.lr_unstable if axis == LR else None
        setting = _step_beyond(group.grid.stable_values(axis), side, unstable)
        lr, batch_tokens = (setting if at == axis else best.values[at] for at in (LR, BATCH))
        where = (group.params, group.tokens, group.flops)
        found.append(EdgeRun(*where, AXES[axis], side, lr, batch_tokens))
    return found


def _step_beyond(tried: Sequence[float], side: Edge, unstable: float | None) -> float:
    if side is Edge.UPPER:
        ratio = tried[-1] / tried[-2] if len(tried) > 1 else DEFAULT_RATIO
        if unstable is not None and unstable > tried[-1]:
            return min(tried[-1] * ratio, math.sqrt(tried[-1] * unstable))
        return tried[-1] * ratio
    ratio = tried[1] / tried[0] if len(tried) > 1 else DEFAULT_RATIO
    return tried[0] / ratio
