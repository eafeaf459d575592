"""What one's cost could have bought instead: a wider range, more points, tokens tied to size."""

import math
from dataclasses import dataclass, replace

import numpy as np

from planner.designing.design import (
    STEP_DECADES,
    WIDTHS,
    Design,
    Problem,
    Shape,
    assess,
    designed,
    offer,
)
from planner.fitting.surface import Floats

FEW, MANY = 5, 11  # sizes a budget
DECADE = 1.0


@dataclass(frozen=True)
class Comparison:
    """The same cost spent in other ways; the first three are None where one of them cannot be had.

    `plain` has few sizes over a narrower range; `wider` adds a decade of budgets to it, `denser`
    adds sizes. `fixed_ratio` has as many points as the design itself, all at one D/N.
    """

    plain: Design | None
    wider: Design | None
    denser: Design | None
    fixed_ratio: Design

    @property
    def width_wins(self) -> bool | None:
        """Whether a wider range of budgets beats more points, None where it cannot be told."""
        if self.plain is None or self.wider is None or self.denser is None:
            return None
        return self.wider.half_params < self.denser.half_params


def compare(problem: Problem, chosen: Design) -> Comparison:
    """Spend what the chosen design costs in each of the other ways."""
    fixed_ratio = at_fixed_ratio(problem, chosen)
    for width in sorted((w for w in WIDTHS if w <= chosen.shape.width), reverse=True):
        narrow = max(chosen.shape.decades - DECADE, STEP_DECADES)
        shape = Shape(chosen.shape.budgets, narrow, FEW, width)
        plain, wider, denser = (
            at_cost(problem, each, chosen.cost_flops)
            for each in (shape, replace(shape, decades=narrow + DECADE), replace(shape, sizes=MANY))
        )
        if plain and wider and denser:
            return Comparison(plain, wider, denser, fixed_ratio)
    return Comparison(None, None, None, fixed_ratio)


def at_cost(problem: Problem, shape: Shape, cost_flops: float) -> Design | None:
    """The shape at the scale that costs just this, None where its sizes do not exist there."""
    largest = np.array([problem.target_flops])
    for _ in range(3):  # once is enough but for a ladder, where doubles fall away with scale
        layouts = offer(problem, shape, largest).layouts
        if not np.isfinite(layouts.cost[0]):
            return None
        largest = largest * cost_flops / layouts.cost
    found = offer(problem, shape, largest)
    known = math.isfinite(found.half[0]) and largest[0] < problem.target_flops
    return designed(problem, found.layouts, 0) if known else None


def at_fixed_ratio(problem: Problem, chosen: Design) -> Design:
    """As many points over the same range for the same cost, all at the middle budget's best D/N."""
    count = len(chosen.params)
    middle = math.sqrt(chosen.budgets_flops.min() * chosen.budgets_flops.max())
    best = problem.frontier.best(problem.surfaces, middle)
    ratio = math.exp(best.log_tokens[0] - best.log_params[0])
    share = 10.0 ** np.linspace(-chosen.shape.decades, 0, count)
    runs = np.full(count, chosen.runs.sum() / count)
    budgets = share * chosen.cost_flops / (runs * share).sum()
    params = _sizes_of(problem, ratio, budgets)
    return assess(problem, chosen.shape, budgets, params, params * ratio, runs)


def _sizes_of(problem: Problem, ratio: float, budgets: Floats) -> Floats:
    """N with D = ratio N that cost each budget."""
    frontier = problem.frontier
    n = np.linspace(math.log(frontier.smallest_params), math.log(frontier.largest_params), 2000)
    cost = np.log(frontier.flops_per_token(np.exp(n))) + n + math.log(ratio)
    return np.exp(np.interp(np.log(budgets), cost, n))
