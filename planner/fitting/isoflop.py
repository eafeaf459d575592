"""The best size of each budget, and the laws N*(C), D*(C), L*(C) through those minima.

Approach 2 of Hoffmann et al. (arXiv 2203.15556): per budget a parabola of the loss in ln N through
the sizes within 4x of the best one, and beside it the minimum of Akima's interpolation (as Porian
et al., arXiv 2406.19146). Only interior minima feed the laws. A parabola is biased where the grid
is wide or lies off the minimum (arXiv 2603.22339): how much, is measured on the fitted surface.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.fitting.frontier import Frontier
from planner.fitting.laws import (
    FloorLaw,
    LogLinear,
    NotFitted,
    fit_floor_law,
    power_law,
    t_quantile,
)
from planner.fitting.minimum import (
    Minimum,
    Parabola,
    Verdict,
    find_minimum,
    fit_parabola,
    pooled_noise,
)
from planner.fitting.surface import Floats, Points, Surfaces

WINDOW = 4.0  # sizes within 4x of the best one shape the parabola
GAP_LN_FLOPS = 0.05  # a wider gap between two runs' FLOPs parts two budgets
SPREAD_LN_FLOPS = 0.25  # runs that straggle more than this are of no one budget
MIN_SIZES = 3
MIN_BUDGETS = 2
SCATTER_LIMIT = 2.5  # times the variance that noise explains
LAW_BUDGETS = 6  # the loss law looks at the largest budgets only: see `_loss_law`

Mask = NDArray[np.bool_]

VERDICTS = {
    Verdict.INTERIOR: "interior",
    Verdict.LOWEST: "edge: smallest size is best",
    Verdict.HIGHEST: "edge: largest size is best",
    Verdict.TOO_FEW: "too few sizes",
    Verdict.FLAT: "no minimum inside the window",
}


@dataclass(frozen=True)
class Optimum:
    """The interior minimum of one budget: N*, the D* that its FLOPs buy, and the loss there.

    `bias_ln_params` is what the same parabola gets wrong on the fitted surface without noise.
    """

    params: float
    tokens: float
    loss: float
    parabola: Parabola
    akima_params: float
    full_width_params: float | None
    bias_ln_params: float | None


@dataclass(frozen=True)
class Budget:
    """One isoFLOP curve: `points` are indices into the fit's points, by size."""

    flops: float
    points: tuple[int, ...]
    params: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    upper_bounds: int
    minimum: Minimum
    optimum: Optimum | None

    @property
    def verdict(self) -> str:
        return VERDICTS[self.minimum.verdict]

    @property
    def best_loss(self) -> float:
        """Loss of the minimum, or of the best run where there is none inside."""
        return self.loss[self.minimum.best] if self.optimum is None else self.optimum.loss


@dataclass(frozen=True)
class ComputeLaws:
    """N*(C), D*(C) and L*(C); `loss_floor` where the budgets can carry an irreducible loss.

    `exponents` holds that of N* by each way to find a minimum; `bias` is the windowed parabola's.
    """

    size: LogLinear
    tokens: LogLinear
    loss_power: LogLinear
    loss_floor: FloorLaw | NotFitted
    budgets_flops: tuple[float, ...]
    exponents: Mapping[str, float]
    bias: float | None

    @property
    def largest_flops(self) -> float:
        return max(self.budgets_flops)

    @property
    def loss(self) -> LogLinear | FloorLaw:
        """The law that is forecast with: above a floor where there is one."""
        return self.loss_power if isinstance(self.loss_floor, NotFitted) else self.loss_floor


@dataclass(frozen=True)
class IsoFlop:
    """Every budget's curve, and the laws through the interior minima."""

    budgets: tuple[Budget, ...]
    laws: ComputeLaws | NotFitted

    @property
    def optima(self) -> list[tuple[float, Optimum]]:
        return [(b.flops, b.optimum) for b in self.budgets if b.optimum is not None]


def budget_masks(points: Points) -> dict[float, Mask]:
    """The budgets, smallest first, each with the mask of its points; stragglers are in none."""
    order = np.argsort(points.flops, kind="stable")
    ln_flops = np.log(points.flops[order])
    parts = np.split(order, np.flatnonzero(np.diff(ln_flops) > GAP_LN_FLOPS) + 1)
    found = {}
    for part in parts:
        sizes = np.unique(np.round(np.log(points.params[part]), 3))
        spread = float(np.ptp(np.log(points.flops[part])))
        if len(sizes) < MIN_SIZES or spread > SPREAD_LN_FLOPS:
            continue
        mask = np.zeros(len(points), dtype=bool)
        mask[part] = True
        found[float(np.median(points.flops[part]))] = mask
    return found


