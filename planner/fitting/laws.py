"""The functional forms: log-linear laws, a power law above a floor, and their intervals.

Every logarithm is natural. Every interval is a Student-t interval at `LEVEL`; where no degree of
freedom is left it is stated as unknown, with the reason, and never invented.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.90

FLOOR_LAW_MIN_POINTS = 4
_FLOOR_EXPONENTS = (0.01, 3.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval at `LEVEL`; without one, `unknown` says why.

    `parts` says where the width comes from: each source's half-width alone, in units of the value
    or, for a number that is banded in logarithms, of its logarithm.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unknown: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NotFitted:
    """A law the data cannot carry, and why."""

    reason: str


@cache
def t_quantile(df: int) -> float:
    """Half-width, in standard errors, of the two-sided t interval at `LEVEL`.

    By bisection; scipy has it too, but takes 0.4 s to import.
    """
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, df) < LEVEL else (low, middle)
    return high


def _t_probability(t: float, df: int) -> float:
    """P(|T| < t), Abramowitz and Stegun 26.7.3 (odd df) and 26.7.4 (even df)."""
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, df - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series


@dataclass(frozen=True)
class LogLinear:
    """ln y = c + Σ p_j ln x_j: a power law in each of `variables`.

    `coefficients` are (c, p_1, p_2, ...); `covariance` is theirs for a residual variance of one;
    `residual_sd` is the standard deviation of ln y about the law, None without degrees of freedom.
    """

    variables: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    residual_sd: float | None
    df: int

    @property
    def scale(self) -> Estimate:
        """k in y = k Π x_j^p_j."""
        return self._exp(self.coefficients[0], self._variance([1.0] + [0.0] * len(self.variables)))

    def exponent(self, variable: str) -> Estimate:
        """p of one variable."""
        index = 1 + self.variables.index(variable)
        value = self.coefficients[index]
        half = self._half_width(self.covariance[index][index])
        return self._unknown(value) if half is None else Estimate(value, value - half, value + half)

    def value(self, **x: float) -> float:
        return _exp(float(np.dot(self._row(x), self.coefficients)))

    def predict(self, **x: float) -> Estimate:
        """y at a new point; the interval holds parameter noise and one new observation's noise."""
        row = self._row(x)
        return self._exp(float(np.dot(row, self.coefficients)), 1 + self._variance(row))

    def _row(self, x: Mapping[str, float]) -> list[float]:
        return [1.0, *(math.log(x[name]) for name in self.variables)]

    def _variance(self, row: Sequence[float]) -> float:
        return float(np.asarray(row) @ np.asarray(self.covariance) @ np.asarray(row))

    def _half_width(self, variance: float) -> float | None:
        if self.residual_sd is None:
            return None
        return t_quantile(self.df) * self.residual_sd * math.sqrt(variance)

    def _exp(self, ln_value: float, variance: float) -> Estimate:
        half = self._half_width(variance)
        if half is None:
            return self._unknown(_exp(ln_value))
        return Estimate(_exp(ln_value), _exp(ln_value - half), _exp(ln_value + half))

    def _unknown(self, value: float) -> Estimate:
        return Estimate(value, unknown=_no_freedom(len(self.coefficients), self.df))


def fit_log_linear(
    y: Sequence[float],
    x: Mapping[str, Sequence[float]],
    weights: Sequence[float] | None = None,
) -> LogLinear:
    """Least squares of ln y on the logarithms of `x`, each observation with its weight.

    Needs at least as many observations as constants and no collinear variables.
    """
    design = np.column_stack([np.ones(len(y)), *(np.log(np.asarray(v)) for v in x.values())])
    scale = np.sqrt(_normalised(weights, len(y)))
    weighted, target = design * scale[:, None], np.log(np.asarray(y)) * scale
    orthogonal, triangular = np.linalg.qr(weighted)
    coefficients = np.linalg.solve(triangular, orthogonal.T @ target)
    inverse = np.linalg.inv(triangular)
    df = len(y) - design.shape[1]
    rss = float(np.sum((target - weighted @ coefficients) ** 2))
    return LogLinear(
        variables=tuple(x),
        coefficients=tuple(map(float, coefficients)),
        covariance=_nested(inverse @ inverse.T),
        residual_sd=math.sqrt(rss / df) if df > 0 else None,
        df=df,
    )


def power_law(x: Sequence[float], y: Sequence[float], name: str = "C") -> LogLinear:
    """y = k x^p by log-log least squares, with t intervals of n - 2 degrees of freedom."""
    return fit_log_linear(y, {name: x})


