"""The largest budget forecast from the smaller ones: would this sweep have told the truth?

The loss there comes from the isoFLOP losses L*(C) of the smaller budgets where there are four or
more, else from the surface fitted to their runs alone. Both are reported.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.fitting.estimators import SurfaceFit, fit_huber
from planner.fitting.frontier import Frontier
from planner.fitting.isoflop import Budget, IsoFlop, Mask, fit_isoflop
from planner.fitting.laws import FLOOR_LAW_MIN_POINTS, NotFitted
from planner.fitting.surface import Floats, Points

LARGEST = 1.3  # without isoFLOP curves, runs within this ratio of the largest are held out

ISOFLOP = "isoFLOP losses of the smaller budgets"
SURFACE = "surface through the smaller budgets"


@dataclass(frozen=True)
class HoldOut:
    """The best loss of the held-out budget, as forecast and as found.

    `by` names the forecast, `errors` holds the relative error of every way that could be tried.
    `middle_flops` are the geometric means of the smaller runs' FLOPs and of all runs'.
    """

    held_out_flops: float
    ratio: float
    runs: int
    predicted: float
    observed: float
    by: str
    errors: Mapping[str, float]
    middle_flops: tuple[float, float]

    @property
    def relative_error(self) -> float:
        return self.predicted / self.observed - 1

    def reach(self, target_flops: float) -> float:
        """How far a target is from the middle of all runs, over how far the forecast reached."""
        smaller, every = self.middle_flops
        return math.log(target_flops / every) / math.log(self.held_out_flops / smaller)


@dataclass(frozen=True)
class _Target:
    """What is to be forecast: the loss at a size, or at the best size where `params` is None."""

    flops: float
    loss: float
    params: float | None
    tokens: float | None
    mask: Mask


def hold_out(points: Points, isoflop: IsoFlop, frontier: Frontier) -> HoldOut | NotFitted:
    """Forecast the largest budget's best loss without any run at or above it."""
    target = _target(points, isoflop)
    smaller = points.only(~target.mask & (points.flops < points.flops[target.mask].min()))
    if len(smaller) == 0:
        return NotFitted("all runs cost the same: there is no smaller budget to forecast from")
    surface = fit_huber(smaller)
    ways = _by_isoflop(smaller, surface, frontier, target) | _by_surface(surface, frontier, target)
    if not ways:
        reason = surface.reason if isinstance(surface, NotFitted) else "no law"
        return NotFitted(f"without the largest budget nothing can be fitted: {reason}")
    by = next(iter(ways))
    return HoldOut(
        held_out_flops=target.flops,
        ratio=target.flops / float(smaller.flops.max()),
        runs=int(target.mask.sum()),
        predicted=ways[by],
        observed=target.loss,
        by=by,
        errors={name: value / target.loss - 1 for name, value in ways.items()},
        middle_flops=(_middle(smaller.flops), _middle(points.flops)),
    )


def _middle(flops: Floats) -> float:
    return float(np.exp(np.log(flops).mean()))


def _target(points: Points, isoflop: IsoFlop) -> _Target:
    if isoflop.budgets:
        return _of_budget(points, isoflop.budgets[-1])
    mask = points.flops >= points.flops.max() / LARGEST
    best = int(np.flatnonzero(mask)[np.argmin(points.loss[mask])])
    return _Target(
        flops=float(points.flops[best]),
        loss=float(points.loss[best]),
        params=float(points.params[best]),
        tokens=float(points.tokens[best]),
        mask=mask,
    )


def _of_budget(points: Points, budget: Budget) -> _Target:
    mask = points.flops >= points.flops[list(budget.points)].min()
    best = budget.minimum.best
    inside = budget.optimum is not None
    return _Target(
        flops=budget.flops,
        loss=budget.best_loss,
        params=None if inside else budget.params[best],
        tokens=None if inside else budget.tokens[best],
        mask=mask,
    )


def _by_isoflop(
    smaller: Points, surface: SurfaceFit | NotFitted, frontier: Frontier, target: _Target
) -> dict[str, float]:
    if target.params is not None:
        return {}  # a law of best losses says nothing of a run that is not at its best size
    surfaces = None if isinstance(surface, NotFitted) else surface.surfaces
    laws = fit_isoflop(smaller, surfaces, frontier).laws
    if isinstance(laws, NotFitted) or len(laws.budgets_flops) < FLOOR_LAW_MIN_POINTS:
        return {}
    return {ISOFLOP: laws.loss.value(C=target.flops)}


def _by_surface(
    surface: SurfaceFit | NotFitted, frontier: Frontier, target: _Target
) -> dict[str, float]:
    if isinstance(surface, NotFitted):
        return {}
    if target.params is None or target.tokens is None:
        best = frontier.best(surface.surfaces, target.flops)
        return {SURFACE: float(np.exp(best.log_loss[0]))}
    at = surface.surfaces.log_loss(np.array([target.params]), np.array([target.tokens]))
    return {SURFACE: float(np.exp(at[0, 0]))}
