"""What a budget buys: the (N, D) pairs that cost C FLOPs, and the best of them on a surface."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.fitting.surface import FLOPS_PER_PARAM_TOKEN, Floats, Surfaces

STEP_LN_PARAMS = 0.05


@dataclass(frozen=True)
class Best:
    """The minimum of each of R surfaces on one budget: ln N*, ln D*, ln L*, (R,) each.

    `inside` is False where the minimum lies at an end of the sizes there are.
    """

    log_params: Floats
    log_tokens: Floats
    log_loss: Floats
    inside: Floats


@dataclass(frozen=True)
class Frontier:
    """How many training FLOPs a token costs at each size, between two sizes.

    `flops_per_token` takes sizes N, (n,), and returns FLOPs, (n,); `source` says how it counts.
    """

    flops_per_token: Callable[[Floats], Floats]
    smallest_params: float
    largest_params: float
    source: str

    def tokens(self, params: float, budget_flops: float) -> float:
        return float(budget_flops / self.flops_per_token(np.array([params]))[0])

    def flops(self, params: float, tokens: float) -> float:
        return float(tokens * self.flops_per_token(np.array([params]))[0])

    def best(self, surfaces: Surfaces, budget_flops: float) -> Best:
        """N*, D*, L* of each surface: the lowest of a fine grid, refined by a parabola in ln N."""
        low, high = math.log(self.smallest_params), math.log(self.largest_params)
        n = np.linspace(low, high, max(5, math.ceil((high - low) / STEP_LN_PARAMS) + 1))
        d = math.log(budget_flops) - np.log(self.flops_per_token(np.exp(n)))
        loss = surfaces.log_loss(np.exp(n), np.exp(d))
        lowest = np.argmin(loss, axis=1)
        middle = np.clip(lowest, 1, len(n) - 2)
        rows = np.arange(len(loss))
        left, centre, right = (loss[rows, middle + shift] for shift in (-1, 0, 1))
        curvature = left - 2 * centre + right
        shift = np.where(curvature > 0, (left - right) / 2 / np.maximum(curvature, 1e-300), 0)
        shift = np.clip(shift, -1, 1)
        # At an end of the grid the parabola would reach outside: the end itself is the best.
        inside = (lowest > 0) & (lowest < len(n) - 1)
        shift = np.where(inside, shift, lowest - middle)
        log_params = n[middle] + shift * (n[1] - n[0])
        return Best(
            log_params=log_params,
            log_tokens=np.interp(log_params, n, d),
            log_loss=centre + shift * (right - left) / 2 + shift**2 * curvature / 2,
            inside=inside,
        )


def six_nd(smallest_params: float, largest_params: float) -> Frontier:
    """C = 6ND (Kaplan et al., arXiv 2001.08361): attention, embeddings and text cost nothing."""
    return Frontier(
        lambda params: FLOPS_PER_PARAM_TOKEN * params, smallest_params, largest_params, "C = 6ND"
    )
