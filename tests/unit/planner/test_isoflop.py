import csv
import os
from pathlib import Path
from typing import Any

import pytest
from unit.planner.synthetic import BUDGETS, Truth, record, simple_sweep, write_sweep

from planner.hyper import cells
from planner.isoflop import Budget, ComputeLaws, budgets, fit_compute_laws
from planner.laws import FloorLaw, NotFitted
from planner.records import read_sweep


def curves(folder: Path, rows: list[dict[str, Any]]) -> list[Budget]:
    return budgets(cells(read_sweep(write_sweep(folder, rows))))


def laws(folder: Path, rows: list[dict[str, Any]]) -> ComputeLaws:
    fitted = fit_compute_laws(curves(folder, rows))
    assert isinstance(fitted, ComputeLaws)
    return fitted


@pytest.mark.parametrize(("a", "b"), [(0.35, 0.35), (0.4, 0.3), (0.3, 0.4)])
def test_the_exponents_of_the_known_law_are_found(tmp_path: Path, a: float, b: float) -> None:
    truth = Truth(a=a, b=b)
    found = laws(tmp_path, simple_sweep(truth))
    assert found.size.exponent("C").value == pytest.approx(b / (a + b), abs=2e-3)
    assert found.tokens.exponent("C").value == pytest.approx(a / (a + b), abs=2e-3)
    assert found.size.value(C=1e13) == pytest.approx(truth.best_size(1e13), rel=0.05)
    assert found.tokens.value(C=1e11) == pytest.approx(
        1e11 / 6 / found.size.value(C=1e11), rel=1e-3
    )
    assert isinstance(found.loss_floor, FloorLaw)
    assert found.loss_floor.floor == pytest.approx(truth.E, rel=0.02)
    assert found.loss_floor.exponent_value == pytest.approx(a * b / (a + b), rel=0.02)
    N = truth.best_size(1e13)
    best = truth.best_loss(N, 1e13 / (6 * N))
    assert found.loss.predict(C=1e13).value == pytest.approx(best, rel=2e-3)


def test_the_size_law_does_not_depend_on_units(tmp_path: Path) -> None:
    rows = simple_sweep(Truth(noise=1e-3))
    scaled = [{**row, "tokens": row["tokens"] * 1000, "loss": row["loss"] * 7} for row in rows]
    here, there = laws(tmp_path / "a", rows), laws(tmp_path / "b", scaled)
    assert there.size.coefficients == pytest.approx(here.size.coefficients, rel=1e-9)
    assert there.tokens.value(C=1e13) == pytest.approx(1000 * here.tokens.value(C=1e13))
    assert there.loss_power.value(C=1e13) == pytest.approx(7 * here.loss_power.value(C=1e13))


def test_the_interval_of_the_best_size_holds_the_truth(tmp_path: Path) -> None:
    truth = Truth(noise=3e-3)
    seen = laws(tmp_path, simple_sweep(truth)).size.predict(C=1e13)
    assert seen.low is not None
    assert seen.high is not None
    assert seen.low < truth.best_size(1e13) < seen.high


@pytest.mark.parametrize(
    ("keep", "verdict"),
    [
        (slice(0, 4), "edge: largest size is best"),
        (slice(5, 9), "edge: smallest size is best"),
        (slice(3, 5), "too few sizes"),
        (slice(2, 7), "interior"),
    ],
)
def test_every_budget_has_a_verdict(tmp_path: Path, keep: slice, verdict: str) -> None:
    (budget,) = curves(tmp_path, simple_sweep(Truth(), budgets=(1e11,))[keep])
    assert budget.verdict == verdict
    assert (budget.optimum is not None) == (verdict == "interior")


def test_only_interior_minima_feed_the_laws(tmp_path: Path) -> None:
    rows = simple_sweep(Truth())
    cut = [row for i, row in enumerate(rows) if not (row["budget_flops"] == 1e12 and i % 9 < 6)]
    found = laws(tmp_path, cut)
    assert found.budgets_flops == BUDGETS[:-1]
    assert found.largest_flops == 3e11


def test_one_interior_budget_is_not_enough(tmp_path: Path) -> None:
    rows = simple_sweep(Truth(), budgets=(1e11,)) + simple_sweep(Truth(), budgets=(1e12,))[:4]
    fitted = fit_compute_laws(curves(tmp_path, rows))
    assert isinstance(fitted, NotFitted)
    assert "1 of 2 budgets" in fitted.reason
    assert "1e+12 FLOPs: edge: largest size is best" in fitted.reason


def test_sizes_far_from_the_best_do_not_bend_the_parabola(tmp_path: Path) -> None:
    near = simple_sweep(Truth(), budgets=(1e11,), span=4.0)
    far = [
        record(run=str(ratio), block_params=N, budget_flops=1e11, flops=1e11, tokens=1e4, loss=2.0)
        for ratio, N in ((16, round(Truth().best_size(1e11) * 16)),)
    ]
    (alone,), (both,) = curves(tmp_path / "a", near), curves(tmp_path / "b", near + far)
    assert alone.optimum is not None
    assert both.optimum is not None
    assert both.optimum.block_params == alone.optimum.block_params


def test_a_censored_learning_rate_enters_as_an_upper_bound(tmp_path: Path) -> None:
    rows = simple_sweep(Truth(), budgets=(1e11,), lrs=(1e-3, 2e-3, 4e-3, 8e-3))
    largest = max(row["block_params"] for row in rows)
    cut = [r for r in rows if r["block_params"] < largest or r["lr_peak"] < 3e-3]
    (budget,) = curves(tmp_path, cut)
    assert budget.upper_bounds == 1
    assert budget.cells[-1].loss > Truth().best_loss(largest, budget.cells[-1].tokens)


@pytest.mark.skipif(
    "SCALEWRIGHT_TEST_DATA" not in os.environ,
    reason="SCALEWRIGHT_TEST_DATA is not set: no published sweeps to fit",
)
def test_a_published_sweep_gives_its_published_exponent(tmp_path: Path) -> None:
    path = Path(os.environ["SCALEWRIGHT_TEST_DATA"]) / "scaling/openathena_isoflops"
    with (path / "dev_isoflops.csv").open() as file:
        published = [row for row in csv.DictReader(file) if "marin" in row["experiment"]]
    rows = [
        record(
            run=str(index),
            block_params=round(float(row["params"])),
            budget_flops=float(row["budget"]),
            flops=float(row["budget"]),
            tokens=float(row["tokens"]),
            loss=float(row["loss"]),
        )
        for index, row in enumerate(published)
    ]
    # A parabola over +-4x, recomputed independently: 0.376 (over the full width 0.424).
    assert laws(tmp_path, rows).size.exponent("C").value == pytest.approx(0.376, abs=0.001)
