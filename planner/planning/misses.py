"""What a fit was measured to get wrong, carried to a planned loss.

Resampling and noise do not know that the surface may not have the shape of the losses. Two numbers
show it: how far off the largest budget was forecast without its runs, and how far the surface
misses the best loss of the largest budget. By what its interval does not explain already they widen
a planned loss, to the side on which the runs were found: over the isoFLOP sweeps in
docs/planner.md and sweeps/demo, cut short at every budget, the next three budgets lay on the side
of the held-out one in 89% of the cases where that was off by more than noise, and in all where it
was off by more than twice that.
"""

import math
from dataclasses import replace
from typing import Protocol

from planner.fitting.bands import unexplained
from planner.fitting.forecast import HoldOut
from planner.fitting.isoflop import IsoFlop
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import Surface

HELD_OUT, AT_MINIMA = "largest budget held out", "misfit at the minima"
# Student's t of two degrees of freedom: one error tells the size of the next only roughly. On the
# sweeps above, intervals without this part held the losses of the next three budgets in 84 of 100
# cases, with it in 91.
ONE_ERROR = 2.92


class Measured(Protocol):
    """What of a fit tells its misses; `noise` is the relative standard deviation of one loss."""

    @property
    def forecast(self) -> HoldOut | NotFitted: ...
    @property
    def isoflop(self) -> IsoFlop: ...
    @property
    def noise(self) -> float: ...


def with_misses(
    fit: Measured, surface: Surface | None, target_flops: float, loss: Estimate
) -> Estimate:
    """A planned loss of `surface`, or where there is none of the isoFLOP laws, with its misses."""
    if loss.low is None or loss.high is None:
        return loss
    below, above = math.log(loss.value / loss.low), math.log(loss.high / loss.value)
    parts = dict(loss.parts)
    for name, miss in (
        (HELD_OUT, _held_out(fit, target_flops)),
        (AT_MINIMA, _at_largest(fit.isoflop, surface)),
    ):
        beyond = unexplained(miss, below if miss > 0 else above)
        if beyond > 0:
            parts[name] = beyond
        if miss > 0:
            below = math.hypot(below, beyond)
        else:
            above = math.hypot(above, beyond)
    low, high = loss.value * math.exp(-below), loss.value * math.exp(above)
    return replace(loss, low=low, high=high, parts=parts)


def _held_out(fit: Measured, target_flops: float) -> float:
    """In ln L, above 0 where forecasts are too high; what noise explains of it is none.

    A wrong shape shows the more, the farther from the runs: in proportion to that distance. Where
    the isoFLOP laws forecast, what the surface differs from them by is a part of its own.
    """
    found = fit.forecast
    if isinstance(found, NotFitted):
        return 0.0
    error = math.log1p(found.relative_error)
    size = ONE_ERROR * max(found.reach(target_flops), 1.0) * unexplained(error, fit.noise)
    return math.copysign(size, error)


def _at_largest(isoflop: IsoFlop, surface: Surface | None) -> float:
    """ln of the surface over the best loss of the largest budget that has an interior one."""
    if surface is None or not isoflop.optima:
        return 0.0
    _, optimum = isoflop.optima[-1]
    return math.log(surface.loss(optimum.params, optimum.tokens) / optimum.loss)