@dataclass(frozen=True)
class FloorLaw:
    """L = E + k (C / reference)^-p, fitted to relative residuals.

    `covariance` is that of (E, k, p) for a residual variance of one; `residual_sd` is relative.
    """

    floor: float
    amplitude: float
    exponent_value: float
    reference: float
    covariance: tuple[tuple[float, ...], ...]
    residual_sd: float | None
    df: int

    @property
    def scale(self) -> float:
        """k in L = E + k C^-p."""
        return self.amplitude * self.reference**self.exponent_value

    def parameters(self) -> dict[str, Estimate]:
        """E and p with their intervals."""
        values = (self.floor, self.amplitude, self.exponent_value)
        both = [self._around(values[i], math.sqrt(self.covariance[i][i])) for i in (0, 2)]
        return {"floor": both[0], "exponent": both[1]}

    def value(self, C: float) -> float:
        return self.floor + self.amplitude * (C / self.reference) ** -self.exponent_value

    def predict(self, C: float) -> Estimate:
        """L at C by the delta method on ln L, with the noise of one new observation."""
        value = self.value(C)
        gradient = _floor_gradient(np.array([C]), self)[0]
        variance = 1 + float(gradient @ np.asarray(self.covariance) @ gradient)
        if self.residual_sd is None:
            return self._around(value, 0)
        half = t_quantile(self.df) * self.residual_sd * math.sqrt(variance)
        return Estimate(value, value * _exp(-half), value * _exp(half))

    def _around(self, value: float, unit_se: float) -> Estimate:
        if self.residual_sd is None:
            return Estimate(value, unknown=_no_freedom(3, self.df))
        half = t_quantile(self.df) * self.residual_sd * unit_se
        return Estimate(value, value - half, value + half)


def fit_floor_law(C: Sequence[float], L: Sequence[float]) -> FloorLaw | NotFitted:
    """L = E + k C^-p by variable projection: p on a refined grid, E and k in closed form.

    Minimises Σ((model - L) / L)². Needs `FLOOR_LAW_MIN_POINTS` points; where the best floor is zero
    or the exponent runs away, the plain power law is all that the points carry.
    """
    if len(C) < FLOOR_LAW_MIN_POINTS:
        return NotFitted(f"{len(C)} budgets; a floor needs at least {FLOOR_LAW_MIN_POINTS}")
    flops, losses = np.asarray(C, dtype=float), np.asarray(L, dtype=float)
    reference = float(np.exp(np.mean(np.log(flops))))
    p, floor, amplitude, rss = _project(flops / reference, losses)
    if floor <= 0:
        return NotFitted("the best floor is zero: the losses follow a plain power law")
    if amplitude <= 0 or not _FLOOR_EXPONENTS[0] * 1.01 < p < _FLOOR_EXPONENTS[1] / 1.01:
        return NotFitted(f"the exponent is not determined by {len(C)} budgets (best at {p:.2g})")
    df = len(C) - 3
    draft = FloorLaw(floor, amplitude, p, reference, (), None, df)
    gradient = _floor_gradient(flops, draft)
    return FloorLaw(
        floor=floor,
        amplitude=amplitude,
        exponent_value=p,
        reference=reference,
        covariance=_nested(np.linalg.pinv(gradient.T @ gradient)),
        residual_sd=math.sqrt(rss / df),
        df=df,
    )


def _project(x: Floats, losses: Floats) -> tuple[float, float, float, float]:
    """The best (p, E, k, residual sum of squares): a grid over p, then the grid zooms in."""
    low, high = _FLOOR_EXPONENTS
    for _ in range(8):
        grid = np.geomspace(low, high, 200)
        floor, amplitude, rss = _linear_part(grid, x, losses)
        best = int(np.argmin(rss))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(grid[best]), float(floor[best]), float(amplitude[best]), float(rss[best])


def _linear_part(exponents: Floats, x: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    """For each exponent the least-squares E >= 0 and k, and the residual sum of squares."""
    u = np.broadcast_to(1 / losses, (len(exponents), len(x)))
    v = x ** -exponents[:, None] / losses
    uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
    su, sv = u.sum(1), v.sum(1)
    floor = (su * vv - sv * uv) / (uu * vv - uv**2)
    amplitude = np.where(floor > 0, (uu * sv - uv * su) / (uu * vv - uv**2), sv / vv)
    floor = np.maximum(floor, 0)
    rss = ((floor[:, None] * u + amplitude[:, None] * v - 1) ** 2).sum(1)
    return floor, amplitude, rss


def _floor_gradient(C: Floats, law: FloorLaw) -> Floats:
    """d ln L / d(E, k, p), one row for each C."""
    ratio = C / law.reference
    power = ratio**-law.exponent_value
    loss = law.floor + law.amplitude * power
    rows = np.stack([np.ones_like(C), power, -law.amplitude * power * np.log(ratio)], axis=1)
    return np.asarray(rows / loss[:, None])


def _normalised(weights: Sequence[float] | None, count: int) -> Floats:
    if weights is None:
        return np.ones(count)
    array = np.asarray(weights, dtype=float)
    return array / array.mean()


def _nested(matrix: NDArray[np.floating]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in matrix)


def _exp(value: float) -> float:
    """e^value that stays finite: an interval of one degree of freedom can be absurdly wide."""
    return math.exp(min(max(value, -700.0), 700.0))


def _no_freedom(constants: int, df: int) -> str:
    points = constants + df
    return f"{points} observations for {constants} constants leave no degree of freedom"
