"""All stages of a fit in order: cells, learning-rate law, isoFLOP curves, laws of compute."""

from dataclasses import dataclass

from planner import base as bases
from planner import hyper, isoflop
from planner.base import Base
from planner.hyper import Cell, LearningRateLaw
from planner.isoflop import Budget, ComputeLaws
from planner.laws import NotFitted
from planner.records import Sweep

BATCH_SPREAD_LIMIT = 1.2
FLOPS_DEVIATION_LIMIT = 0.05


@dataclass(frozen=True)
class Fit:
    """Everything a sweep says; a law it cannot carry is a `NotFitted` with its reason."""

    sweep: Sweep
    base: Base | None
    cells: tuple[Cell, ...]
    budgets: tuple[Budget, ...]
    learning_rate: LearningRateLaw | NotFitted
    compute: ComputeLaws | NotFitted
    warnings: tuple[str, ...]

    @property
    def batch_tokens(self) -> float:
        """Mean visual tokens a step over the sweep's runs."""
        records = self.sweep.records
        return sum(sorted(record.batch_tokens for record in records)) / len(records)


def fit_sweep(sweep: Sweep) -> Fit:
    """Fit every law the sweep can carry."""
    base = bases.read_base(sweep)
    cells = hyper.cells(sweep)
    budgets = isoflop.budgets(cells)
    return Fit(
        sweep=sweep,
        base=base,
        cells=tuple(cells),
        budgets=tuple(budgets),
        learning_rate=hyper.fit_learning_rate(cells),
        compute=isoflop.fit_compute_laws(budgets),
        warnings=tuple(_warnings(sweep, base, cells, budgets)),
    )


def _warnings(
    sweep: Sweep, base: Base | None, cells: list[Cell], budgets: list[Budget]
) -> list[str]:
    """What bends the laws without forbidding them."""
    found = []
    batches = [record.batch_tokens for record in sweep.records]
    if max(batches) > BATCH_SPREAD_LIMIT * min(batches):
        found.append(
            f"batch_tokens runs from {min(batches):.4g} to {max(batches):.4g}: the best learning "
            "rate moves with the batch, and no law here holds the batch"
        )
    censored = sum(not cell.interior for cell in cells)
    if censored:
        found.append(
            f"{censored} of {len(cells)} cells have no interior best learning rate; their best "
            "losses are upper bounds in the isoFLOP curves"
        )
    edges = sum(budget.optimum is None for budget in budgets)
    if edges:
        found.append(
            f"{edges} of {len(budgets)} budgets have no interior best size; not in the laws"
        )
    if base is not None:
        deviation = bases.worst_flops_deviation(sweep, base)
        if deviation > FLOPS_DEVIATION_LIMIT:
            found.append(
                f"FLOPs per token of a record are {deviation:.0%} off those of sweep.toml's clips: "
                "the planned steps inherit that gap"
            )
    return found
