"""Where a curve that was sampled at a few points has its minimum, and whether it lies inside.

The same question is asked of loss over learning rate (hyper.py) and of loss over size (isoflop.py).
A minimum at the edge of what was tried is a bound, not an optimum: it gets a verdict of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 3


class Verdict(Enum):
    """What the points say about their minimum; all but INTERIOR are bounds at most."""

    INTERIOR = "interior"
    LOWEST = "lowest is best"
    HIGHEST = "highest is best"
    TOO_FEW = "too few"
    FLAT = "no minimum"


@dataclass(frozen=True)
class Parabola:
    """y = y_star + curvature/2 · (ln x - ln x_star)², by least squares over [x_low, x_high].

    `unit_se_ln_x` and `unit_se_y` are the standard errors of the vertex for noise of one in y;
    `rss` and `df` tell the noise itself, pooled over many curves (`pooled_noise`).
    """

    ln_x_star: float
    y_star: float
    curvature: float
    x_low: float
    x_high: float
    unit_se_ln_x: float
    unit_se_y: float
    rss: float
    df: int

    @property
    def x_star(self) -> float:
        return math.exp(self.ln_x_star)

    def at(self, x: float) -> float:
        return self.y_star + self.curvature / 2 * (math.log(x) - self.ln_x_star) ** 2


@dataclass(frozen=True)
class Minimum:
    """The verdict on a curve, its best point, and the parabola where the minimum is interior."""

    verdict: Verdict
    best: int
    parabola: Parabola | None = None


def find_minimum(x: Sequence[float], y: Sequence[float], near: Sequence[bool]) -> Minimum:
    """Judge the curve through (x, y), x ascending and positive.

    The parabola in ln x goes through the best point, its two neighbours, and beyond them every
    adjoining point that `near` admits. A vertex outside that window is no minimum: FLAT.
    """
    best = int(np.argmin(np.asarray(y)))
    if len(x) < MIN_POINTS:
        return Minimum(Verdict.TOO_FEW, best)
    if best == 0:
        return Minimum(Verdict.LOWEST, best)
    if best == len(x) - 1:
        return Minimum(Verdict.HIGHEST, best)
    low, high = _window(near, best)
    parabola = fit_parabola(x[low : high + 1], y[low : high + 1])
    if parabola is None or not parabola.x_low < parabola.x_star < parabola.x_high:
        return Minimum(Verdict.FLAT, best)
    return Minimum(Verdict.INTERIOR, best, parabola)


def fit_parabola(x: Sequence[float], y: Sequence[float]) -> Parabola | None:
    """Least squares of y on (1, ln x, ln² x); None where the curve does not open upwards."""
    ln_x = np.log(np.asarray(x, dtype=float))
    center = float(ln_x.mean())
    design = np.stack([np.ones_like(ln_x), ln_x - center, (ln_x - center) ** 2], axis=1)
    target = np.asarray(y, dtype=float)
    orthogonal, triangular = np.linalg.qr(design)
    constant, slope, square = np.linalg.solve(triangular, orthogonal.T @ target)
    if square <= 0:
        return None
    inverse = np.linalg.inv(triangular)
    vertex = -slope / (2 * square)
    residuals = target - design @ np.array([constant, slope, square])
    return Parabola(
        ln_x_star=center + float(vertex),
        y_star=float(constant + slope * vertex / 2),
        curvature=float(2 * square),
        x_low=float(x[0]),
        x_high=float(x[-1]),
        unit_se_ln_x=_unit_se(inverse, [0, -1 / (2 * square), slope / (2 * square**2)]),
        unit_se_y=_unit_se(inverse, [1, vertex, vertex**2]),
        rss=float(residuals @ residuals),
        df=len(ln_x) - 3,
    )


def pooled_noise(parabolas: Sequence[Parabola]) -> float | None:
    """Standard deviation of y about its parabolas; None where none has a point to spare."""
    df = sum(parabola.df for parabola in parabolas)
    if df == 0:
        return None
    return math.sqrt(sum(parabola.rss for parabola in parabolas) / df)


def _window(near: Sequence[bool], best: int) -> tuple[int, int]:
    low, high = best - 1, best + 1
    while low > 0 and near[low] and near[low - 1]:
        low -= 1
    while high < len(near) - 1 and near[high] and near[high + 1]:
        high += 1
    return low, high


def _unit_se(inverse: NDArray[np.float64], gradient: Sequence[float]) -> float:
    """Delta method: sqrt(g (R'R)^-1 g') from the inverse of R."""
    return float(np.linalg.norm(np.asarray(gradient, dtype=float) @ inverse))