def fit_isoflop(points: Points, surfaces: Surfaces | None, frontier: Frontier) -> IsoFlop:
    """Curves, minima and laws; `surfaces` (its first row), where there is one, measures bias."""
    budgets = tuple(
        _budget(flops, np.flatnonzero(mask), points, surfaces, frontier)
        for flops, mask in budget_masks(points).items()
    )
    return IsoFlop(budgets, fit_compute_laws(budgets))


def _budget(
    flops: float, members: NDArray[np.int64], points: Points, surfaces: Surfaces | None,
    frontier: Frontier,
) -> Budget:  # fmt: skip
    members = members[np.argsort(points.params[members], kind="stable")]
    levelled = _levelled(flops, members, points, surfaces)
    params, loss, kept = _pooled(points.params[members], levelled)
    tokens = points.tokens[members][kept] * flops / points.flops[members][kept]
    best = params[int(np.argmin(loss))]
    near = [bool(best / WINDOW <= size <= best * WINDOW) for size in params]
    minimum = find_minimum(list(params), list(loss), near)
    optimum = None
    if minimum.parabola is not None:
        optimum = _optimum(flops, params, tokens, loss, minimum.parabola, surfaces, frontier)
    return Budget(
        flops=flops,
        points=tuple(map(int, members[kept])),
        params=tuple(map(float, params)),
        tokens=tuple(map(float, tokens)),
        loss=tuple(map(float, loss)),
        upper_bounds=int(points.bound[members[kept]].sum()),
        minimum=minimum,
        optimum=optimum,
    )


def _levelled(
    flops: float, members: NDArray[np.int64], points: Points, surfaces: Surfaces | None
) -> Floats:
    """Losses as if every run had cost the same: moved along the surface by the few per cent."""
    loss = points.loss[members]
    if surfaces is None:
        return loss
    params, tokens = points.params[members], points.tokens[members]
    levelled = tokens * flops / points.flops[members]
    shift = surfaces.log_loss(params, levelled)[0] - surfaces.log_loss(params, tokens)[0]
    return np.asarray(loss * np.exp(shift))


