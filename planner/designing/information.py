"""What runs tell of a surface before they are run: the delta method on its five constants.

A run at (N, D) whose loss has relative noise s adds j jᵀ / s² to Fisher's information, j being the
gradient of ln L there. The variance of a quantity with gradient c is then cᵀ M⁻¹ c. Everything is
in the centred logarithmic coordinates of surface.py and for a noise of one; intervals are
Student's. On Kling-sized sweeps it gives the widths that simulation finds.
"""

import math
from dataclasses import dataclass

import numpy as np

from planner.errors import InputError
from planner.fitting.frontier import Frontier
from planner.fitting.laws import t_quantile
from planner.fitting.surface import CONSTANTS, Floats, Surface, Surfaces, log_gradient, log_loss

COLLINEAR_LN_TOKENS = 0.25  # tokens that stray less than this from a power of N tell no two terms
_STEP_LN_PARAMS = 0.2


@dataclass(frozen=True)
class Aim:
    """The best run of the target budget, and how ln N* and ln L* move with the constants, (5,)."""

    flops: float
    params: float
    tokens: float
    loss: float
    of_params: Floats
    of_loss: Floats


def centred_surfaces(surface: Surface, params: float, tokens: float) -> Surfaces:
    """The one surface, centred at (N, D)."""
    centre = (math.log(params), math.log(tokens))
    log_a = math.log(surface.A) - surface.alpha * centre[0]
    log_b = math.log(surface.B) - surface.beta * centre[1]
    theta = [[math.log(surface.E), log_a, log_b, surface.alpha, surface.beta]]
    return Surfaces(np.array(theta), centre)


def aim(surfaces: Surfaces, frontier: Frontier, target_flops: float) -> Aim:
    """What is wanted: N* and L* at the target budget, by the first surface."""
    best = frontier.best(surfaces[:1], target_flops)
    if not best.inside[0]:
        raise InputError(
            f"at --target {target_flops:.3g} FLOPs the best size is beyond the sizes there are "
            f"({frontier.smallest_params:.3g} to {frontier.largest_params:.3g} parameters); "
            "change --target, or the depth of the models"
        )
    params, tokens = math.exp(best.log_params[0]), math.exp(best.log_tokens[0])
    return Aim(
        flops=target_flops,
        params=params,
        tokens=tokens,
        loss=math.exp(best.log_loss[0]),
        of_params=_gradient_of_params(surfaces, frontier, params, tokens),
        # The envelope theorem: at the minimum, moving along the budget changes nothing.
        of_loss=gradients(surfaces, np.array([params]), np.array([tokens]))[0],
    )


def _gradient_of_params(
    surfaces: Surfaces, frontier: Frontier, params: float, tokens: float
) -> Floats:
    """d ln N* / d theta at the minimum of a budget, (5,).

    With slope(n) = d ln(FLOPs a token) / dn the minimum solves
    ln(alpha A) - alpha n = ln(beta B slope) - beta d; differentiate that implicitly.
    """
    _, _, _, alpha, beta = map(float, surfaces.theta[0])
    n, d = math.log(params) - surfaces.centre[0], math.log(tokens) - surfaces.centre[1]
    steps = params * np.exp(_STEP_LN_PARAMS * np.array([-1.0, 0.0, 1.0]))
    left, middle, right = map(float, np.log(frontier.flops_per_token(steps)))
    slope = (right - left) / (2 * _STEP_LN_PARAMS)
    bend = (right - 2 * middle + left) / _STEP_LN_PARAMS**2
    moved = np.array([0.0, 1.0, -1.0, 1 / alpha - n, d - 1 / beta])
    return np.asarray(moved / (alpha + beta * slope + bend / slope))


def gradients(surfaces: Surfaces, params: Floats, tokens: Floats) -> Floats:
    """d ln L / d theta of the first surface, (..., n, 5) at N and D of (..., n)."""
    n = (np.log(params) - surfaces.centre[0]).reshape(1, -1)
    d = (np.log(tokens) - surfaces.centre[1]).reshape(1, -1)
    _, floor, size, data = log_loss(surfaces.theta[:1], n, d)
    return log_gradient((floor, size, data), n, d).reshape(*np.shape(params), len(CONSTANTS))


def information(rows: Floats, weights: Floats) -> Floats:
    """Fisher's information for a noise of one, (..., 5, 5), of weighted rows (..., n, 5)."""
    return np.asarray((rows * weights[..., None]).swapaxes(-1, -2) @ rows)


def inverse(info: Floats) -> Floats:
    """The covariance of the constants for a noise of one; infinite where nothing tells them."""
    scale = np.sqrt(np.maximum(np.einsum("...ii->...i", info), 1e-300))
    scaled = info / (scale[..., :, None] * scale[..., None, :])
    told = np.linalg.cond(scaled) < 1e14
    scaled = np.where(told[..., None, None], scaled, np.eye(len(CONSTANTS)))
    covariance = np.linalg.inv(scaled) / (scale[..., :, None] * scale[..., None, :])
    return np.where(told[..., None, None], covariance, np.inf)


def unit_sd(covariance: Floats, gradient: Floats) -> Floats:
    """Standard deviation of a quantity for a noise of one, (...)."""
    with np.errstate(invalid="ignore"):
        variance = np.einsum("i,...ij,j->...", gradient, covariance, gradient)
    return np.sqrt(np.where(np.isfinite(variance), np.maximum(variance, 0), np.inf))


def half_width(points: int, sd: float) -> float:
    """Half of the t interval of a logarithm whose standard deviation is `sd`."""
    df = points - len(CONSTANTS)
    return t_quantile(df) * sd if df > 0 else math.inf


def factor(half: float) -> float:
    """x/÷ of an interval in logarithms; e^700 stands for no bound at all."""
    return math.exp(min(half, 700.0))


def condition(surface: Surface, params: Floats, tokens: Floats) -> float:
    """Condition number of the runs' column-scaled gradients: up to 100 is good, 1e4 hopeless."""
    middle = [math.exp(float(np.log(x).mean())) for x in (params, tokens)]
    rows = gradients(centred_surfaces(surface, middle[0], middle[1]), params, tokens)
    norms = np.linalg.norm(rows, axis=0)
    return float(np.linalg.cond(rows / np.where(norms > 0, norms, 1)))


def tokens_follow_params(params: Floats, tokens: Floats) -> bool:
    """Whether D rises as one power of N (D/N held fixed is such): the terms are collinear."""
    n, d = np.log(params), np.log(tokens)
    if np.ptp(n) == 0:
        return False
    slope, constant = np.polyfit(n, d, 1)
    return bool(slope > 0 and np.std(d - slope * n - constant) < COLLINEAR_LN_TOKENS)
