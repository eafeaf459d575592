"""What the laws say of a budget: the best size N* and the loss there, and how sure that is.

The fitted surface under the frontier's exact FLOPs says it; where there is no surface, the laws
through the isoFLOP minima do. Where both can speak, what they disagree by beyond noise widens the
interval: the surface may not have the shape of these losses.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planner.fitting.bands import (
    Resamples,
    Spread,
    finite_exp,
    log_band,
    spread_of,
    unexplained,
)
from planner.fitting.base import Base
from planner.fitting.forecast import HoldOut
from planner.fitting.frontier import Best, Frontier
from planner.fitting.hyper import Group
from planner.fitting.hyper_law import HyperLaws
from planner.fitting.isoflop import ComputeLaws, IsoFlop
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import Floats, Surface, Surfaces
from planner.planning.misses import with_misses
from planner.reading.records import Sweep

SURFACE = "loss surface, Huber on ln L (arXiv 2203.15556 Eq. 3), under {cost}"
MINIMA = "isoFLOP minima, arXiv 2203.15556 approach 2"
DISAGREEMENT = "isoFLOP minima"


class Evidence(Protocol):
    """What a plan needs of a fit.

    `noise` is the relative standard deviation of one loss; `largest_flops` the largest run's.
    """

    @property
    def sweep(self) -> Sweep: ...
    @property
    def base(self) -> Base | None: ...
    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def frontier(self) -> Frontier: ...
    @property
    def resamples(self) -> Resamples | None: ...
    @property
    def isoflop(self) -> IsoFlop: ...
    @property
    def hyper(self) -> HyperLaws: ...
    @property
    def forecast(self) -> HoldOut | NotFitted: ...
    @property
    def noise(self) -> float: ...
    @property
    def largest_flops(self) -> float: ...


@dataclass(frozen=True)
class BestSize:
    """N* of a budget.

    `inside` is False where the loss still falls at the smallest or the largest size there is.
    `source` says which law it is from, `surface` is None where that is the isoFLOP minima's.
    """

    target_flops: float
    params: Estimate
    inside: bool
    source: str
    surface: Surface | None


def best_size(fit: Evidence, target_flops: float) -> BestSize | NotFitted:
    """N* at the target, by the surface or else by the isoFLOP minima."""
    laws = fit.isoflop.laws
    if fit.resamples is not None:
        return _on_surface(fit, fit.resamples, target_flops)
    if isinstance(laws, NotFitted):
        return NotFitted(
            f"neither a loss surface nor an isoFLOP law could be fitted: {laws.reason}"
        )
    params = laws.size.predict(C=target_flops)
    smallest, largest = fit.frontier.smallest_params, fit.frontier.largest_params
    inside = smallest <= params.value <= largest
    return BestSize(target_flops, params, inside, MINIMA, None)


def _on_surface(fit: Evidence, resamples: Resamples, target_flops: float) -> BestSize:
    best = _Minima(fit.frontier, target_flops)
    at = float(best(resamples.huber).log_params[0])
    other = Spread({DISAGREEMENT: _minima_differ(fit.isoflop, target_flops, at)})
    spread = spread_of(resamples, lambda surfaces: best(surfaces).log_params, other)
    sizes = np.exp(best(resamples.huber).log_params)
    return BestSize(
        target_flops=target_flops,
        params=log_band(sizes, resamples.stretch, spread),
        inside=bool(best(resamples.huber).inside[0]),
        source=SURFACE.format(cost=fit.frontier.source),
        surface=resamples.huber.surface(),
    )


def loss_at(fit: Evidence, best: BestSize, params: float, tokens: float) -> Estimate:
    """Loss of one run of (N, D); its interval holds the noise of a run and what the fit missed."""
    if fit.resamples is None:
        loss = _fitted(fit.isoflop.laws).loss.predict(C=best.target_flops)
    else:
        loss = _on_surface_at(fit, fit.resamples, best, params, tokens)
    return with_misses(fit, best.surface, best.target_flops, loss)


def _on_surface_at(
    fit: Evidence, resamples: Resamples, best: BestSize, params: float, tokens: float
) -> Estimate:
    n, d = np.array([params]), np.array([tokens])

    def log_loss(surfaces: Surfaces) -> Floats:
        return np.asarray(surfaces.log_loss(n, d)[:, 0])

    minimum = _Minima(fit.frontier, best.target_flops)(resamples.huber[:1])
    other = Spread({DISAGREEMENT: _losses_differ(fit.isoflop, best.target_flops, minimum)})
    spread = spread_of(resamples, log_loss, other)
    losses = finite_exp(log_loss(resamples.huber))
    return log_band(losses, resamples.stretch, spread, fit.noise)


class _Minima:
    """The minimum on one budget of each surface asked for, found once."""

    def __init__(self, frontier: Frontier, flops: float) -> None:
        self._frontier, self._flops = frontier, flops
        self._found: dict[int, tuple[Surfaces, Best]] = {}

    def __call__(self, surfaces: Surfaces) -> Best:
        # The surfaces are kept beside their minima, so that no other ones can get their id.
        if id(surfaces) not in self._found:
            best = self._frontier.best(surfaces, self._flops)
            self._found[id(surfaces)] = (surfaces, best)
        return self._found[id(surfaces)][1]


def _minima_differ(isoflop: IsoFlop, flops: float, log_params: float) -> float:
    """How far the minima's N* is from the surface's ln N*, beyond its own interval."""
    if isinstance(isoflop.laws, NotFitted):
        return 0.0
    predicted = isoflop.laws.size.predict(C=flops)
    unbiased = math.log(predicted.value) - _bias(isoflop, flops)
    return unexplained(unbiased - log_params, _half_width(predicted))


def _losses_differ(isoflop: IsoFlop, flops: float, minimum: Best) -> float:
    if isinstance(isoflop.laws, NotFitted):
        return 0.0
    predicted = isoflop.laws.loss.predict(C=flops)
    return unexplained(
        math.log(predicted.value) - float(minimum.log_loss[0]), _half_width(predicted)
    )


def _bias(isoflop: IsoFlop, flops: float) -> float:
    """What the parabolas get wrong in ln N* at this budget, as they do on the fitted surface."""
    known = {
        math.log(budget): optimum.bias_ln_params
        for budget, optimum in isoflop.optima
        if optimum.bias_ln_params is not None
    }
    if len(known) < 2:
        return 0.0
    line = np.polyfit(list(known), list(known.values()), 1)
    return float(np.polyval(line, math.log(flops)))


def _half_width(estimate: Estimate) -> float:
    """Of the interval of the logarithm; nothing is beyond an interval that is not known."""
    if estimate.low is None or estimate.high is None:
        return math.inf
    return math.log(estimate.high / estimate.low) / 2


def _fitted(laws: ComputeLaws | NotFitted) -> ComputeLaws:
    if isinstance(laws, NotFitted):
        raise ValueError("a best size without a surface comes from the isoFLOP laws")
    return laws