def _pooled(params: Floats, loss: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """One loss a size: the lowest where several runs differ in what the table does not tell."""
    kept: dict[float, int] = {}
    for index, size in enumerate(np.round(np.log(params), 6)):
        if size not in kept or loss[index] < loss[kept[size]]:
            kept[size] = index
    chosen = np.array(sorted(kept.values(), key=lambda index: params[index]))
    return params[chosen], loss[chosen], chosen


def _optimum(
    flops: float, params: Floats, tokens: Floats, loss: Floats, parabola: Parabola,
    surfaces: Surfaces | None, frontier: Frontier,
) -> Optimum:  # fmt: skip
    full = fit_parabola(list(params), list(loss))
    return Optimum(
        params=parabola.x_star,
        tokens=float(np.exp(np.interp(parabola.ln_x_star, np.log(params), np.log(tokens)))),
        loss=parabola.y_star,
        parabola=parabola,
        akima_params=akima_minimum(params, loss),
        full_width_params=full.x_star if full and params[0] < full.x_star < params[-1] else None,
        bias_ln_params=None if surfaces is None else _bias(params, tokens, parabola, surfaces),
    )


def akima_minimum(params: Floats, loss: Floats) -> float:
    """Where Akima's interpolation in ln N is lowest, between the best size's neighbours."""
    from scipy.interpolate import Akima1DInterpolator

    best = int(np.argmin(loss))
    ln_params = np.log(params)
    grid = np.linspace(ln_params[max(best - 1, 0)], ln_params[min(best + 1, len(loss) - 1)], 1001)
    return float(np.exp(grid[np.argmin(Akima1DInterpolator(ln_params, loss)(grid))]))


def _bias(params: Floats, tokens: Floats, parabola: Parabola, surfaces: Surfaces) -> float | None:
    """ln N* of this parabola on noise-free losses of the surface, minus the surface's own."""
    window = (params >= parabola.x_low) & (params <= parabola.x_high)
    clean = np.exp(surfaces.log_loss(params[window], tokens[window])[0])
    fitted = fit_parabola(list(params[window]), list(clean))
    if fitted is None:
        return None
    # On the curve D(N) of these very runs, so that only the parabola's own error is left.
    n = np.linspace(math.log(params[0]), math.log(params[-1]), 2001)
    d = np.interp(n, np.log(params), np.log(tokens))
    truth = float(n[np.argmin(surfaces.log_loss(np.exp(n), np.exp(d))[0])])
    return fitted.ln_x_star - truth


def fit_compute_laws(budgets: tuple[Budget, ...]) -> ComputeLaws | NotFitted:
    """Power laws over the interior minima; needs at least two of them."""
    pairs = [(b.flops, b.optimum) for b in budgets if b.optimum is not None]
    if len(pairs) < MIN_BUDGETS:
        verdicts = "; ".join(f"{b.flops:.3g} FLOPs: {b.verdict}" for b in budgets)
        return NotFitted(
            f"{len(pairs)} of {len(budgets)} budgets with an interior best size, a law needs "
            f"{MIN_BUDGETS} ({verdicts or 'no budget has three sizes'}); add sizes beyond the "
            "edge, or budgets"
        )
    flops = [budget for budget, _ in pairs]
    optima = [optimum for _, optimum in pairs]
    losses = [optimum.loss for optimum in optima]
    parabolas = [optimum.parabola for optimum in optima]
    size = power_law(flops, [optimum.params for optimum in optima])
    tokens = power_law(flops, [optimum.tokens for optimum in optima])
    return ComputeLaws(
        size=with_curve_noise(size, parabolas),
        tokens=with_curve_noise(tokens, parabolas),
        loss_power=power_law(flops[-LAW_BUDGETS:], losses[-LAW_BUDGETS:]),
        loss_floor=loss_law(flops, losses),
        budgets_flops=tuple(flops),
        exponents=_exponents(flops, optima),
        bias=_slope(flops, [optimum.bias_ln_params for optimum in optima]),
    )


def with_curve_noise(law: LogLinear, parabolas: Sequence[Parabola]) -> LogLinear:
    """The law, its scatter known better: what noise does to each vertex is a second measure of it.

    A handful of budgets tell the scatter of ln N* about their law badly. Where it agrees with the
    noise within the curves, the two variances are pooled by their degrees of freedom; where it is
    larger, the budgets disagree by more than noise, and it stands alone.
    """
    noise = pooled_noise(parabolas)
    if noise is None or law.residual_sd is None:
        return law
    scatter = law.residual_sd**2
    expected = noise**2 * float(np.mean([parabola.unit_se_ln_x**2 for parabola in parabolas]))
    if scatter > SCATTER_LIMIT * expected:
        return law
    within = sum(parabola.df for parabola in parabolas)
    pooled = (law.df * scatter + within * expected) / (law.df + within)
    return replace(law, residual_sd=math.sqrt(pooled), df=law.df + within)


def loss_law(flops: list[float], losses: list[float]) -> FloorLaw | NotFitted:
    """L*(C) above a floor, through the largest budgets.

    Small budgets spend a large part of their run warming up and their losses bend away from the law
    (arXiv 2406.19146, Fig. 3); far from the target they tell little and pull much.
    """
    return fit_floor_law(flops[-LAW_BUDGETS:], losses[-LAW_BUDGETS:])


def _exponents(flops: list[float], optima: list[Optimum]) -> dict[str, float]:
    ways: dict[str, list[float | None]] = {
        "parabola": [math.log(o.params) for o in optima],
        "akima": [math.log(o.akima_params) for o in optima],
        "full width": [
            None if o.full_width_params is None else math.log(o.full_width_params) for o in optima
        ],
    }
    slopes = {name: _slope(flops, values) for name, values in ways.items()}
    return {name: slope for name, slope in slopes.items() if slope is not None}


def _slope(flops: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Slope over ln C; None unless every budget has a value."""
    known = [value for value in values if value is not None]
    if len(known) < len(flops):
        return None
    return float(np.polyfit(np.log(flops), known, 1)[0])


def minima_half_width(budgets: tuple[Budget, ...]) -> float | None:
    """Half-width of the loss noise at `LEVEL`, pooled over the parabolas; None if it is unknown.

    Times a parabola's `unit_se_ln_x` it is the half-width of its ln N*.
    """
    parabolas = [b.minimum.parabola for b in budgets if b.minimum.parabola is not None]
    noise = pooled_noise(parabolas)
    return None if noise is None else noise * t_quantile(sum(p.df for p in parabolas))
