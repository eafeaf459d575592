"""A log-linear law through the optima of groups, with intervals by resampling the groups.

Rows of a group are not independent, so groups are what is drawn (a cluster bootstrap); on Step
Law's sweep that gives the exponent of D about twice the published standard error. The law has as
many constants as the optima can carry, and says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.fitting.laws import LEVEL, Estimate, t_quantile

RESAMPLES = 1_000
SLOPE_MIN_OPTIMA = 3
FULL_MIN_OPTIMA = 6
COLLINEAR = 0.99
NARROW = 1.1  # a variable that spans less than 10% carries no exponent

_NORMAL_QUANTILE = 1.6448536269514722  # half-width of a normal's interval at LEVEL = 0.90
_SINGULAR = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupLaw:
    """ln y = c + Σ p_j ln x_j over the optima of groups.

    `coefficients` are (c, p_1, ...) in the order of `variables`. `samples` are resampled ones,
    (resamples, coefficients), spread so that their plain percentiles are the interval; None where
    no degree of freedom is left, or none were asked for. Laws over the same optima, resampled with
    one seed, were resampled alike row by row. `residual_sd` is the scatter of ln y about the law.
    """

    variables: tuple[str, ...]
    coefficients: tuple[float, ...]
    samples: Floats | None
    residual_sd: float | None
    df: int
    optima: int
    reason: str

    @property
    def coefficient(self) -> Estimate:
        """k in y = k Π x_j^p_j."""
        row = [1.0] + [0.0] * len(self.variables)
        return _exp(self._interval(np.asarray(row)))

    def exponent(self, variable: str) -> Estimate:
        """p of one variable; 0 without an interval where the law leaves it out."""
        if variable not in self.variables:
            return Estimate(0.0, unknown=f"{variable} is left out of the law ({self.reason})")
        row = np.zeros(1 + len(self.variables))
        row[1 + self.variables.index(variable)] = 1
        return self._interval(row)

    def value(self, **x: float) -> float:
        """y at a point that gives at least `variables`."""
        return _finite_exp(float(self._row(x) @ np.asarray(self.coefficients)))

    def resampled(self, **x: float) -> Floats | None:
        """y at a point from each of `samples`, (resamples,): the law's own uncertainty."""
        return None if self.samples is None else np.exp(self.samples @ self._row(x))

    def predict(self, **x: float) -> Estimate:
        """y at a point; the interval holds the law's uncertainty and the scatter of one optimum."""
        law = self._interval(self._row(x))
        if law.low is None or law.high is None or self.residual_sd is None:
            return _exp(law)
        scatter = t_quantile(self.df) * self.residual_sd
        low = law.value - math.hypot(law.value - law.low, scatter)
        return _exp(Estimate(law.value, low, law.value + math.hypot(law.high - law.value, scatter)))

    def _row(self, x: Mapping[str, float]) -> Floats:
        return np.array([1.0, *(math.log(x[name]) for name in self.variables)])

    def _interval(self, row: Floats) -> Estimate:
        value = float(row @ np.asarray(self.coefficients))
        if self.samples is None:
            return Estimate(value, unknown=_no_interval(len(row), self.optima))
        tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
        low, high = np.percentile(self.samples @ row, tails)
        # Resampling a handful of optima can leave the point outside its own percentiles.
        return Estimate(value, min(float(low), value), max(float(high), value))


