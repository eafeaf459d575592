"""The best size of each budget, and the laws N*(C), D*(C), L*(C) through those minima.

Approach 2 of Hoffmann et al. (arXiv 2203.15556): per budget a parabola of the loss in ln N. N is
`block_params`: the matrices every token passes in the blocks, without embeddings, modulation and
output. A wide window bends the result (arXiv 2603.22339), so it reaches 4x to either side of the
best size. Only interior minima feed the laws; C is the budget in exact FLOPs, attention included.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.hyper import Cell
from planner.laws import FloorLaw, LogLinear, NotFitted, fit_floor_law, power_law, t_quantile
from planner.minimum import Minimum, Parabola, Verdict, find_minimum, pooled_noise

WINDOW = 4.0  # sizes within 4x of the best one shape the parabola
MIN_BUDGETS = 2

VERDICTS = {
    Verdict.INTERIOR: "interior",
    Verdict.LOWEST: "edge: smallest size is best",
    Verdict.HIGHEST: "edge: largest size is best",
    Verdict.TOO_FEW: "too few sizes",
    Verdict.FLAT: "no minimum inside the window",
}


@dataclass(frozen=True)
class Optimum:
    """The interior minimum of one budget: N*, the D* that its FLOPs buy, and the loss there."""

    block_params: float
    tokens: float
    loss: float
    parabola: Parabola


@dataclass(frozen=True)
class Budget:
    """The isoFLOP curve of one budget, by size; a cell without an optimum of its learning rate
    enters with its best loss, an upper bound."""

    budget_flops: float
    cells: tuple[Cell, ...]
    minimum: Minimum

    @property
    def verdict(self) -> str:
        return VERDICTS[self.minimum.verdict]

    @property
    def best(self) -> Cell:
        return self.cells[self.minimum.best]

    @property
    def upper_bounds(self) -> int:
        return sum(not cell.interior for cell in self.cells)

    @property
    def optimum(self) -> Optimum | None:
        parabola = self.minimum.parabola
        if parabola is None:
            return None
        log_n = np.log([cell.block_params for cell in self.cells])
        log_d = np.log([cell.tokens for cell in self.cells])
        tokens = float(np.exp(np.interp(parabola.ln_x_star, log_n, log_d)))
        return Optimum(parabola.x_star, tokens, parabola.y_star, parabola)


@dataclass(frozen=True)
class ComputeLaws:
    """N*(C), D*(C) and L*(C); `loss_floor` where the budgets can carry an irreducible loss."""

    size: LogLinear
    tokens: LogLinear
    loss_power: LogLinear
    loss_floor: FloorLaw | NotFitted
    budgets_flops: tuple[float, ...]

    @property
    def largest_flops(self) -> float:
        return max(self.budgets_flops)

    @property
    def loss(self) -> LogLinear | FloorLaw:
        """The law that is forecast with: above a floor where there is one."""
        return self.loss_power if isinstance(self.loss_floor, NotFitted) else self.loss_floor


def budgets(all_cells: Sequence[Cell]) -> list[Budget]:
    """One isoFLOP curve per budget, smallest budget first."""
    grouped: dict[float, list[Cell]] = defaultdict(list)
    for cell in all_cells:
        grouped[cell.budget_flops].append(cell)
    return [_budget(flops, grouped[flops]) for flops in sorted(grouped)]


def _budget(flops: float, group: Sequence[Cell]) -> Budget:
    by_size = tuple(sorted(group, key=lambda cell: cell.block_params))
    sizes = [float(cell.block_params) for cell in by_size]
    losses = [cell.loss for cell in by_size]
    best = sizes[int(np.argmin(losses))]
    near = [best / WINDOW <= size <= best * WINDOW for size in sizes]
    return Budget(flops, by_size, find_minimum(sizes, losses, near))


def fit_compute_laws(all_budgets: Sequence[Budget]) -> ComputeLaws | NotFitted:
    """Power laws over the interior minima; needs at least two of them."""
    pairs = [(b.budget_flops, b.optimum) for b in all_budgets if b.optimum is not None]
    if len(pairs) < MIN_BUDGETS:
        verdicts = "; ".join(f"{b.budget_flops:.3g} FLOPs: {b.verdict}" for b in all_budgets)
        return NotFitted(
            f"{len(pairs)} of {len(all_budgets)} budgets has an interior best size, a law needs "
            f"{MIN_BUDGETS} ({verdicts}); add sizes beyond the edge, or budgets"
        )
    flops = [budget for budget, _ in pairs]
    losses = [optimum.loss for _, optimum in pairs]
    return ComputeLaws(
        size=power_law(flops, [optimum.block_params for _, optimum in pairs]),
        tokens=power_law(flops, [optimum.tokens for _, optimum in pairs]),
        loss_power=power_law(flops, losses),
        loss_floor=fit_floor_law(flops, losses),
        budgets_flops=tuple(flops),
    )


def minima_half_width(all_budgets: Sequence[Budget]) -> float | None:
    """Half-width of the loss noise at `LEVEL`, pooled over the parabolas; None if it is unknown.

    Times a parabola's `unit_se_ln_x` it is the half-width of its ln N*.
    """
    parabolas = [b.minimum.parabola for b in all_budgets if b.minimum.parabola is not None]
    noise = pooled_noise(parabolas)
    return None if noise is None else noise * t_quantile(sum(p.df for p in parabolas))
