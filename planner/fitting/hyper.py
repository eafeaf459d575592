"""The best learning rate and batch of each (N, D), and where the grid fails to hold them.

A group's runs near its best shape a quadratic of the loss: in ln lr (arXiv 2601.05049), or jointly
in ln lr and ln batch where both were swept. An optimum on the edge of the grid is censored: it
bounds lr* or batch*, and its best loss bounds the loss of its group from above, but no law is
fitted to it (hyper_law.py).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from planner.fitting.grid import AXES, BATCH, LR, Grid, Point, geometric_mean, lay_out, levels
from planner.fitting.lone import Lone, lone_losses
from planner.fitting.minimum import Parabola, find_minimum
from planner.fitting.quadratic import MIN_POINTS, NoQuadratic, Quadratic, fit_quadratic
from planner.reading.records import Run, Stopped, Sweep

# A run within 1% of its group's best shapes the quadratic: on Step Law's grids the law then costs
# 0.09% of loss on average; at 2%, where a parabola no longer holds, 0.16%.
NEAR = 0.01
MIN_LEVELS = 3  # learning rates, or batches, without which there is no inside
SAME_GROUP = 1e-9

NAMES = ("learning rate", "batch")

Bounds = tuple[float | None, float | None]
T = TypeVar("T")


class Edge(Enum):
    """Where the optimum lies along one axis of the grid; only INTERIOR is an optimum."""

    INTERIOR = "interior"
    LOWER = "lower"
    UPPER = "upper"
    DEGENERATE = "degenerate"


@dataclass(frozen=True)
class Group:
    """All runs of one (N, D), and their optimum.

    `lr` and `batch_tokens` are interpolated, None where censored, or where the other one is: a
    joint optimum is found whole or not at all. `loss` is that of the optimum, or of the best run,
    then an upper bound. A censored optimum lies within its `bounds` (None: not bounded). `curve`
    is kept also where its vertex lies outside the grid; `noise` is the relative standard
    deviation of losses about the curves of all groups, None where no curve tells it. `lone` is a
    run that is left out because the others belie its loss.
    """

    params: float
    tokens: float
    flops: float
    budget_flops: float | None
    width: int | None
    runs: tuple[Run, ...]
    lr_edge: Edge
    batch_edge: Edge
    lr: float | None
    batch_tokens: float | None
    loss: float
    loss_is_bound: bool
    reason: str
    grid: Grid
    curve: Parabola | Quadratic | None
    lr_bounds: Bounds
    batch_bounds: Bounds
    lr_unstable: float | None
    noise: float | None
    lone: Lone | None = None

    @property
    def edges(self) -> tuple[Edge, Edge]:
        return self.lr_edge, self.batch_edge

    @property
    def optimum(self) -> Bounds:
        """lr* and batch*, None where not found."""
        return self.lr, self.batch_tokens

    @property
    def bounds(self) -> tuple[Bounds, Bounds]:
        return self.lr_bounds, self.batch_bounds

    def variance(self, axis: int) -> float | None:
        """Variance of ln lr* (axis 0) or ln batch* (axis 1) from the noise of the losses."""
        if self.curve is None or self.noise is None or self.optimum[axis] is None:
            return None
        if isinstance(self.curve, Quadratic):
            unit = self.curve.unit_covariance[axis][axis]
        else:
            unit = self.curve.unit_se_ln_x**2
        return unit * (self.noise * self.curve.y_star) ** 2

    @property
    def lr_curvature(self) -> float | None:
        """d² ln(loss) / d(ln lr)² at the optimum; a batch that was swept follows its own."""
        if self.curve is None or self.lr is None:
            return None
        if isinstance(self.curve, Quadratic):
            return self.curve.curvature(LR) / self.curve.y_star
        return self.curve.curvature / self.curve.y_star


@dataclass(frozen=True)
class _Verdict:
    """`seen` is what was judged, the grid or a slice of it; `why` tells what the curve rests on, or
    what kept it from being fitted."""

    seen: Grid
    edges: tuple[Edge, Edge]
    curve: Parabola | Quadratic | None
    why: str


def groups(sweep: Sweep) -> list[Group]:
    """One group for each (N, D) with a finished run, smallest N first, then smallest D.

    Where every run carries a nominal budget, runs of one N and budget are one group: their tokens
    differ by the rounding of steps.
    """
    members = _members(sweep)
    lone = lone_losses([runs for runs, _ in members])
    drafts = [
        _group(runs if off is None else [run for run in runs if run is not off.run], diverged, off)
        for (runs, diverged), off in zip(members, lone, strict=True)
    ]
    noise = _relative_noise(drafts)
    noise = sweep.noise if noise is None else noise
    found = [replace(draft, noise=noise) for draft in drafts]
    return sorted(found, key=lambda group: (group.params, group.tokens))


def _members(sweep: Sweep) -> list[tuple[list[Run], list[Stopped]]]:
    """The runs of each group, and what diverged in it.

    A diverged run may tell the tokens it reached, or none; it then belongs to the only group of
    its N, or where there are several, to none.
    """
    by_budget = all(run.budget_flops is not None for run in sweep.runs)
    diverged = [(s, s.params) for s in sweep.stopped if s.status == "diverged"]
    known = [(stopped, params) for stopped, params in diverged if params is not None]
    members: list[Run | Stopped] = [*sweep.runs, *(stopped for stopped, _ in known)]
    sizes = levels([*(run.params for run in sweep.runs), *(n for _, n in known)], SAME_GROUP)
    extents = [(m.budget_flops if by_budget else m.tokens) or 0.0 for m in members]
    keys = list(zip(sizes, levels(extents, SAME_GROUP), strict=True))
    cells: dict[tuple[int, int], tuple[list[Run], list[Stopped]]] = defaultdict(lambda: ([], []))
    for run, key in zip(sweep.runs, keys, strict=False):
        cells[key][0].append(run)
    for (stopped, _), key in zip(known, keys[len(sweep.runs) :], strict=True):
        homes = [key] if key in cells else [cell for cell in cells if cell[0] == key[0]]
        if len(homes) == 1:
            cells[homes[0]][1].append(stopped)
    return list(cells.values())


def _group(runs: Sequence[Run], diverged: Sequence[Stopped], lone: Lone | None) -> Group:
    grid = lay_out(runs, diverged)
    verdict = _judge(grid)
    lr, batch_tokens = _optimum(verdict)
    found = (lr, batch_tokens) != (None, None)
    return Group(
        params=runs[0].params,
        tokens=geometric_mean([run.tokens for run in runs]),
        flops=geometric_mean([run.flops for run in runs]),
        budget_flops=_common([run.budget_flops for run in runs]),
        width=_common([run.width for run in runs]),
        runs=tuple(runs),
        lr_edge=verdict.edges[LR],
        batch_edge=verdict.edges[BATCH],
        lr=lr,
        batch_tokens=batch_tokens,
        loss=verdict.curve.y_star if found and verdict.curve is not None else grid.best_loss,
        loss_is_bound=len(grid.points) > 1 and not found,
        reason=_reason(verdict, grid),
        grid=grid,
        curve=verdict.curve,
        lr_bounds=_bounds(verdict, LR),
        batch_bounds=_bounds(verdict, BATCH),
        lr_unstable=grid.lr_unstable,
        noise=None,
        lone=lone,
    )


def _common(values: Sequence[T | None]) -> T | None:
    """What all of them are, None where they differ."""
    return values[0] if len(set(values)) == 1 else None


def _judge(grid: Grid) -> _Verdict:
    swept = [axis for axis in (LR, BATCH) if grid.tried(axis) >= MIN_LEVELS]
    if len(swept) == 2:
        return _joint(grid)
    if swept:
        return _single(grid, swept[0])
    return _Verdict(grid, (Edge.DEGENERATE, Edge.DEGENERATE), None, "")


def _joint(grid: Grid) -> _Verdict:
    points = _near(grid)
    curve = fit_quadratic(
        [point.setting(LR) for point in points],
        [point.setting(BATCH) for point in points],
        [point.loss for point in points if point.loss is not None],
    )
    if isinstance(curve, NoQuadratic):
        lr_edge, batch_edge = (_position(grid, axis, Edge.DEGENERATE) for axis in (LR, BATCH))
        return _Verdict(grid, (lr_edge, batch_edge), None, curve.reason)
    why = f"joint quadratic through the {len(points)} settings nearest the best loss"
    return _Verdict(grid, _sides(curve, grid), curve, why)


def _sides(curve: Quadratic, grid: Grid) -> tuple[Edge, Edge]:
    """Which limits of the stable grid the lowest point of the quadratic within them touches."""
    tried = [[math.log(value) for value in grid.stable_values(axis)] for axis in (LR, BATCH)]
    low, high = (tried[LR][0], tried[BATCH][0]), (tried[LR][-1], tried[BATCH][-1])
    lowest = curve.lowest_within(low, high)
    lr_edge, batch_edge = (_side(lowest[axis], low[axis], high[axis]) for axis in (LR, BATCH))
    return lr_edge, batch_edge


def _near(grid: Grid) -> list[Point]:
    """The settings within `NEAR` of the best; where those are few, the best one's neighbours too.

    A coarse grid has few settings near its optimum, but its 3 x 3 neighbourhood tells an interior
    one all the same.
    """
    limit = grid.best_loss * (1 + NEAR)
    paired = list(zip(grid.stable, grid.losses, strict=True))
    near = [point for point, loss in paired if loss <= limit]
    if len(near) >= MIN_POINTS:
        return near
    lr, batch = grid.best.place
    return [
        point
        for point, loss in paired
        if loss <= limit
        or (abs(point.place[LR] - lr) <= 1 and abs(point.place[BATCH] - batch) <= 1)
    ]


def _single(grid: Grid, axis: int) -> _Verdict:
    """One axis was swept: its optimum at the best run's setting of the other."""
    through = grid.slice_through_best(axis)
    curve: Parabola | None = None
    edge, why = Edge.DEGENERATE, ""
    if through.tried(axis) >= MIN_LEVELS:
        edge = _position(through, axis, Edge.INTERIOR)
    else:
        why = f"{through.tried(axis)} settings of the {NAMES[axis]} beside the best run"
    if edge is Edge.INTERIOR:
        curve = _parabola(through, axis)
        why = "parabola through the best run, its neighbours and those near its loss"
    if edge is Edge.INTERIOR and curve is None:
        edge, why = Edge.DEGENERATE, "the loss does not curve upwards around the best run"
    edges = (edge, Edge.DEGENERATE) if axis == LR else (Edge.DEGENERATE, edge)
    return _Verdict(through, edges, curve, why)


