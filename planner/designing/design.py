"""Before a sweep: which budgets and sizes tell most about the target run for what they cost.

A design is isoFLOP curves around the prior law's best sizes. Every shape of one (how many budgets
over how many decades, how many sizes over what width) is laid out at every scale, its interval
predicted by the delta method, and the best that a cost pays for is taken. Designs for a smaller
cost stay in the choice, so more cost is never worse. First counts that the target lies within what
a fit may be trusted for, then the width of the interval, then the number of runs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from planner.designing.information import (
    Aim,
    aim,
    centred_surfaces,
    condition,
    factor,
    gradients,
    half_width,
    information,
    inverse,
    unit_sd,
)
from planner.designing.prior import Prior
from planner.errors import InputError
from planner.fitting.frontier import Frontier
from planner.fitting.surface import Floats, Surface, Surfaces
from planner.planning.distrust import MAX_EXTRAPOLATION
from planner.wording import scientific_enough

Mask = NDArray[np.bool_]

BUDGETS = (3, 8)
SIZES = (5, 7, 9, 11)
WIDTHS = (2.0, 4.0, 8.0)
DECADES = 2.5  # 300x: beyond it the law may bend, and a simulation on that law cannot know
STEP_DECADES = 0.5
SAME_WIDTH = 0.05  # intervals whose widths differ by less are equally good
SCALES_A_DECADE = 20
MIN_SIZES = 4  # different sizes that a ladder must leave of a budget's grid
TUNED_SIZES = 2  # sizes of a budget that carry the lr x batch grid where muP serves the others


@dataclass(frozen=True, slots=True)
class Shape:
    """`budgets` over `decades`, each with `sizes` from N*/width to N* x width, both geometric."""

    budgets: int
    decades: float
    sizes: int
    width: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """The grid of learning rates and batches at an (N, D): at all, or with muP at the smallest."""

    lrs: int
    batches: int
    mup: bool

    @property
    def grid(self) -> int:
        return self.lrs * self.batches

    def runs(self, sizes: int) -> Floats:
        """Runs at each of a budget's sizes, smallest first, (sizes,)."""
        runs = np.full(sizes, float(self.grid))
        if self.mup:
            runs[TUNED_SIZES:] = 1
        return runs


@dataclass(frozen=True)
class Problem:
    """What is to be known, under which law, from which sizes: `rungs` where models come in steps.

    `noise` is the relative standard deviation of the loss of one run.
    """

    prior: Prior
    frontier: Frontier
    rungs: Floats | None
    target_flops: float
    noise: float
    tuning: Tuning

    @cached_property
    def surfaces(self) -> Surfaces:
        """The prior, centred at the best run of a budget as sweeps for this target have."""
        flops = self.target_flops / MAX_EXTRAPOLATION
        params = self.surface.best_params(flops)
        return centred_surfaces(self.surface, params, self.frontier.tokens(params, flops))

    @property
    def surface(self) -> Surface:
        return self.prior.surface

    @cached_property
    def aim(self) -> Aim:
        return aim(self.surfaces, self.frontier, self.target_flops)

    @cached_property
    def best_sizes(self) -> tuple[Floats, Floats]:
        """ln N* on a grid of ln C up to the target, NaN where it is at an end of the sizes."""
        smallest = self.frontier.flops(*(2 * [self.frontier.smallest_params]))
        grid = np.arange(math.log(smallest), math.log(self.target_flops) + 0.1, 0.1)
        found = [self.frontier.best(self.surfaces, math.exp(c)) for c in grid]
        sizes = [best.log_params[0] if best.inside[0] else math.nan for best in found]
        return grid, np.array(sizes)

    def log_best_params(self, flops: Floats) -> Floats:
        return np.interp(np.log(flops), *self.best_sizes, left=math.nan, right=math.nan)


@dataclass(frozen=True)
class Layouts:
    """One shape at S scales: (S, budgets) budgets, and (S, budgets, sizes) runs.

    `runs` is 0 where a size is there already; a layout is `valid` where all its sizes exist.
    """

    shape: Shape
    budgets_flops: Floats
    params: Floats
    tokens: Floats
    runs: Floats
    valid: Mask

    @property
    def cost(self) -> Floats:
        """FLOPs of every run, (S,)."""
        return np.asarray((self.runs.sum(2) * self.budgets_flops).sum(1))

    @property
    def points(self) -> Floats:
        """Different (N, D), (S,)."""
        return np.asarray((self.runs > 0).sum((1, 2)))


