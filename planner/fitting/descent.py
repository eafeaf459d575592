"""Many small non-linear least-squares problems at once: Levenberg-Marquardt, batched over R.

An estimate, its starts and a thousand resamples are the same problem with other weights, so they
go down together. Huber's loss is minimised by reweighting: the weight min(1, delta/|r|) majorises
it (Huber 1981, section 7.8), so that every accepted step lowers the true objective.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from planner.fitting.surface import Floats, log_gradient, log_loss

HUBER_DELTA = 1e-3
_CHUNK = 100_000  # residuals of one chunk: its Jacobian stays in the cache
_DAMPING = (1e-9, 1e6)
_THREADS = 2


@dataclass(frozen=True)
class Residuals:
    """What is minimised: residuals and Jacobian of (theta, data), and Huber's delta if any."""

    of: Callable[[Floats, Floats, Floats, Floats], tuple[Floats, Floats]]
    delta: float | None

    def cost(self, r: Floats, weights: Floats) -> Floats:
        """Σ w rho(r) over the points, (R,)."""
        if self.delta is None:
            return np.asarray((weights * r * r).sum(axis=1) / 2)
        size = np.abs(r)
        huber = np.where(size <= self.delta, r * r / 2, self.delta * (size - self.delta / 2))
        return np.asarray((weights * huber).sum(axis=1))

    def reweighted(self, r: Floats, weights: Floats) -> Floats:
        if self.delta is None:
            return weights
        return weights * np.minimum(1, self.delta / np.maximum(np.abs(r), 1e-300))


def _log_residuals(theta: Floats, n: Floats, d: Floats, ln_l: Floats) -> tuple[Floats, Floats]:
    predicted, *shares = log_loss(theta, n, d)
    return ln_l - predicted, log_gradient((shares[0], shares[1], shares[2]), n, d)


def _loss_residuals(theta: Floats, n: Floats, d: Floats, ln_l: Floats) -> tuple[Floats, Floats]:
    predicted, *shares = log_loss(theta, n, d)
    loss = np.exp(predicted)
    gradient = log_gradient((shares[0], shares[1], shares[2]), n, d)
    return np.exp(ln_l) - loss, gradient * loss[:, :, None]


LOG_HUBER = Residuals(_log_residuals, HUBER_DELTA)
LEAST_SQUARES = Residuals(_loss_residuals, None)


@dataclass(frozen=True)
class Descent:
    """Where R descents ended: `theta` (R, 5), their `cost` (R,), and which `converged`."""

    theta: Floats
    cost: Floats
    converged: Floats


def descend(
    residuals: Residuals,
    start: Floats,
    data: tuple[Floats, Floats, Floats],
    weights: Floats,
    max_steps: int,
    tolerance: float,
) -> Descent:
    """Go down from each row of `start` (R, 5) under its row of `weights` (R, n).

    `data` is (n, d, ln L), centred. A descent has converged when an accepted step lowers its cost
    by less than `tolerance` of it, or when no step lowers it any more.
    """
    rows = max(1, _CHUNK // len(data[0]))
    chunks = [slice(low, low + rows) for low in range(0, max(len(start), 1), rows)]

    def run(chunk: slice) -> tuple[Floats, Floats, Floats]:
        return _descend(residuals, start[chunk], data, weights[chunk], max_steps, tolerance)

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(run, chunks))
    return Descent(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@np.errstate(over="ignore", invalid="ignore")  # a step too far costs infinity: it is not better
def _descend(
    residuals: Residuals,
    start: Floats,
    data: tuple[Floats, Floats, Floats],
    weights: Floats,
    max_steps: int,
    tolerance: float,
) -> tuple[Floats, Floats, Floats]:
    theta, damping = start.copy(), np.full(len(start), 1e-3)
    going = np.arange(len(start))
    r, jacobian = residuals.of(theta, *data)
    cost = residuals.cost(r, weights)
    for _ in range(max_steps):
        w = weights[going]
        step = _step(residuals.reweighted(r, w), r, jacobian, damping[going])
        tried = theta[going] + step
        new_r, new_jacobian = residuals.of(tried, *data)
        new_cost = residuals.cost(new_r, w)
        better = new_cost < cost[going]
        small = better & (cost[going] - new_cost <= tolerance * cost[going])
        theta[going[better]], cost[going[better]] = tried[better], new_cost[better]
        damping[going] = np.clip(damping[going] * np.where(better, 0.2, 5.0), *_DAMPING)
        r[better], jacobian[better] = new_r[better], new_jacobian[better]
        keep = ~(small | (damping[going] >= _DAMPING[1]))
        going, r, jacobian = going[keep], r[keep], jacobian[keep]
        if not len(going):
            break
    converged = np.ones(len(start))
    converged[going] = 0.0
    return theta, cost, converged


def _step(weights: Floats, r: Floats, jacobian: Floats, damping: Floats) -> Floats:
    """The damped Gauss-Newton step of each row, (R, 5)."""
    weighted = (jacobian * weights[:, :, None]).transpose(0, 2, 1)
    normal, gradient = weighted @ jacobian, weighted @ r[:, :, None]
    diagonal = np.einsum("rii->ri", normal)
    # The small constant keeps a term that has vanished (E = 0) from making the matrix singular.
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    normal += (damping[:, None] * diagonal + floor)[:, :, None] * np.eye(5)
    return np.asarray(np.linalg.solve(normal, gradient)[:, :, 0])