def _parabola(through: Grid, axis: int) -> Parabola | None:
    """Through all adjoining near-optimal settings, or where those lean over, the nearest three."""
    settings = [point.setting(axis) for point in through.stable]
    near = [loss <= through.best_loss * (1 + NEAR) for loss in through.losses]
    wide = find_minimum(settings, through.losses, near).parabola
    return wide or find_minimum(settings, through.losses, [False] * len(near)).parabola


def _position(grid: Grid, axis: int, inside: Edge) -> Edge:
    """The side of the stable grid on which the best run lies, `inside` where on none."""
    places = [point.place[axis] for point in grid.stable]
    if grid.best.place[axis] == min(places):
        return Edge.LOWER
    return Edge.UPPER if grid.best.place[axis] == max(places) else inside


def _side(value: float, low: float, high: float) -> Edge:
    if value <= low:
        return Edge.LOWER
    return Edge.UPPER if value >= high else Edge.INTERIOR


def _optimum(verdict: _Verdict) -> Bounds:
    """lr* and batch*; a joint optimum only where it is interior on both axes."""
    if isinstance(verdict.curve, Quadratic):
        if verdict.edges != (Edge.INTERIOR, Edge.INTERIOR):
            return None, None
        lr, batch_tokens = map(math.exp, verdict.curve.vertex)
        return lr, batch_tokens
    if verdict.curve is None:
        return None, None
    x_star = verdict.curve.x_star
    return (x_star, None) if verdict.edges[LR] is Edge.INTERIOR else (None, x_star)


