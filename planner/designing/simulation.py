"""A design tried out: sweeps drawn from the prior law, fitted as a real one is, and compared."""

import math
from dataclasses import dataclass

import numpy as np

from planner.designing.design import Design, Problem
from planner.designing.information import factor
from planner.fitting.descent import LOG_HUBER, descend
from planner.fitting.laws import LEVEL, t_quantile
from planner.fitting.surface import CONSTANTS, Floats, Surfaces

_Z = 1.6449  # of LEVEL, two-sided


@dataclass(frozen=True)
class Simulation:
    """Half of the intervals of ln N* and ln L* at the target that `sweeps` drawn sweeps show.

    `converged` is the share of the fits that ended at a minimum.
    """

    half_params: float
    half_loss: float
    sweeps: int
    converged: float

    @property
    def params_factor(self) -> float:
        return factor(self.half_params)


def simulate(problem: Problem, design: Design, sweeps: int, seed: int = 0) -> Simulation:
    """Draw the design's losses `sweeps` times with the problem's noise, and fit each (Huber).

    The descent starts from the law itself: what is judged is the design, not the search.
    """
    centre = problem.surfaces.centre
    n, d = np.log(design.params) - centre[0], np.log(design.tokens) - centre[1]
    truth = problem.surfaces.log_loss(design.params, design.tokens)[0]
    drawn = truth + problem.noise * np.random.default_rng(seed).standard_normal((sweeps, len(n)))
    weights = np.ones((1, len(n)))
    start = problem.surfaces.theta
    ended = [descend(LOG_HUBER, start, (n, d, row), weights, 100, 1e-9) for row in drawn]
    fitted = Surfaces(np.concatenate([one.theta for one in ended]), centre)
    best = problem.frontier.best(fitted, problem.target_flops)
    df = len(n) - len(CONSTANTS)
    return Simulation(
        half_params=_half(best.log_params, df),
        half_loss=_half(best.log_loss, df),
        sweeps=sweeps,
        converged=float(np.mean([one.converged[0] for one in ended])),
    )


def _half(values: Floats, df: int) -> float:
    """Half of the central 90%, widened as a sweep that must estimate its own noise widens it."""
    if df < 1:
        return math.inf
    low, high = np.percentile(values, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    return float(high - low) / 2 * t_quantile(df) / _Z
