import math
import random
from pathlib import Path
from typing import Any

import pytest
from unit.planner.synthetic import Truth, platform_sweep, record, write_sweep

from planner.hyper import NEXT_DIVERGED, Cell, LearningRateLaw, cells, fit_learning_rate
from planner.laws import NotFitted, fit_log_linear
from planner.records import read_sweep

RATES = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]


def cell_of(folder: Path, losses: dict[float, float], **changes: Any) -> Cell:
    """The one cell with these losses; an infinite loss is a run that diverged."""
    rows = []
    for lr, loss in losses.items():
        done = math.isfinite(loss)
        status = "done" if done else "diverged"
        loss_field = loss if done else None
        rows.append(record(run=f"{lr}", lr_peak=lr, status=status, loss=loss_field, **changes))
    (cell,) = cells(read_sweep(write_sweep(folder, rows)))
    return cell


def bowl(lr_star: float, rates: list[float] = RATES) -> dict[float, float]:
    return {lr: 0.9 * (1 + 0.01 * math.log(lr / lr_star) ** 2) for lr in rates}


def fitted(folder: Path, rows: list[dict[str, Any]]) -> LearningRateLaw:
    law = fit_learning_rate(cells(read_sweep(write_sweep(folder, rows))))
    assert isinstance(law, LearningRateLaw)
    return law


def test_an_interior_optimum_is_interpolated(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, bowl(3.3e-3))
    assert cell.verdict == "interior"
    assert cell.lr == pytest.approx(3.3e-3)
    assert cell.loss == pytest.approx(0.9)
    assert (cell.lr_low, cell.lr_high) == (2e-3, 8e-3)


@pytest.mark.parametrize(
    ("lr_star", "verdict", "bounds"),
    [
        (1e-4, "edge: lowest learning rate is best", (None, 2e-3)),
        (1.0, "edge: highest learning rate is best", (8e-3, None)),
    ],
)
def test_an_optimum_on_the_edge_is_censored_and_bounds_the_loss(
    tmp_path: Path, lr_star: float, verdict: str, bounds: tuple[float | None, float | None]
) -> None:
    losses = bowl(lr_star)
    cell = cell_of(tmp_path, losses)
    assert cell.verdict == verdict
    assert cell.lr is None
    assert (cell.lr_low, cell.lr_high) == bounds
    assert cell.loss == min(losses.values())


def test_divergence_bounds_the_optimum_from_above(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, {**bowl(1.0), 3.2e-2: math.inf, 6.4e-2: math.inf})
    assert cell.verdict == NEXT_DIVERGED
    assert cell.lr is None
    assert (cell.lr_low, cell.lr_high) == (8e-3, 3.2e-2)


def test_divergence_below_the_optimum_is_no_bound(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, {5e-4: math.inf, **bowl(1.0)})
    assert cell.verdict == "edge: highest learning rate is best"
    assert cell.lr_high is None


def test_a_loss_far_above_the_best_counts_as_diverged(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, {5e-4: 0.97, 1e-3: 0.95, 2e-3: 0.9, 4e-3: 1.5})
    assert cell.verdict == NEXT_DIVERGED
    assert cell.lr_high == 4e-3
    slow = cell_of(tmp_path / "slow", {1e-3: 1.5, 2e-3: 0.9, 4e-3: 0.92})
    assert slow.verdict == "interior"


def test_a_rate_at_which_any_seed_diverged_is_unstable(tmp_path: Path) -> None:
    losses = {5e-4: 0.97, 1e-3: 0.95, 2e-3: 0.9, 4e-3: 0.89}
    rows = [record(run=f"{lr}", lr_peak=lr, loss=loss) for lr, loss in losses.items()]
    rows.append(record(run="x", seed=1, lr_peak=4e-3, status="diverged", loss=None))
    (cell,) = cells(read_sweep(write_sweep(tmp_path, rows)))
    assert cell.verdict == NEXT_DIVERGED
    assert cell.best.lr == 2e-3


def test_seeds_are_pooled(tmp_path: Path) -> None:
    rows = [
        record(run=f"{lr}-{seed}", lr_peak=lr, seed=seed, loss=loss + shift)
        for lr, loss in bowl(3.3e-3).items()
        for seed, shift in ((0, 0.001), (1, -0.001))
    ]
    (cell,) = cells(read_sweep(write_sweep(tmp_path, rows)))
    assert len(cell.rungs) == 5
    assert cell.lr == pytest.approx(3.3e-3)


def test_two_rates_are_too_few(tmp_path: Path) -> None:
    assert cell_of(tmp_path, {1e-3: 0.95, 2e-3: 0.9}).verdict == "too few learning rates"