def _bounds(verdict: _Verdict, axis: int) -> Bounds:
    """What a censored optimum says: it lies beyond the last setting but one."""
    edge = verdict.edges[axis]
    if edge not in (Edge.LOWER, Edge.UPPER):
        return None, None
    tried = verdict.seen.stable_values(axis)
    unstable = verdict.seen.lr_unstable if axis == LR else None
    if edge is Edge.LOWER:
        return None, tried[1] if len(tried) > 1 else unstable
    return tried[-2], unstable if unstable is not None and unstable > tried[-1] else None


def _relative_noise(found: Sequence[Group]) -> float | None:
    """Of the losses about their curves, pooled; None where no curve has a point to spare."""
    curves = [group.curve for group in found if group.curve is not None]
    df = sum(curve.df for curve in curves)
    if df == 0:
        return None
    return math.sqrt(math.fsum(curve.rss / curve.y_star**2 for curve in curves) / df)


def _reason(verdict: _Verdict, grid: Grid) -> str:
    parts = [_axis_reason(verdict, grid, axis) for axis in (LR, BATCH)]
    if isinstance(verdict.curve, Quadratic) and _optimum(verdict) == (None, None):
        parts.append("no joint optimum where one axis has none")
    if verdict.why:
        parts.append(verdict.why)
    if grid.left_out:
        parts.append(f"{grid.left_out} runs without a learning rate or batch left out")
    return "; ".join(parts)


