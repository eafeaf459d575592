import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from unit.planner.synthetic import record, write_sweep
from unit.planner.tables import cells, ladder, read, read_one, write_csv, write_jsonl

from planner.errors import InputError
from planner.reading.records import Sweep

SIZE = st.floats(1e3, 1e14)


def codes(sweep: Sweep) -> list[str]:
    return [finding.code for finding in sweep.findings]


def rejected(sweep: Sweep) -> dict[int, str]:
    return {rejection.row: rejection.reason for rejection in sweep.rejections}


def of(tmp_path: Path, rows: Sequence[Mapping[str, Any]], *maps: str, **options: Any) -> Sweep:
    return read_one(write_jsonl(tmp_path / "t.jsonl", rows), *maps, **options)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": "low"}, "loss is 'low'; expected a number"),
        ({"loss": [3]}, "loss is [3]; expected a number"),
        ({"loss": None}, "loss is missing"),
        ({"loss": ""}, "loss is missing"),
        ({"loss": math.inf}, "loss is inf; expected a finite number"),
        ({"loss": 0}, "loss is 0; it must be above 0"),
        ({"loss": -0.25}, "loss is -0.25; it must be above 0"),
        ({"params": math.nan}, "params is NaN; expected a number"),
        ({"params": True}, "params is True; expected a number"),
        ({"tokens": "1,000"}, "tokens is '1,000'; expected a number"),
        ({"flops": None}, "flops is missing"),
        ({"lr": -1}, "lr is -1; it must be above 0"),
        ({"lr": "high"}, "lr is 'high'; expected a number"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be above 0"),
        ({"width": 64.5}, "width is 64.5; expected a whole number"),
        ({"depth": 0}, "depth is 0; expected at least 1"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
        ({"status": "crashed"}, "status is 'crashed'; known: done, finished"),
        ({"status": "failed", "lr": "high"}, "lr is 'high'; expected a number"),
        ({"budget": 1e18}, "flops 1.2e+18 is +20% off its budget 1e+18 (limit 10%)"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_with_its_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    sweep = of(tmp_path, [cells(), cells(loss=2.9) | change, cells(loss=2.8)])
    assert [run.row for run in sweep.runs] == [1, 3]
    assert list(rejected(sweep)) == [2]
    assert reason in rejected(sweep)[2]
    assert sweep.rows == 3


def test_optional_cells_may_be_missing_or_nan(tmp_path: Path) -> None:
    optional = ("lr", "batch_tokens", "width", "depth", "seed", "steps", "budget", "run", "status")
    known = dict(zip(optional, (0.1, 5e3, 8, 2, -1, 7, 1.2e18, "a", "OK"), strict=True))
    rows = [known, dict.fromkeys(optional), dict.fromkeys(optional[:-2], math.nan)]
    sweep = of(tmp_path, [cells(loss=3 - k / 10) | row for k, row in enumerate(rows)])
    full, empty, nan = sweep.runs
    assert (full.lr, full.batch_tokens, full.width, full.depth) == (0.1, 5e3, 8, 2)
    assert (full.seed, full.steps, full.budget_flops, full.run) == (-1, 7, 1.2e18, "a")
    for run in (empty, nan):
        assert {run.lr, run.batch_tokens, run.width, run.depth, run.seed, run.steps} == {None}
    assert (empty.run, nan.run) == ("row 2", "row 3")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_one_table_is_one_sweep_in_every_format(tmp_path: Path, kind: str) -> None:
    rows = [row | {"lr": 0.001 * (k + 1)} for k, row in enumerate(ladder())]
    rows[2]["loss"] = None
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        (write_csv if kind == "csv" else write_jsonl)(path, rows)
    sweep = read_one(path)
    header = 1 if kind == "csv" else 0
    kept = [(k, row) for k, row in enumerate(rows, start=1 + header) if row["loss"]]
    got = [(r.row, r.params, r.tokens, r.flops, r.loss, r.lr) for r in sweep.runs]
    assert got == [(k, *(row[name] for name in row)) for k, row in kept]
    assert rejected(sweep) == {3 + header: "loss is missing"}


@given(SIZE, SIZE, st.sampled_from(["params", "tokens", "flops"]))
def test_two_of_params_tokens_and_flops_give_the_third(
    tmp_path_factory: pytest.TempPathFactory, N: float, D: float, left_out: str
) -> None:
    row = {"params": N, "tokens": D, "flops": 6 * N * D, "loss": 2.0}
    wanted = row.pop(left_out)
    sweep = of(tmp_path_factory.mktemp("t"), [row])
    assert getattr(sweep.runs[0], left_out) == pytest.approx(wanted, rel=1e-12)
    assert "flops_assumed_6nd" in codes(sweep)
    assert sweep.accounting.flops == "6nd"


def test_stated_accounting_is_not_assumed_and_exact_flops_are_not_derived(tmp_path: Path) -> None:
    rows = [{"params": 1e8, "tokens": 1e9, "loss": 2.0}]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    (tmp_path / "sweep.toml").write_text('[accounting]\nflops = "6nd"\n')
    assert "flops_assumed_6nd" not in codes(read_one(path))
    (tmp_path / "sweep.toml").write_text('[accounting]\nflops = "exact"\n')
    with pytest.raises(InputError, match=r"no column gives flops.*map flops, or state"):
        read(path)
    write_jsonl(path, [cells()])
    assert read_one(path).accounting.flops == "exact"


def test_a_row_is_not_repaired_by_6nd_where_the_table_has_the_column(tmp_path: Path) -> None:
    sweep = of(tmp_path, [cells(), cells(flops=None, loss=2.0)])
    assert rejected(sweep) == {2: "flops is missing"}


def test_a_nominal_budget_does_not_reject_runs_whose_flops_are_assumed(tmp_path: Path) -> None:
    row = {"params": 1e8, "tokens": 1e9, "budget": 1e18, "loss": 2.0}
    sweep = of(tmp_path, [row])
    assert (sweep.runs[0].budget_flops, sweep.runs[0].flops) == (1e18, 6e17)


def test_runs_without_a_loss_are_kept_as_bounds(tmp_path: Path) -> None:
    rows = [
        cells(),
        cells(loss=math.nan, lr=0.5),
        cells(loss="NaN", status="finished"),
        {"status": "Diverged", "lr": 0.25, "flops": 0, "tokens": 0, "params": 1e8, "run": "x"},
        {"status": "failed"},
    ]
    sweep = of(tmp_path, rows)
    assert [(s.row, s.status, s.lr) for s in sweep.stopped] == [
        (2, "diverged", 0.5),
        (3, "diverged", None),
        (4, "diverged", 0.25),
        (5, "failed", None),
    ]
    assert (sweep.stopped[2].params, sweep.stopped[2].tokens, sweep.stopped[2].flops) == (
        1e8, None, None,
    )  # fmt: skip
    assert [s.run for s in sweep.stopped[1:3]] == ["row 3", "x"]
    assert not sweep.rejections
    assert "diverged" in codes(sweep)


def test_the_third_size_of_a_stopped_run_is_derived_as_well(tmp_path: Path) -> None:
    rows = [{"params": 1e8, "tokens": 1e9, "loss": loss} for loss in (2.0, math.nan)]
    assert of(tmp_path, rows).stopped[0].flops == pytest.approx(6e17)


def test_copies_count_once_and_other_seeds_or_names_do_not(tmp_path: Path) -> None:
    rows = [cells(), cells(), cells(seed=1), cells(run="a"), cells(run="b"), cells(run="a")]
    sweep = of(tmp_path, rows)
    assert [run.row for run in sweep.runs] == [1, 3, 4, 5]
    assert rejected(sweep) == {
        2: "a copy of row 1: every canonical value is equal",
        6: "a copy of row 4: every canonical value is equal",
    }
    (finding,) = [f for f in sweep.findings if f.code == "duplicate_rows"]
    assert finding.text.startswith("2 rows equal")
    assert "rows 2, 6" in finding.text
    assert not finding.refuses


def test_bits_become_nats_and_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [cells(loss=3 / math.log(2))])
    (tmp_path / "sweep.toml").write_text('[units]\nloss = "bits"\n')
    sweep = read_one(path)
    assert sweep.runs[0].loss == pytest.approx(3)
    assert "loss_in_bits" in codes(sweep)


def test_negative_losses_are_left_out_and_named(tmp_path: Path) -> None:
    sweep = of(tmp_path, [cells(), cells(loss=-1.0), cells(loss=-2.0)])
    (finding,) = [f for f in sweep.findings if f.code == "negative_loss"]
    assert finding.text.startswith("2 rows with a loss below 0 (rows 2, 3)")
    assert len(sweep.runs) == 1


def test_groups_part_the_rows_and_share_the_hash(tmp_path: Path) -> None:
    rows = [row | {"kind": kind} for row in ladder() for kind in ("b", "a", None)]
    path = write_csv(tmp_path / "t.csv", rows)
    path.write_text(path.read_text() + "1,2\n")
    sweeps = read(path, group="kind")
    assert [sweep.group for sweep in sweeps] == ["b", "a"]
    taken = [run.row for sweep in sweeps for run in sweep.runs]
    assert sorted(taken) == [k for k, row in enumerate(rows, start=2) if row["kind"]]
    for sweep in sweeps:
        assert sweep.rows == len(sweep.runs) + len(sweep.rejections)
        assert rejected(sweep)[4] == "no value of --group 'kind'"
        assert "where the header has" in rejected(sweep)[len(rows) + 2]
    assert sweeps[0].sha256 == sweeps[1].sha256


def test_a_group_may_be_a_canonical_name_and_one_without_runs_is_an_error(tmp_path: Path) -> None:
    rows = [cells(W=width, loss=loss) for width, loss in ((8, 3.0), (8, 2.0), (4, -1.0))]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert [s.group for s in read(path, "width=W", group="width", where=("W>4",))] == ["8"]
    with pytest.raises(InputError, match=r"\[W=4\]: no finished run .*1 rejected.*--where W!=4"):
        read(path, group="W")
    with pytest.raises(InputError, match="--group: there is no column 'X'"):
        read(path, group="X")


def test_a_column_called_group_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    sweep = of(tmp_path, [row | {"group": k % 2} for k, row in enumerate(ladder())])
    assert "groups_together" in codes(sweep)
    parts = read(tmp_path / "t.jsonl", group="group")
    assert all("groups_together" not in codes(part) for part in parts)


def test_conditions_cut_rows_before_anything_is_rejected(tmp_path: Path) -> None:
    rows = [row | {"kind": "ab"[k % 2]} for k, row in enumerate(ladder())]
    rows[1]["loss"] = "x"
    sweep = of(tmp_path, rows, where=("kind=a", "params>1e7"))
    assert [run.row for run in sweep.runs] == [3, 5]
    assert sweep.rows == 2
    with pytest.raises(InputError, match=r"'kind=c' keeps none of 6 rows.*a \(3\), b \(3\)"):
        of(tmp_path, rows, where=("kind=c",))
    with pytest.raises(InputError, match=r"keeps none of 9 .*go from 1e\+07 to 2\.56e\+09"):
        of(tmp_path, ladder(9), where=("params>1e12",))


def test_nothing_usable_says_what_there_was(tmp_path: Path) -> None:
    rows = [cells(status="failed"), cells(loss=math.nan), cells(loss=0), cells(loss="x")]
    with pytest.raises(InputError) as error:
        of(tmp_path, rows)
    assert str(error.value).endswith(
        "no finished run with a loss (1 diverged, 1 failed, 2 rejected, the first: row 3: "
        "loss is 0; it must be above 0)"
    )


@pytest.mark.parametrize("column", ["schedule", "data_digest"])
def test_mixed_schedules_or_data_are_refused_with_the_way_out(tmp_path: Path, column: str) -> None:
    rows = [row | {column: "xy"[k % 2]} for k, row in enumerate(ladder())]
    rows.append(cells(status="failed", **{column: "z"}))
    with pytest.raises(InputError, match=rf"mixed {column}: x \(3 runs\), y \(3 runs\); a? ?loss"):
        of(tmp_path, rows)
    sweep = of(tmp_path, rows, where=(f"{column}=x",))
    assert sweep.schedule == ("x" if column == "schedule" else None)
    parts = read(tmp_path / "t.jsonl", group=column, where=(f"{column}!=z",))
    assert [part.group for part in parts] == ["x", "y"]


def native(tmp_path: Path, *rows: Mapping[str, Any]) -> Sweep:
    return read_one(write_sweep(tmp_path, [dict(row) for row in rows]))


def test_native_records_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [record(run="good", colour="blue")])
    lines = (
        '{"run": "x", ',
        json.dumps(record(run="old", schema_version=2)),
        json.dumps(record(run="off", flops=2e10)),
    )
    with (folder / "runs.jsonl").open("a") as file:
        file.write("\n" + "\n".join(lines) + "\n")
    sweep = read_one(folder)
    (run,) = sweep.runs
    assert (run.run, run.row, run.params, run.lr, run.width) == ("good", 1, 98_304, 4e-3, 64)
    assert sweep.schedule == "cosine"
    reasons = ("not valid JSON", "schema_version is 2", "flops 2e+10 is -33% off its budget 3e+10")
    for line, reason in zip((3, 4, 5), reasons, strict=True):
        assert reason in rejected(sweep)[line]


@pytest.mark.parametrize(
    ("statuses", "kept"),
    [
        (("done", "done"), 1),
        (("failed", "done"), 2),
        (("failed", "diverged"), 2),
        (("diverged", "done"), 1),
        (("failed", "failed"), 1),
        (("done", "failed"), 1),
    ],
)
def test_of_one_run_key_the_first_finished_record_is_kept(
    tmp_path: Path, statuses: tuple[str, str], kept: int
) -> None:
    rows = [record(run="a", status=status, loss=0.9 - k / 10) for k, status in enumerate(statuses)]
    sweep = native(tmp_path, *rows, record(run="b", loss=0.5))
    items = [item for item in (*sweep.runs, *sweep.stopped) if item.run == "a"]
    assert [item.row for item in items] == [kept]
    assert rejected(sweep) == {3 - kept: f"run 'a' is also in row {kept}, which is kept"}


def test_the_same_key_in_a_foreign_table_is_two_runs(tmp_path: Path) -> None:
    assert len(of(tmp_path, [row | {"run": "a"} for row in ladder()]).runs) == len(ladder())


def test_the_demo_sweep_reads_as_it_lies() -> None:
    sweep = read_one(Path(__file__).parents[3] / "sweeps")
    assert (sweep.rows, len(sweep.runs), len(sweep.stopped)) == (91, 90, 1)
    assert sweep.accounting.flops == "exact"
    assert sweep.settings is not None
    assert "base" in sweep.settings
