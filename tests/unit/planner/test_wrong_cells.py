"""Cells that only an error explains cost their row, and no other row its meaning."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from unit.planner.tables import published, read_one, write_jsonl

from planner.reading.checks import blown_runs
from planner.reading.records import Sweep

RATES = (1e-3, 2e-3, 4e-3)
Row = dict[str, Any]


def table(**accounting: Any) -> list[Row]:
    """Five budgets of seven sizes with three learning rates each, C = 6ND."""
    rows: list[Row] = []
    for C in (1e18, 3e18, 1e19, 3e19, 1e20):
        for ratio in (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0):
            N = round(0.09 * C**0.5 * ratio)
            D = C / 6 / N
            loss = 1.8 + 480 * N**-0.35 + 2100 * D**-0.37
            rows += [
                {"params": N, "tokens": D, "flops": C, "lr": lr, "batch_tokens": 262144.0,
                 "loss": loss * (1 + 0.004 * math.log2(lr / 2e-3) ** 2), **accounting}
                for lr in RATES
            ]  # fmt: skip
    return rows


def doctored(tmp_path: Path, rows: list[Row], changes: Mapping[int, Row]) -> Sweep:
    changed = [{**row, **changes.get(place, {})} for place, row in enumerate(rows)]
    return read_one(write_jsonl(tmp_path / "runs.jsonl", changed))


def codes(sweep: Sweep) -> dict[str, bool]:
    return {finding.code: finding.refuses for finding in sweep.findings}


@pytest.mark.parametrize(
    ("column", "times"), [("flops", 100.0), ("flops", 0.1), ("tokens", 1e-3), ("params", 1e3)]
)
@pytest.mark.parametrize("place", [0, 50, 104])
def test_a_row_whose_flops_contradict_its_size_grossly_is_left_out(
    tmp_path: Path, column: str, times: float, place: int
) -> None:
    rows = table()
    sweep = doctored(tmp_path, rows, {place: {column: rows[place][column] * times}})
    assert [each.row for each in sweep.rejections] == [place + 1]
    off = times if column == "flops" else 1 / times
    assert f"are x{off:.3g} what params" in sweep.rejections[0].reason
    assert max(run.flops for run in sweep.runs) == 1e20
    assert codes(sweep) == {"flops_contradict": False}
    (finding,) = sweep.findings
    assert f"(the worst: row {place + 1} x{off:.3g})" in finding.text


def test_more_than_a_tenth_of_such_rows_is_no_error_of_cells(tmp_path: Path) -> None:
    rows = table()
    spread, side_by_side = range(0, 105, 9), range(12)
    for places in (spread, side_by_side):
        changes = {at: {"flops": rows[at]["flops"] * 9} for at in places}
        sweep = doctored(tmp_path, rows, changes)
        assert codes(sweep)["flops_contradict"]
        assert {each.row for each in sweep.rejections} <= {at + 1 for at in changes}
        assert not sweep.rejections or places is side_by_side


def test_no_published_row_contradicts_itself(shared_data: Path) -> None:
    for name, sweep in published(shared_data).items():
        assert not [each for each in sweep.rejections if "rows of like size" in each.reason], name


@pytest.mark.parametrize(
    "cell",
    [
        {"params": 1e300}, {"params": 0.07}, {"tokens": 1e-300}, {"flops": 1e300},
        {"loss": 1e-300}, {"loss": 1e300}, {"lr": 1e300}, {"batch_tokens": 0.06},
        {"batch_tokens": 1e300},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("derived", [False, True])
def test_a_number_that_no_run_has_costs_its_row(tmp_path: Path, cell: Row, derived: bool) -> None:
    rows = table()
    if derived and "flops" not in cell:
        rows = [{name: row[name] for name in row if name != "flops"} for row in rows]
    sweep = doctored(tmp_path, rows, {7: cell})
    (rejected,) = sweep.rejections
    ((name, value),) = cell.items()
    assert (rejected.row, len(sweep.runs)) == (8, 104)
    assert rejected.reason.startswith(f"{name} is {value:.6g}; no run has less than")
    assert f'{name}="COLUMN*1e9"' in rejected.reason


def test_a_number_that_follows_by_6nd_is_judged_too(tmp_path: Path) -> None:
    rows = [{k: row[k] for k in ("params", "flops", "loss")} for row in table()[::3]]
    sweep = doctored(tmp_path, rows, {7: {"flops": 6.0}})
    assert sweep.rejections[0].reason.startswith("tokens is ")


def test_losses_below_zero_in_more_than_a_tenth_of_the_rows_are_refused(tmp_path: Path) -> None:
    assert codes(doctored(tmp_path, table(), {3: {"loss": -1.0}})) == {"negative_loss": False}
    many = {place: {"loss": -1.0} for place in range(0, 105, 3)}
    assert codes(doctored(tmp_path, table(), many))["negative_loss"]


def test_one_loss_near_zero_makes_no_other_run_diverged(tmp_path: Path) -> None:
    sweep = doctored(tmp_path, table(), {7: {"loss": 0.01}})
    assert blown_runs(sweep.runs) == []
    assert "diverged" not in codes(sweep)


def test_the_only_rate_that_holds_is_still_the_best_of_its_group(tmp_path: Path) -> None:
    rows = table()
    changes = {place: {"loss": 2 * rows[place]["loss"]} for place in (7, 8)}
    blown = blown_runs(doctored(tmp_path, rows, changes).runs)
    assert [run.row for run in blown] == [8, 9]


@pytest.mark.parametrize("budgets", [(1e20,), (1e18, 3e18), (1e19,), (3e18, 3e19)])
def test_bits_in_whole_budgets_are_found(tmp_path: Path, budgets: tuple[float, ...]) -> None:
    rows = table()
    changes = {
        place: {"loss": row["loss"] / math.log(2)}
        for place, row in enumerate(rows)
        if row["flops"] in budgets
    }
    sweep = doctored(tmp_path, rows, changes)
    assert codes(sweep) == {"loss_units_mixed": True}
    assert sweep.findings[0].text.startswith(f"{len(changes)} of 105 losses lie a factor 1.443")


def test_batches_in_samples_need_not_be_whole(tmp_path: Path) -> None:
    rows = [{**row, "batch_tokens": row["batch_tokens"] / 2000} for row in table()]
    assert codes(doctored(tmp_path, rows, {})) == {"batch_in_samples": False}
    mixed = [row if at % 3 else rows[at] for at, row in enumerate(table())]
    assert codes(doctored(tmp_path, mixed, {})) == {"batch_units_mixed": True}
