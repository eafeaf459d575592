"""Two estimators of the loss surface, side by side; their difference is a model error.

`huber`: Huber's loss (delta 1e-3) on ln L, as Hoffmann et al. (arXiv 2203.15556, Eq. 3) and
Besiroglu et al. (arXiv 2404.10102), from ranked starts. `varpro`: least squares on L by variable
projection (Golub & Pereyra 1973): for each (alpha, beta) the best E, A, B >= 0 are linear, the two
exponents are searched on a grid that closes in (arXiv 2603.22339).
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from planner.fitting.descent import LEAST_SQUARES, LOG_HUBER, Residuals, descend
from planner.fitting.laws import NotFitted
from planner.fitting.surface import CONSTANTS, Floats, Points, Surfaces, log_gradient, log_loss
from planner.reading.runs import counted

MIN_POINTS = 6
EXPONENTS = (0.02, 3.0)
STARTS = 20
AGREE = 1e-4  # starts whose objective is this close to the best one found the same minimum
_GRID = 16
_FLOOR = 1e-12  # of the smallest loss: the logarithm of a term that is zero
_START_FLOOR = 0.02  # a descent in logarithms cannot leave a term that starts at zero


@dataclass(frozen=True)
class SurfaceFit:
    """One estimator's surface, and what tells whether to trust it.

    `objective` is summed over the points; `condition` is that of the column-scaled Jacobian of
    ln L; `gradient_norm` is the largest scaled gradient left; `residuals` are ln L - ln L_fit.
    """

    surfaces: Surfaces
    objective: float
    starts: int
    agreeing: int
    condition: float
    gradient_norm: float
    residuals: Floats

    @property
    def residual_sd(self) -> float:
        """Robust standard deviation of the relative residuals, five constants taken off."""
        spare = max(len(self.residuals) - len(CONSTANTS), 1)
        scale = 1.4826 * float(np.median(np.abs(self.residuals - np.median(self.residuals))))
        return scale * float(np.sqrt(len(self.residuals) / spare))


def unidentified(points: Points) -> str | None:
    """Why these points carry no surface, None if they can."""
    if len(points) < MIN_POINTS:
        pairs = counted(len(points), "pair")
        return f"{pairs} of (N, D); a surface of five constants needs {MIN_POINTS}"
    for name, values in (("size N", points.params), ("token count D", points.tokens)):
        distinct = len(np.unique(np.round(np.log(values), 3)))
        if distinct < 3:
            return f"{distinct} different {name}: its exponent needs at least 3"
    return None


def fit_huber(points: Points) -> SurfaceFit | NotFitted:
    """Minimise Σ Huber(ln L - ln L_fit), from the best of a grid of starts."""
    reason = unidentified(points)
    if reason is not None:
        return NotFitted(reason)
    data, ones = centred(points), np.ones((1, len(points)))
    grid = _ranked(points, LOG_HUBER)[:STARTS]
    ended = descend(LOG_HUBER, grid, data, np.repeat(ones, len(grid), 0), 400, 1e-13)
    best = int(np.argmin(ended.cost))
    shape = _runs_away(ended.theta[best])
    if shape is not None:
        return NotFitted(shape)
    agreeing = int((ended.cost <= ended.cost[best] * (1 + AGREE)).sum())
    return _judged(points, LOG_HUBER, ended.theta[best : best + 1], len(grid), agreeing)


def _runs_away(theta: Floats) -> str | None:
    """Why the best exponents describe no loss: outside `EXPONENTS` a term is a step or constant."""
    for name, value in zip(("alpha", "beta"), theta[3:], strict=True):
        if not EXPONENTS[0] < value < EXPONENTS[1]:
            return (
                f"the best {name} is {value:.3g}, outside {EXPONENTS[0]} to {EXPONENTS[1]}: these "
                "losses do not have the shape E + A N^-alpha + B D^-beta. Look for runs of another "
                "kind among them (--where), or widen the range of sizes and tokens"
            )
    return None


def fit_varpro(points: Points) -> SurfaceFit | NotFitted:
    """Minimise Σ (L - L_fit)² over E, A, B >= 0 and the two exponents."""
    reason = unidentified(points)
    if reason is not None:
        return NotFitted(reason)
    n, d, ln_l = centred(points)
    loss = np.exp(ln_l)
    low, high = np.full(2, EXPONENTS[0]), np.full(2, EXPONENTS[1])
    for _ in range(14):
        axes = [np.geomspace(low[i], high[i], _GRID) for i in (0, 1)]
        alpha, beta = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        linear, rss = non_negative(alpha, beta, n, d, loss)
        best = int(np.argmin(rss))
        reach = (high / low) ** (2.5 / (_GRID - 1))
        centre = np.array([alpha[best], beta[best]])
        low = np.clip(centre / reach, *EXPONENTS)
        high = np.clip(centre * reach, *EXPONENTS)
    theta = _theta(linear[best : best + 1], alpha[best : best + 1], beta[best : best + 1], loss)
    return _judged(points, LEAST_SQUARES, theta, _GRID**2, _GRID**2)


def refit(
    residuals: Residuals, points: Points, start: Surfaces, weights: Floats
) -> tuple[Surfaces, Floats]:
    """The same estimator under other weights (R, n), each from `start`; and which converged."""
    theta = np.repeat(start.theta[:1], len(weights), axis=0)
    theta[:, :3] = np.maximum(theta[:, :3], np.log(_START_FLOOR * points.loss.min()))
    ended = descend(residuals, theta, centred(points), weights, 150, 1e-7)
    return Surfaces(ended.theta, start.centre), ended.converged


def centred(points: Points) -> tuple[Floats, Floats, Floats]:
    """(n, d, ln L), each (points,)."""
    centre = points.centre
    n, d = np.log(points.params) - centre[0], np.log(points.tokens) - centre[1]
    return n, d, np.log(points.loss)


def _ranked(points: Points, residuals: Residuals) -> Floats:
    """A grid of exponents, each with its best E, A, B, lowest objective first."""
    n, d, ln_l = centred(points)
    axis = np.geomspace(0.05, 2.0, 14)
    alpha, beta = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    # Relative errors, as the objective has them: divide the linear problem by L.
    linear, _ = non_negative(alpha, beta, n, d, np.exp(ln_l), relative=True)
    theta = _theta(linear, alpha, beta, np.exp(ln_l), _START_FLOOR)
    r, _ = residuals.of(theta, n, d, ln_l)
    return np.asarray(theta[np.argsort(residuals.cost(r, np.ones_like(r)), kind="stable")])


def non_negative(
    alpha: Floats, beta: Floats, n: Floats, d: Floats, loss: Floats, relative: bool = False
) -> tuple[Floats, Floats]:
    """Least-squares E, A, B >= 0 for each pair of exponents, (G, 3), and their residual sums (G,).

    Three unknowns have seven sets that may be positive; the best admissible one is the optimum.
    """
    weight = 1 / loss**2 if relative else np.ones_like(loss)
    terms = np.stack(
        [np.ones((len(alpha), len(n))), np.exp(-alpha[:, None] * n), np.exp(-beta[:, None] * d)], 2
    )
    weighted = (terms * weight[:, None]).transpose(0, 2, 1)
    gram, target = weighted @ terms, weighted @ loss
    total = float((weight * loss**2).sum())
    best, coefficients = np.full(len(alpha), np.inf), np.zeros((len(alpha), 3))
    for size in (3, 2, 1):
        for chosen in map(list, combinations(range(3), size)):
            part = gram[:, chosen][:, :, chosen]
            part = part + 1e-13 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            solved = np.linalg.solve(part, target[:, chosen][:, :, None])[:, :, 0]
            full = np.zeros((len(alpha), 3))
            full[:, chosen] = solved
            rss = total - 2 * (full * target).sum(1) + np.einsum("gi,gij,gj->g", full, gram, full)
            better = (solved >= 0).all(axis=1) & (rss < best)
            best[better], coefficients[better] = rss[better], full[better]
    return coefficients, best


def _theta(
    linear: Floats, alpha: Floats, beta: Floats, loss: Floats, floor: float = _FLOOR
) -> Floats:
    logs = np.log(np.maximum(linear, floor * loss.min()))
    return np.column_stack([logs, alpha, beta])


def _judged(
    points: Points, residuals: Residuals, theta: Floats, starts: int, agreeing: int
) -> SurfaceFit:
    n, d, ln_l = centred(points)
    predicted, *shares = log_loss(theta, n, d)
    r, jacobian = residuals.of(theta, n, d, ln_l)
    ones = np.ones_like(r)
    # Scale-free: the part of each column that the residuals still lie along.
    weighted = residuals.reweighted(r, ones)
    gradient = np.abs((weighted[:, :, None] * r[:, :, None] * jacobian).sum(1))[0]
    scale = np.sqrt((weighted[:, :, None] * jacobian**2).sum(1) * (weighted * r * r).sum())[0]
    columns = log_gradient((shares[0], shares[1], shares[2]), n, d)[0]
    norms = np.linalg.norm(columns, axis=0)
    used = norms > 1e-9 * norms.max()
    return SurfaceFit(
        surfaces=Surfaces(theta, points.centre),
        objective=float(residuals.cost(r, ones)[0] * (1 if residuals.delta else 2)),
        starts=starts,
        agreeing=agreeing,
        condition=float(np.linalg.cond(columns[:, used] / norms[used])),
        gradient_norm=float(np.max(gradient / np.maximum(scale, 1e-300))),
        residuals=ln_l - predicted[0],
    )