def fit_group_law(
    y: Sequence[float],
    variables: Mapping[str, Sequence[float]],
    variances: Sequence[float | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GroupLaw:
    """The law of y over at least one optimum, in as many of `variables` as these can carry.

    The last variable is the one that stays where two cannot be told apart. `variances` are those
    of ln y; an optimum weighs 1 / (v + median v), all the same where one of them is not known.
    """
    names, reason = _form(variables, len(y))
    design = np.column_stack([np.ones(len(y)), *(np.log(np.asarray(variables[n])) for n in names)])
    root = np.sqrt(_weights(variances))
    whitened, triangular = np.linalg.qr(design * root[:, None])
    target = np.log(np.asarray(y)) * root
    rotated = whitened.T @ target
    residuals = target - whitened @ rotated
    df = len(y) - design.shape[1]
    samples = None
    if df > 0 and resamples > 0:
        draws = _resample(whitened, residuals, resamples, seed) * _inflation(len(y), df)
        samples = np.linalg.solve(triangular, (rotated + draws).T).T
    return GroupLaw(
        variables=names,
        coefficients=tuple(np.linalg.solve(triangular, rotated).tolist()),
        samples=samples,
        residual_sd=math.sqrt(float(residuals @ residuals) / df) if df > 0 else None,
        df=df,
        optima=len(y),
        reason=reason,
    )


def _resample(whitened: Floats, residuals: Floats, resamples: int, seed: int) -> Floats:
    """How far the whitened coefficients move when the optima are drawn with replacement.

    (resamples, coefficients); draws in which too few distinct optima are left are drawn again.
    """
    rng = np.random.default_rng(seed)
    count, size = whitened.shape
    moves: list[Floats] = []
    missing = resamples
    while missing > 0:
        times = rng.multinomial(count, np.full(count, 1 / count), size=missing).astype(float)
        normal = np.einsum("ri,ij,ik->rjk", times, whitened, whitened, optimize=True)
        regular = np.linalg.eigvalsh(normal)[:, 0] > _SINGULAR
        right = (times * residuals) @ whitened
        moves.append(np.linalg.solve(normal[regular], right[regular, :, None])[:, :, 0])
        missing -= len(moves[-1])
    return np.concatenate(moves).reshape(resamples, size)


def _inflation(count: int, df: int) -> float:
    """Residuals are smaller than errors by (df / n)^½; very few optima have Student's tails too.

    The larger of the two covers as stated from 3 optima on; both together cover 95% instead of 90%.
    """
    return max(math.sqrt(count / df), t_quantile(df) / _NORMAL_QUANTILE)


def _weights(variances: Sequence[float | None]) -> Floats:
    known = np.array([variance for variance in variances if variance is not None])
    if len(known) < len(variances) or np.median(known) <= 0:
        return np.ones(len(variances))
    weights = 1 / (known + np.median(known))
    return np.asarray(weights / weights.mean())


def _form(variables: Mapping[str, Sequence[float]], count: int) -> tuple[tuple[str, ...], str]:
    """Which variables the law may have, and why."""
    have = f"{count} interior optim{'um' if count == 1 else 'a'}"
    if count < SLOPE_MIN_OPTIMA:
        return (), f"{have}: a constant (a slope needs {SLOPE_MIN_OPTIMA})"
    spread = {name: max(x) / min(x) for name, x in variables.items()}
    wide = tuple(name for name, ratio in spread.items() if ratio >= NARROW)
    if not wide:
        return (), f"{have}, all at nearly the same {' and '.join(variables)}: a constant"
    if len(wide) == 1:
        return wide, f"{have}, only {wide[0]} varies"
    last = wide[-1]
    if count < FULL_MIN_OPTIMA:
        return (last,), f"{have}: {last} only ({' and '.join(wide)} need {FULL_MIN_OPTIMA})"
    first = np.log(np.asarray(variables[wide[0]]))
    correlation = float(np.corrcoef(first, np.log(np.asarray(variables[last])))[0, 1])
    if abs(correlation) > COLLINEAR:
        told = f"ln {wide[0]} and ln {last} correlate by {correlation:.3f}"
        return (last,), f"{have}, but {told}: {last} only"
    return wide, f"{have}: {' and '.join(wide)}"


def _exp(estimate: Estimate) -> Estimate:
    """From ln y to y."""
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return Estimate(_finite_exp(estimate.value), unknown=estimate.unknown)
    return Estimate(_finite_exp(estimate.value), _finite_exp(low), _finite_exp(high))


def _finite_exp(value: float) -> float:
    """The interval of a handful of optima can be absurdly wide."""
    return math.exp(min(max(value, -700.0), 700.0))


def _no_interval(constants: int, optima: int) -> str:
    if optima > constants:
        return "no resamples were asked for"
    return f"{optima} optima for {constants} constants leave no degree of freedom"
