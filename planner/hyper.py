"""The best learning rate of each (budget, size), and the law lr*(N, D) through those optima.

Per cell a quadratic of the loss in ln lr over the near-optimal runs (arXiv 2601.05049). An optimum
on the edge of the grid is censored: it bounds lr*, and its best loss bounds the loss of its size
from above, but the law never sees it. The law has as few constants as the optima can carry; its
exponents follow Kling (arXiv 2411.17470, Eq. 13) and Step Law (arXiv 2503.04715).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.laws import LogLinear, NotFitted, fit_log_linear
from planner.minimum import Minimum, Parabola, Verdict, find_minimum, pooled_noise
from planner.records import Record, Stopped, Sweep

NEAR_OPTIMAL = 0.02  # a run within 2% of its cell's best loss shapes the quadratic
DIVERGED_RATIO = 1.5  # above 1.5x the best loss, at a higher learning rate: as good as diverged
FULL_LAW_MIN_OPTIMA = 6
SLOPE_LAW_MIN_OPTIMA = 3
COLLINEAR = 0.99

VERDICTS = {
    Verdict.INTERIOR: "interior",
    Verdict.LOWEST: "edge: lowest learning rate is best",
    Verdict.HIGHEST: "edge: highest learning rate is best",
    Verdict.TOO_FEW: "too few learning rates",
    Verdict.FLAT: "no minimum inside the window",
}
NEXT_DIVERGED = "edge: the next higher learning rate diverged"


@dataclass(frozen=True)
class Rung:
    """One learning rate of a cell; `loss` is the mean over seeds."""

    lr: float
    loss: float


@dataclass(frozen=True)
class Cell:
    """All runs of one budget and size.

    `lr` is the interpolated optimum, None where censored; then lr* lies between `lr_low` and
    `lr_high` (None: unbounded). `loss` is that of the optimum, or of the best run: an upper bound.
    """

    budget_flops: float
    block_params: int
    width: int
    tokens: float
    rungs: tuple[Rung, ...]
    diverged_lr: float | None
    minimum: Minimum

    @property
    def parabola(self) -> Parabola | None:
        return self.minimum.parabola

    @property
    def interior(self) -> bool:
        return self.parabola is not None

    @property
    def best(self) -> Rung:
        return self.rungs[self.minimum.best]

    @property
    def lr(self) -> float | None:
        return None if self.parabola is None else self.parabola.x_star

    @property
    def loss(self) -> float:
        return self.best.loss if self.parabola is None else self.parabola.y_star

    @property
    def lr_low(self) -> float | None:
        below = self.minimum.best - 1
        return self.rungs[below].lr if below >= 0 else None

    @property
    def lr_high(self) -> float | None:
        above = self.minimum.best + 1
        return self.rungs[above].lr if above < len(self.rungs) else self.diverged_lr

    @property
    def verdict(self) -> str:
        if self.minimum.verdict is Verdict.HIGHEST and self.diverged_lr is not None:
            return NEXT_DIVERGED
        return VERDICTS[self.minimum.verdict]


@dataclass(frozen=True)
class Regret:
    """Loss of the tried learning rate nearest to the law's over the cell's best, minus one.

    `diverged` counts cells where that nearest rate diverged; they have no loss to compare.
    """

    mean: float
    worst: float
    worst_cell: Cell
    cells: int
    diverged: int


@dataclass(frozen=True)
class LearningRateLaw:
    """lr* as a log-linear law of N and D, why it has this form, and what it costs on the sweep."""

    law: LogLinear
    reason: str
    optima: int
    regret: Regret | None

    def variables(self, N: float, D: float) -> dict[str, float]:
        return {name: {"N": N, "D": D}[name] for name in self.law.variables}


def cells(sweep: Sweep) -> list[Cell]:
    """Every (budget, size) with a finished run, smallest first."""
    done: dict[tuple[float, int], list[Record]] = defaultdict(list)
    for record in sweep.records:
        done[record.budget_flops, record.block_params].append(record)
    diverged: dict[tuple[float, int], list[Stopped]] = defaultdict(list)
    for run in sweep.stopped_as("diverged"):
        diverged[run.budget_flops, run.block_params].append(run)
    return [_cell(done[key], diverged[key]) for key in sorted(done)]


def _cell(records: Sequence[Record], diverged: Sequence[Stopped]) -> Cell:
    rungs, blown_up = _rungs(records, {run.lr_peak for run in diverged})
    losses = [rung.loss for rung in rungs]
    near = [loss <= min(losses) * (1 + NEAR_OPTIMAL) for loss in losses]
    minimum = find_minimum([rung.lr for rung in rungs], losses, near)
    above = [lr for lr in blown_up if lr > rungs[minimum.best].lr]
    return Cell(
        budget_flops=records[0].budget_flops,
        block_params=records[0].block_params,
        width=records[0].width,
        tokens=math.exp(math.fsum(math.log(r.tokens) for r in records) / len(records)),
        rungs=rungs,
        diverged_lr=min(above, default=None),
        minimum=minimum,
    )


def _rungs(records: Sequence[Record], diverged: set[float]) -> tuple[tuple[Rung, ...], set[float]]:
    """Mean loss per learning rate, and the rates that are unstable.

    A rate at which any seed diverged is unstable, unless nothing else is left to read.
    """
    losses: dict[float, list[float]] = defaultdict(list)
    for record in records:
        losses[record.lr_peak].append(record.loss)
    means = {lr: math.fsum(sorted(values)) / len(values) for lr, values in losses.items()}
    best = min(means, key=lambda lr: means[lr])
    limit = means[best] * DIVERGED_RATIO
    unstable = diverged | {lr for lr, loss in means.items() if lr > best and loss > limit}
    stable = {lr: loss for lr, loss in means.items() if lr not in unstable} or means
    return tuple(Rung(lr, stable[lr]) for lr in sorted(stable)), unstable


def fit_learning_rate(all_cells: Sequence[Cell]) -> LearningRateLaw | NotFitted:
    """lr* = k N^p D^q, or fewer constants where the optima are few or do not tell N from D."""
    optima = [cell for cell in all_cells if cell.interior]
    if not optima:
        return NotFitted(_why_no_optimum(all_cells))
    names, reason = _form(optima)
    columns = {
        name: [float(c.block_params) if name == "N" else c.tokens for c in optima] for name in names
    }
    rates = [cell.parabola.x_star for cell in optima if cell.parabola is not None]
    law = fit_log_linear(rates, columns)
    weights = _weights(optima, law)
    if weights is not None:
        law = fit_log_linear(rates, columns, weights)
    draft = LearningRateLaw(law, reason, len(optima), None)
    return LearningRateLaw(law, reason, len(optima), _regret(draft, all_cells))


def _why_no_optimum(all_cells: Sequence[Cell]) -> str:
    counts: dict[str, int] = defaultdict(int)
    for cell in all_cells:
        counts[cell.verdict] += 1
    listed = ", ".join(f"{count} x {verdict}" for verdict, count in sorted(counts.items()))
    return (
        f"no cell has an interior best learning rate ({listed}); "
        "sweep at least 3 learning rates a cell, further in the direction of the edge, or finer "
        "below one that diverged"
    )


def _form(optima: Sequence[Cell]) -> tuple[tuple[str, ...], str]:
    """Which variables the law may have, and why."""
    count = len(optima)
    have = f"{count} interior optim{'um' if count == 1 else 'a'}"
    if count < SLOPE_LAW_MIN_OPTIMA:
        return (), f"{have}: a constant (a slope needs {SLOPE_LAW_MIN_OPTIMA})"
    log_n = np.log([cell.block_params for cell in optima])
    log_d = np.log([cell.tokens for cell in optima])
    if np.ptp(log_d) < math.log(1.1):
        return (), f"{have}, all at nearly the same D: a constant"
    if count < FULL_LAW_MIN_OPTIMA:
        return ("D",), f"{have}: D only (N and D together need {FULL_LAW_MIN_OPTIMA})"
    if np.ptp(log_n) == 0:
        return ("D",), f"{have}, all of one size: D only"
    correlation = float(np.corrcoef(log_n, log_d)[0, 1])
    if abs(correlation) > COLLINEAR:
        return ("D",), f"{have}, but ln N and ln D correlate by {correlation:.3f}: D only"
    return ("N", "D"), f"{have}: N and D"


def _weights(optima: Sequence[Cell], law: LogLinear) -> list[float] | None:
    """Inverse variance: what noise moves each optimum by, plus the scatter about the law."""
    parabolas = [cell.parabola for cell in optima if cell.parabola is not None]
    noise = pooled_noise(parabolas)
    if noise is None or not law.residual_sd:
        return None
    return [1 / ((noise * p.unit_se_ln_x) ** 2 + law.residual_sd**2) for p in parabolas]


def _regret(law: LearningRateLaw, all_cells: Sequence[Cell]) -> Regret | None:
    losses: list[tuple[float, Cell]] = []
    diverged = 0
    for cell in all_cells:
        if len(cell.rungs) < 2:
            continue
        lr = law.law.value(**law.variables(cell.block_params, cell.tokens))
        nearest = min(cell.rungs, key=lambda rung: abs(math.log(rung.lr / lr)))
        limit = cell.diverged_lr
        if limit is not None and abs(math.log(limit / lr)) < abs(math.log(nearest.lr / lr)):
            diverged += 1
        else:
            losses.append((nearest.loss / cell.best.loss - 1, cell))
    if not losses:
        return None
    worst, worst_cell = max(losses, key=lambda pair: pair[0])
    mean = math.fsum(loss for loss, _ in losses) / len(losses)
    return Regret(mean, worst, worst_cell, len(losses), diverged)
