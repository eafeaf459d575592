"""Does one smooth curve pass through the rows, or two? By least absolute deviations.

Both searches assign rows to a lower and an upper curve, fit, and reassign until nothing moves, from
several starts: the rows above a quantile of the residuals from one curve, and those that the caller
has in mind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_SHARE = 0.05  # of the rows, and at least three, on either curve

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_ROUNDS = 20
_REWEIGHTINGS = 10
_SMALLEST = 1e-3  # residuals below it weigh alike
_LEAST_ROWS = 3

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Rows on the `upper` one of two curves.

    `gap` is the curves' distance at each row; `residuals` are from each row's own curve.
    """

    upper: Mask
    gap: Floats
    residuals: Floats

    @property
    def balanced(self) -> bool:
        return _balanced(self.upper)


def polynomial(x: Floats, degree: int) -> Floats:
    """Columns 1, x, x^2 ... of x standardised: shape (n, degree + 1)."""
    u = (x - x.mean()) / (x.std() or 1.0)
    return np.stack([u**power for power in range(degree + 1)], axis=1)


def quadratic(columns: list[Floats]) -> Floats:
    """All terms to second order, at most one per four rows: shape (n, terms), the first is 1."""
    n = len(columns[0])
    u = [(x - x.mean()) / x.std() for x in columns if np.ptp(x) > 0]
    terms = [np.ones(n), *u, *(a * a for a in u)]
    terms += [a * b for i, a in enumerate(u) for b in u[:i]]
    return np.stack(terms[: max(1, n // 4)], axis=1)


def robust_fit(X: Floats, y: Floats) -> Floats:
    """Coefficients of least absolute deviations, by reweighted least squares."""
    weights = np.ones(len(y))
    for _ in range(_REWEIGHTINGS):
        weighted = X.T * weights
        coefficients = np.linalg.lstsq(weighted @ X, weighted @ y, rcond=None)[0]
        weights = 1 / np.maximum(np.abs(y - X @ coefficients), _SMALLEST)
    return np.asarray(coefficients, np.float64)


def known_step(X: Floats, y: Floats, step: float, starts: Sequence[Mask] = ()) -> Mixture:
    """The best split into y = X c and y = X c + `step`, of one c; `starts` are tried as well."""
    found = [_follow_step(X, y, step, start) for start in (*_starts(X, y), *starts)]
    return min(found, key=lambda mixture: float(np.abs(mixture.residuals).mean()))


def _follow_step(X: Floats, y: Floats, step: float, upper: Mask) -> Mixture:
    for _ in range(_ROUNDS):
        above = y - X @ robust_fit(X, y - step * upper)
        moved = above > step / 2
        if np.array_equal(moved, upper):
            break
        upper = moved
    return Mixture(moved, np.full(len(y), step), above - step * moved)


def two_curves(X: Floats, y: Floats) -> Mixture | None:
    """The best split into two curves of the same form; None if none holds with enough rows."""
    found = [_follow_curves(X, y, start) for start in _starts(X, y)]
    balanced = [mixture for mixture in found if mixture is not None and mixture.balanced]
    if not balanced:
        return None
    return min(balanced, key=lambda mixture: float(np.abs(mixture.residuals).mean()))


def _follow_curves(X: Floats, y: Floats, upper: Mask) -> Mixture | None:
    for _ in range(_ROUNDS):
        if not _balanced(upper):
            return None
        high, low = X @ robust_fit(X[upper], y[upper]), X @ robust_fit(X[~upper], y[~upper])
        moved = np.abs(y - high) < np.abs(y - low)
        if np.array_equal(moved, upper):
            break
        upper = moved
    return Mixture(moved, np.abs(high - low), np.where(moved, y - high, y - low))


def _starts(X: Floats, y: Floats) -> Iterator[Mask]:
    residuals = y - X @ robust_fit(X, y)
    for quantile in _QUANTILES:
        yield residuals > np.quantile(residuals, quantile)
    yield residuals > (residuals.min() + residuals.max()) / 2


def _balanced(upper: Mask) -> bool:
    least = max(_LEAST_ROWS, LEAST_SHARE * len(upper))
    return bool(least <= upper.sum() <= len(upper) - least)