def _axis_reason(verdict: _Verdict, grid: Grid, axis: int) -> str:
    name, edge = NAMES[axis], verdict.edges[axis]
    if grid.points[0].values[axis] is None:
        return f"no {name} in the table"
    if edge is Edge.INTERIOR:
        return f"{name}: interior"
    if edge is Edge.DEGENERATE and grid.tried(axis) < MIN_LEVELS:
        return f"{name}: {grid.tried(axis)} tried, an optimum needs {MIN_LEVELS}"
    if edge is Edge.DEGENERATE:
        return f"{name}: no optimum"
    stable = verdict.seen.stable_values(axis)
    if edge is Edge.LOWER:
        return f"{name}: the best lies at or below the smallest tried, {stable[0]:.3g}"
    _, unstable = _bounds(verdict, axis)
    above = f"{name}: the best lies at or above the largest tried, {stable[-1]:.3g}"
    return above if unstable is None else f"{above}, but {unstable:.3g} diverged"


def why_no_optimum(found: Sequence[Group], axis: int) -> str:
    """Why no law of this axis can be fitted, and in which direction to extend the grid."""
    name = NAMES[axis]
    if all(point.values[axis] is None for g in found for point in g.grid.points):
        return f"the table has no {name}: add the column {AXES[axis]}"
    if all(g.grid.tried(axis) < 2 for g in found):
        return f"every group ran with one {name}: sweep at least 3 in a group"
    counts = Counter(g.edges[axis] for g in found if g.optimum[axis] is None)
    listed = ", ".join(f"{counts[edge]} {edge.value}" for edge in Edge if counts[edge])
    return f"no group has an interior best {name} ({listed}): {_direction(found, axis, counts)}"


def _direction(found: Sequence[Group], axis: int, counts: Counter[Edge]) -> str:
    """What to run so that there is an optimum to fit."""
    name = NAMES[axis]
    advice = []
    tried = [point.setting(axis) for g in found for point in g.grid.stable]
    stopped = [g.lr_bounds[1] is not None for g in found if g.edges[axis] is Edge.UPPER]
    if axis == LR and any(stopped):
        advice.append("run finer rates below those that diverged")
    if counts[Edge.UPPER] and (axis == BATCH or not all(stopped)):
        advice.append(f"extend the grid to a larger {name} than {max(tried):.3g}")
    if counts[Edge.LOWER]:
        advice.append(f"extend the grid to a smaller {name} than {min(tried):.3g}")
    if not advice:
        advice.append("run at least 3 of each swept setting, and 7 near the best, in a group")
    return "; ".join(advice)
