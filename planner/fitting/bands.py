"""How sure a fitted number is: resampling, the two estimators' spread, each budget left out.

Resampling is of whole clusters (a run, or all runs of one (N, D)), because rows of one run are not
independent. The interval reaches from the estimate to the 5% and 95% quantiles of the resampled
values, both stretched by sqrt(n / (n - 5)): five constants follow the noise, so residuals look
smaller than it is. Over simulated sweeps of 35 and 45 runs it covers 88 to 95% where 90% is stated.

A disagreement (of estimators, between budgets, with the isoFLOP minima) counts only by what
resampling does not explain: noise alone makes estimators differ, and must not be counted twice.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.fitting.descent import LEAST_SQUARES, LOG_HUBER
from planner.fitting.estimators import SurfaceFit, refit
from planner.fitting.laws import LEVEL, Estimate
from planner.fitting.surface import CONSTANTS, Floats, Points, Surfaces

QUANTILES = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
Z = 1.6449  # of LEVEL, two-sided
LEAVE_OUT_SLACK = 2.0  # a jackknife over few budgets is itself uncertain by about this factor


@dataclass(frozen=True)
class Resamples:
    """The estimates and what they become: `huber` and `varpro` have the estimate in row 0.

    `left_out` has one row for each of `budgets_flops` without its points.
    """

    huber: Surfaces
    varpro: Surfaces
    left_out: Surfaces
    budgets_flops: tuple[float, ...]
    stretch: float
    converged: float

    @property
    def count(self) -> int:
        return len(self.huber) - 1


@dataclass(frozen=True)
class Spread:
    """Half-widths that resampling of one estimator does not know, beside it (see `band`)."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return math.hypot(*self.parts.values())


def resample(
    points: Points,
    huber: SurfaceFit,
    varpro: SurfaceFit,
    budgets: Mapping[float, NDArray[np.bool_]],
    count: int,
    seed: int,
) -> Resamples:
    """Fit both estimators to `count` resamples of the clusters, and to each budget left out.

    `budgets` maps a budget to the mask of its points.
    """
    weights = cluster_weights(points, count, seed)
    without = {flops: (~mask).astype(float) for flops, mask in budgets.items()}
    stacked = np.vstack([weights, *without.values()])
    of_huber, converged = refit(LOG_HUBER, points, huber.surfaces, stacked)
    of_varpro, _ = refit(LEAST_SQUARES, points, varpro.surfaces, weights)
    centre = points.centre
    spare = max(len(points) - len(CONSTANTS), 1)
    return Resamples(
        huber=Surfaces(np.vstack([huber.surfaces.theta, of_huber.theta[:count]]), centre),
        varpro=Surfaces(np.vstack([varpro.surfaces.theta, of_varpro.theta]), centre),
        left_out=Surfaces(of_huber.theta[count:], centre),
        budgets_flops=tuple(without),
        stretch=math.sqrt(len(points) / spare),
        converged=float(converged.mean()) if len(converged) else 1.0,
    )


def cluster_weights(points: Points, count: int, seed: int) -> Floats:
    """How often each point is in each resample, (count, n)."""
    _, place = np.unique(points.cluster, return_inverse=True)
    clusters = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=count)
    return np.asarray(drawn[:, place], dtype=float)


def band(samples: Floats, stretch: float, spread: Spread, noise: float = 0.0) -> Estimate:
    """The estimate (samples[0]) with its interval; `noise` is the sd of one new observation."""
    value, drawn = float(samples[0]), samples[1:]
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 20:
        return Estimate(value, unknown=f"{len(drawn)} resamples; an interval needs at least 20")
    low, high = np.percentile(drawn, QUANTILES)
    below, above = max(value - low, 0.0) * stretch, max(high - value, 0.0) * stretch
    parts = {"resampling": float(below + above) / 2, **spread.parts}
    if noise:
        parts["noise"] = Z * noise
    beside = (spread.total, Z * noise)
    return Estimate(
        value=value,
        low=value - math.hypot(below, *beside),
        high=value + math.hypot(above, *beside),
        parts=parts,
    )


def log_band(samples: Floats, stretch: float, spread: Spread, noise: float = 0.0) -> Estimate:
    """As `band`, for a positive number: in logarithms, and back."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = band(np.log(samples), stretch, spread, noise)
    if inside.low is None or inside.high is None:
        return Estimate(float(samples[0]), unknown=inside.unknown)
    low, high = finite_exp(np.array([inside.low, inside.high])).tolist()
    return Estimate(float(samples[0]), low, high, parts=inside.parts)


def spread_of(
    resamples: Resamples, quantity: Callable[[Surfaces], Floats], other: Spread | None = None
) -> Spread:
    """What estimators and left-out budgets add for one `quantity` of a surface, (R,) values."""
    huber, varpro = quantity(resamples.huber), quantity(resamples.varpro)
    parts = dict(other.parts) if other else {}
    parts["estimators"] = unexplained(float(varpro[0] - huber[0]), Z * _sd(varpro[1:] - huber[1:]))
    if len(resamples.left_out) > 1:
        shifts = quantity(resamples.left_out) - huber[0]
        shifts = shifts[np.isfinite(shifts)]
        jackknife = math.sqrt((len(shifts) - 1) / max(len(shifts), 1) * float((shifts**2).sum()))
        explained = LEAVE_OUT_SLACK * resamples.stretch * _sd(huber[1:])
        parts["budgets left out"] = unexplained(jackknife, explained)
    return Spread({name: part for name, part in parts.items() if part > 0})


def unexplained(difference: float, explained: float) -> float:
    """The part of a difference beyond what noise explains, in quadrature."""
    size = abs(difference)
    if not math.isfinite(size) or not explained < size:
        return 0.0
    return size * math.sqrt(1 - (explained / size) ** 2)


def _sd(values: Floats) -> float:
    """Robust standard deviation: half the central 68%."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.inf
    low, high = np.percentile(finite, (16, 84))
    return float(high - low) / 2


def finite_exp(logarithms: Floats) -> Floats:
    """e^x; far from the data a resampled surface can reach beyond what a float holds."""
    return np.asarray(np.exp(np.clip(logarithms, -700.0, 700.0)))