@dataclass(frozen=True)
class Design:
    """One layout: the runs at each (N, D), smallest budget first, (n,) each; what it should tell.

    `half_params` and `half_loss` are half of the 90% intervals of ln N* and ln L* at the target.
    """

    shape: Shape
    budgets_flops: Floats
    params: Floats
    tokens: Floats
    runs: Floats
    cost_flops: float
    condition: float
    half_params: float
    half_loss: float

    @property
    def largest_flops(self) -> float:
        return float(self.budgets_flops.max())

    @property
    def params_factor(self) -> float:
        return factor(self.half_params)


def lay_out(problem: Problem, shape: Shape, largest_flops: Floats) -> Layouts:
    """The shape at each of the scales given by its largest budget, (S,)."""
    ladder = np.linspace(-shape.decades, 0, shape.budgets)
    budgets = largest_flops[:, None] * 10.0**ladder
    spread = np.linspace(-1, 1, shape.sizes) * math.log(shape.width)
    log_params = problem.log_best_params(budgets)[:, :, None] + spread
    low, high = problem.frontier.smallest_params, problem.frontier.largest_params
    inside = (log_params >= math.log(low)) & (log_params <= math.log(high))
    params = np.exp(np.where(inside, log_params, math.log(low)))
    fresh = np.ones(params.shape, dtype=bool)
    if problem.rungs is not None:
        params = _nearest(problem.rungs, params)
        fresh[:, :, 1:] = np.diff(params, axis=2) > 0
    per_token = problem.frontier.flops_per_token(params.ravel()).reshape(params.shape)
    # Which of the sizes left is a smallest one is only known after the doubles are gone.
    place = np.minimum(fresh.cumsum(axis=2) - 1, shape.sizes - 1)
    runs = np.where(fresh, problem.tuning.runs(shape.sizes)[place], 0)
    valid = inside.all(axis=(1, 2)) & (fresh.sum(axis=2) >= MIN_SIZES).all(axis=1)
    return Layouts(shape, budgets, params, budgets[:, :, None] / per_token, runs, valid)


def _nearest(rungs: Floats, params: Floats) -> Floats:
    """The rung nearest to each size by ratio."""
    log_rungs = np.log(rungs)
    middles = (log_rungs[1:] + log_rungs[:-1]) / 2
    return np.asarray(rungs[np.searchsorted(middles, np.log(params))])


@dataclass(frozen=True)
class Offer:
    """One shape's layouts: cost, runs, and half of the interval of ln N* at the target, (S,).

    `rank` orders all layouts there are, the lowest first: see `_rank`.
    """

    layouts: Layouts
    cost: Floats
    half: Floats
    rank: Floats

    def affordable(self, cost_flops: float) -> int | None:
        """The layout of the lowest rank within the cost, None where there is none."""
        allowed = np.flatnonzero((self.cost <= cost_flops) & np.isfinite(self.half))
        return min(allowed.tolist(), key=self.key) if len(allowed) else None

    def key(self, at: int) -> tuple[float, ...]:
        return (*map(float, self.rank[:, at]), float(self.cost[at]))

    def least_cost(self, half: float, reaching: bool) -> float:
        """The least cost of a layout at least so precise, infinite where none is."""
        allowed = (self.half <= half) & np.isfinite(self.half)
        if reaching:
            allowed &= self.rank[0] == 0
        return float(self.cost[allowed].min(initial=np.inf))


def _rank(target_flops: float, largest_flops: Floats, half: Floats, runs: Floats) -> Floats:
    """What makes one layout better than another, most important first, (3, S).

    How far beyond `MAX_EXTRAPOLATION` the target is; how wide the interval is, in steps of 5%; how
    many runs it takes.
    """
    beyond = np.log10(target_flops / MAX_EXTRAPOLATION / largest_flops) / STEP_DECADES
    with np.errstate(divide="ignore"):
        steps = np.ceil(np.log(half) / math.log(1 + SAME_WIDTH))
    return np.stack([np.maximum(np.ceil(beyond - 1e-9), 0), steps, runs])


