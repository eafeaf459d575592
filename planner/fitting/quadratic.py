"""The joint quadratic of a loss in ln lr and ln batch: where it has its minimum, and how surely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 7  # six coefficients, and one point to judge them by

Floats = NDArray[np.float64]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Quadratic:
    """y = y_star + (z - vertex)' hessian (z - vertex) / 2 with z = (ln lr, ln batch).

    `unit_covariance` is that of the vertex and `unit_se_y` the standard error of `y_star`, both
    for noise of one in y (delta method); `rss` and `df` tell the noise itself.
    """

    vertex: Pair
    y_star: float
    hessian: tuple[Pair, Pair]
    unit_covariance: tuple[Pair, Pair]
    unit_se_y: float
    rss: float
    df: int

    def at(self, lr: float, batch_tokens: float) -> float:
        return self.y_star + self._rise((math.log(lr), math.log(batch_tokens)))

    def lowest_within(self, low: Pair, high: Pair) -> Pair:
        """The (ln lr, ln batch) of the least y in a box of (ln lr, ln batch).

        Where the vertex lies outside, that is a point on the border: the axes whose limit it
        touches are those along which the box would have to be extended.
        """
        if all(low[axis] <= self.vertex[axis] <= high[axis] for axis in (0, 1)):
            return self.vertex
        border = [
            self._lowest_at(axis, end[axis], low, high) for axis in (0, 1) for end in (low, high)
        ]
        return min(border, key=self._rise)

    def _lowest_at(self, axis: int, value: float, low: Pair, high: Pair) -> Pair:
        """The least y where one axis has this value and the other lies within its limits."""
        other = 1 - axis
        slope = self.hessian[0][1] / self.hessian[other][other]
        free = self.vertex[other] - slope * (value - self.vertex[axis])
        free = min(max(free, low[other]), high[other])
        return (value, free) if axis == 0 else (free, value)

    def _rise(self, z: Pair) -> float:
        step = np.subtract(z, self.vertex)
        return float(step @ np.asarray(self.hessian) @ step) / 2

    def curvature(self, axis: int) -> float:
        """d²y / d(ln x)² along one axis (0 lr, 1 batch), the other one following its optimum."""
        return 1 / float(np.linalg.inv(np.asarray(self.hessian))[axis, axis])


@dataclass(frozen=True)
class NoQuadratic:
    """Why the points carry no joint minimum."""

    reason: str


def fit_quadratic(
    lr: Sequence[float], batch_tokens: Sequence[float], y: Sequence[float]
) -> Quadratic | NoQuadratic:
    """Least squares of y on the six quadratic terms in (ln lr, ln batch)."""
    if len(y) < MIN_POINTS:
        return NoQuadratic(f"{len(y)} near-optimal runs; a joint quadratic needs {MIN_POINTS}")
    z = np.log(np.stack([np.asarray(lr, dtype=float), np.asarray(batch_tokens, dtype=float)]))
    center = z.mean(axis=1)
    u, v = z - center[:, None]
    design = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return NoQuadratic("the near-optimal runs do not span learning rate and batch together")
    target = np.asarray(y, dtype=float)
    coefficients = np.linalg.lstsq(design, target)[0]
    _, _, _, a, b, c = coefficients
    hessian = np.array([[2 * a, b], [b, 2 * c]])
    if np.linalg.eigvalsh(hessian)[0] <= 0:
        return NoQuadratic("the loss does not curve upwards in every direction around the best run")
    return _describe(design, target, coefficients, hessian, center)


def _describe(
    design: Floats, target: Floats, coefficients: Floats, hessian: Floats, center: Floats
) -> Quadratic:
    inverse = np.linalg.inv(hessian)
    vertex = -inverse @ coefficients[1:3]
    u, v = vertex
    unit = np.linalg.inv(design.T @ design)
    # d vertex = -H^-1 (dg + dH vertex), g being the linear and H the quadratic coefficients.
    jacobian = -inverse @ np.array([[0, 1, 0, 2 * u, v, 0], [0, 0, 1, 0, u, 2 * v]])
    terms = np.array([1, u, v, u * u, u * v, v * v])
    covariance = jacobian @ unit @ jacobian.T
    residuals = target - design @ coefficients
    return Quadratic(
        vertex=_pair(vertex + center),
        y_star=float(terms @ coefficients),
        hessian=(_pair(hessian[0]), _pair(hessian[1])),
        unit_covariance=(_pair(covariance[0]), _pair(covariance[1])),
        unit_se_y=math.sqrt(float(terms @ unit @ terms)),
        rss=float(residuals @ residuals),
        df=len(target) - design.shape[1],
    )


def _pair(values: Floats) -> Pair:
    first, second = values
    return float(first), float(second)
