"""Solvers of the flow dx/dt = v(x, t) from noise to data: fixed steps, first and second order.

Clips advance together, each through noise levels of its own, so a state is a list of latents and a
point of the grid a level for each of them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

Latents = list[Tensor]
Levels = Sequence[float]
Field = Callable[[Latents, Levels], Latents]
Solver = Callable[[Field, Latents, Sequence[Levels]], Latents]
SolverName = Literal["euler", "heun", "adams"]


def euler(field: Field, latents: Latents, grid: Sequence[Levels]) -> Latents:
    """First order, one evaluation a step: the error falls with the number of steps."""
    for now, after in pairwise(grid):
        latents = _moved(latents, field(latents, now), now, after)
    return latents


def heun(field: Field, latents: Latents, grid: Sequence[Levels]) -> Latents:
    """Second order, two evaluations a step but for the last (Karras et al. 2022, algorithm 1).

    The last is an Euler step, so that no clip is evaluated at the end of the grid: no model was
    trained at noise level 0. One step of lower order leaves the order of the whole.
    """
    for now, after in pairwise(grid[:-1]):
        here = field(latents, now)
        there = field(_moved(latents, here, now, after), after)
        mean = [(a + b) / 2 for a, b in zip(here, there, strict=True)]
        latents = _moved(latents, mean, now, after)
    return euler(field, latents, grid[-2:])


def adams(field: Field, latents: Latents, grid: Sequence[Levels]) -> Latents:
    """Second order, one evaluation a step (Adams-Bashforth over steps of any length).

    The velocity in the middle of a step is read off the line through the last two:
    v + (v - v_before)·h / (2·h_before). The first step is Euler's.
    """
    before: tuple[Latents, Levels] | None = None
    for now, after in pairwise(grid):
        here = field(latents, now)
        middle = here if before is None else _extrapolated(here, *before, now, after)
        latents = _moved(latents, middle, now, after)
        before = here, now
    return latents


SOLVERS: dict[SolverName, Solver] = {"euler": euler, "heun": heun, "adams": adams}


def evaluations(solver: SolverName, steps: int) -> int:
    """Evaluations of the field in `steps` steps."""
    return 2 * steps - 1 if solver == "heun" else steps


def _extrapolated(
    here: Latents, before: Latents, then: Levels, now: Levels, after: Levels
) -> Latents:
    rows = zip(here, before, then, now, after, strict=True)
    return [v + (v - u) * ((c - b) / (2 * (b - a))) for v, u, a, b, c in rows]


def _moved(latents: Latents, velocities: Latents, now: Levels, after: Levels) -> Latents:
    rows = zip(latents, velocities, now, after, strict=True)
    return [x + (b - a) * v for x, v, a, b in rows]