@dataclass(frozen=True)
class Catalogue:
    """Every shape at every scale below the target."""

    problem: Problem
    offers: tuple[Offer, ...]

    def best(self, cost_flops: float, count: int) -> list[Design]:
        """The `count` best designs of different shapes that the cost pays for."""
        places = [(each, each.affordable(cost_flops)) for each in self.offers]
        found = [(each, at) for each, at in places if at is not None]
        if not found:
            raise InputError(
                f"--cost {cost_flops:.3g} FLOPs does not pay for the smallest design; the least is "
                f"{scientific_enough(self.least_cost(math.inf, reaching=False))}. Raise --cost, or "
                "lower --lrs, --batches, --budgets or --smallest"
            )
        found.sort(key=lambda one: one[0].key(one[1]))
        return [designed(self.problem, offer.layouts, at) for offer, at in found[:count]]

    def least_cost(self, half: float, reaching: bool = True) -> float:
        """The least cost of a design with at most this half-width, infinite where none has.

        With `reaching`, of one from which a fit may be trusted as far as the target.
        """
        return min(each.least_cost(half, reaching) for each in self.offers)


def shapes(budgets: tuple[int, int], decades: float) -> list[Shape]:
    """Every shape to choose from; the widest range is `decades` itself."""
    counts = range(budgets[0], budgets[1] + 1)
    steps = np.arange(decades, STEP_DECADES / 2, -STEP_DECADES)
    return [Shape(*values) for values in product(counts, map(float, steps), SIZES, WIDTHS)]


def catalogue(problem: Problem, choice: Iterable[Shape]) -> Catalogue:
    """Lay out and price every shape at every scale; `InputError` where none fits the target."""
    grid = _scales(problem)
    offers = tuple(offer(problem, shape, grid) for shape in choice) if len(grid) else ()
    if not any(np.isfinite(one.half).any() for one in offers):
        low, high = problem.frontier.smallest_params, problem.frontier.largest_params
        raise InputError(
            f"no design fits below --target {problem.target_flops:.3g} FLOPs with models of "
            f"{low:.3g} to {high:.3g} parameters; raise --target, or lower --smallest"
        )
    return Catalogue(problem, offers)


def offer(problem: Problem, shape: Shape, largest_flops: Floats) -> Offer:
    """One shape at each scale; an interval is infinite where the sizes do not exist."""
    layouts = lay_out(problem, shape, largest_flops)
    half = np.full(len(largest_flops), np.inf)
    valid = np.flatnonzero(layouts.valid)
    if len(valid):
        rows = gradients(problem.surfaces, layouts.params[valid], layouts.tokens[valid])
        rows = rows.reshape(len(valid), -1, rows.shape[-1])
        weights = (layouts.runs[valid] > 0).reshape(len(valid), -1).astype(float)
        sd = problem.noise * unit_sd(inverse(information(rows, weights)), problem.aim.of_params)
        half[valid] = list(map(half_width, layouts.points[valid].tolist(), sd.tolist()))
    runs = layouts.runs.sum(axis=(1, 2))
    rank = _rank(problem.target_flops, largest_flops, half, runs)
    return Offer(layouts, layouts.cost, half, rank)


def designed(problem: Problem, layouts: Layouts, at: int) -> Design:
    """The layout of one scale."""
    keep = layouts.runs[at] > 0
    params, tokens = layouts.params[at][keep], layouts.tokens[at][keep]
    budgets = np.broadcast_to(layouts.budgets_flops[at][:, None], keep.shape)[keep]
    return assess(problem, layouts.shape, budgets, params, tokens, layouts.runs[at][keep])


def assess(
    problem: Problem, shape: Shape, budgets: Floats, params: Floats, tokens: Floats, runs: Floats
) -> Design:
    """What these runs should tell: one loss an (N, D), as noisy as that of one run."""
    rows = gradients(problem.surfaces, params, tokens)
    covariance = inverse(information(rows, np.ones(len(params))))
    wanted = (problem.aim.of_params, problem.aim.of_loss)
    sds = [problem.noise * float(unit_sd(covariance, gradient)) for gradient in wanted]
    return Design(
        shape=shape,
        budgets_flops=budgets,
        params=params,
        tokens=tokens,
        runs=runs,
        cost_flops=float((runs * budgets).sum()),
        condition=condition(problem.surface, params, tokens),
        half_params=half_width(len(params), sds[0]),
        half_loss=half_width(len(params), sds[1]),
    )


def _scales(problem: Problem) -> Floats:
    """Largest budgets: the same round grid for every cost and target, all below the target."""
    grid, sizes = problem.best_sizes
    known = grid[np.isfinite(sizes)]
    if not len(known):
        return np.zeros(0)
    low = math.ceil(known[0] / math.log(10) * SCALES_A_DECADE)
    high = math.ceil(math.log10(problem.target_flops) * SCALES_A_DECADE - 1e-9)
    return 10.0 ** (np.arange(low, high) / SCALES_A_DECADE)