def test_the_law_finds_the_exponents_that_made_the_sweep(tmp_path: Path) -> None:
    truth = Truth(lr_n=-0.15, lr_d=-0.08, lr_scale=0.04)
    law = fitted(tmp_path, platform_sweep(truth))
    assert law.law.variables == ("N", "D")
    assert law.law.exponent("N").value == pytest.approx(-0.15, abs=1e-3)
    assert law.law.exponent("D").value == pytest.approx(-0.08, abs=1e-3)
    assert law.law.value(N=2e6, D=1e6) == pytest.approx(truth.lr(2e6, 1e6), rel=0.01)
    assert law.regret is not None
    assert law.regret.worst < 1e-3


def test_noise_stays_within_the_interval(tmp_path: Path) -> None:
    truth = Truth(noise=1e-3)
    law = fitted(tmp_path, platform_sweep(truth))
    seen = law.law.predict(N=2e6, D=1e6)
    assert seen.low is not None
    assert seen.high is not None
    assert seen.low < truth.lr(2e6, 1e6) < seen.high
    assert seen.high / seen.low < 1.5


def test_optima_of_flat_cells_count_for_less(tmp_path: Path) -> None:
    truth = Truth(noise=1e-3)
    rows = platform_sweep(truth)
    off = [r for r in rows if r["width"] == 256 and r["budget_flops"] == 1e12]
    for row in off:
        if row["loss"] is not None:
            row["loss"] = 0.65 * (1 + 1e-4 * math.log(row["lr_peak"] / 9e-3) ** 2)
    law = fitted(tmp_path, rows)
    optima = [c for c in cells(read_sweep(tmp_path)) if c.interior]
    rates = [c.lr for c in optima if c.lr is not None]
    columns = {"N": [c.block_params for c in optima], "D": [c.tokens for c in optima]}
    unweighted = fit_log_linear(rates, columns)
    error = abs(math.log(law.law.value(N=2e6, D=1e6) / truth.lr(2e6, 1e6)))
    assert error < 0.5 * abs(math.log(unweighted.value(N=2e6, D=1e6) / truth.lr(2e6, 1e6)))


def test_censored_cells_do_not_bend_the_law(tmp_path: Path) -> None:
    truth = Truth()
    rows = platform_sweep(truth)
    largest = max(row["block_params"] for row in rows)
    cut = [r for r in rows if r["block_params"] < largest or r["lr_peak"] < 2.5e-3]
    sweep_cells = cells(read_sweep(write_sweep(tmp_path, cut)))
    assert any(cell.verdict == "edge: highest learning rate is best" for cell in sweep_cells)
    law = fit_learning_rate(sweep_cells)
    assert isinstance(law, LearningRateLaw)
    assert law.law.value(N=2e6, D=1e6) == pytest.approx(truth.lr(2e6, 1e6), rel=0.01)


@pytest.mark.parametrize(
    ("budgets", "widths", "variables", "reason"),
    [
        ((1e11,), (64,), (), "1 interior optimum: a constant"),
        ((1e11,), (64, 96), (), "2 interior optima: a constant"),
        ((1e10, 1e11, 1e12), (64,), ("D",), "3 interior optima: D only"),
        ((1e10, 1e11), (64, 96), ("D",), "4 interior optima: D only"),
        (tuple(1e10 * 2**i for i in range(6)), (64,), ("D",), "all of one size"),
        ((1e11,), (64, 96, 128, 160, 192, 256), ("D",), "correlate by -"),
        ((1e10, 1e11), (64, 96, 128), ("N", "D"), "6 interior optima: N and D"),
    ],
)
def test_the_law_has_no_more_constants_than_the_optima_carry(
    tmp_path: Path,
    budgets: tuple[float, ...],
    widths: tuple[int, ...],
    variables: tuple[str, ...],
    reason: str,
) -> None:
    law = fitted(tmp_path, platform_sweep(Truth(), budgets, widths))
    assert law.law.variables == variables
    assert reason in law.reason


def test_without_an_interior_optimum_there_is_no_law(tmp_path: Path) -> None:
    rows = platform_sweep(Truth(), lrs=(1e-4, 2e-4, 4e-4))
    law = fit_learning_rate(cells(read_sweep(write_sweep(tmp_path, rows))))
    assert isinstance(law, NotFitted)
    assert "35 x edge: highest learning rate is best" in law.reason


def test_the_order_of_records_does_not_matter(tmp_path: Path) -> None:
    rows = platform_sweep(Truth(noise=2e-3))
    law = fitted(tmp_path / "a", rows)
    random.Random(3).shuffle(rows)
    assert fitted(tmp_path / "b", rows).law == law.law


def test_regret_counts_cells_whose_nearest_rate_diverged(tmp_path: Path) -> None:
    rows = platform_sweep(Truth())
    odd = [r for r in rows if r["width"] == 64 and r["budget_flops"] == 1e10]
    for row in odd:
        if row["lr_peak"] > 3e-3:
            row.update(status="diverged", loss=None)
    law = fitted(tmp_path, rows)
    assert law.regret is not None
    assert law.regret.diverged == 1
    assert law.regret.cells == 34
