import json
from pathlib import Path
from typing import Any

import pytest
from unit.planner.synthetic import record, write_sweep

from planner.errors import InputError
from planner.records import locate, read_sweep


def numbered(count: int) -> list[dict[str, Any]]:
    return [record(run=f"r{index}", lr_peak=1e-3 * 2**index) for index in range(count)]


def test_reads_a_sweep_and_ignores_extra_fields_and_blank_lines(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [record(colour="blue")])
    with (folder / "runs.jsonl").open("a") as file:
        file.write("\n\n")
    sweep = read_sweep(folder)
    assert [(r.width, r.loss, r.line) for r in sweep.records] == [(64, 0.9, 1)]
    assert sweep.settings is None
    assert not sweep.rejections


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"run": "x", ', "not valid JSON"),
        ("[1, 2]", "a list, not an object"),
        (json.dumps(record(schema_version=2)), "schema_version is 2"),
        (json.dumps(record(status="finished")), "status is 'finished'; allowed: done"),
        (json.dumps(record(loss=float("nan"))), "loss is nan; expected a finite number"),
        (json.dumps(record(loss=None)), "loss is None; expected a number"),
        (json.dumps(record(loss=-0.1)), "loss is -0.1; it must be above 0"),
        (json.dumps(record(lr_peak=0)), "lr_peak is 0; it must be above 0"),
        (json.dumps(record(tokens="many")), "tokens is 'many'; expected a number"),
        (json.dumps(record(width=64.5)), "width is 64.5; expected a whole number"),
        (json.dumps(record(seed=True)), "seed is True; expected a whole number"),
        (json.dumps(record(schedule="")), "schedule is ''; expected text"),
        (json.dumps(record(flops=2e10)), "flops 2e+10 is -33% off budget_flops 3e+10"),
        (json.dumps({k: v for k, v in record().items() if k != "loss"}), "field 'loss' is missing"),
        (json.dumps(record(status="diverged", width=0)), "width is 0; it must be above 0"),
    ],
)
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_is_kept(
    tmp_path: Path, line: str, reason: str
) -> None:
    folder = write_sweep(tmp_path, [record(run="good")])
    with (folder / "runs.jsonl").open("a") as file:
        file.write(line + "\n")
    sweep = read_sweep(folder)
    assert [r.run for r in sweep.records] == ["good"]
    assert [r.line for r in sweep.rejections] == [2]
    assert reason in sweep.rejections[0].reason


def test_diverged_and_failed_runs_need_no_loss(tmp_path: Path) -> None:
    blown = record(run="a", status="diverged", loss=None, tokens=None, steps=0)
    lost = record(run="b", status="failed", loss=None, schedule=None)
    sweep = read_sweep(write_sweep(tmp_path, [record(run="c"), blown, lost]))
    assert [run.run for run in sweep.stopped_as("diverged")] == ["a"]
    assert [run.run for run in sweep.stopped_as("failed")] == ["b"]
    assert not sweep.rejections


def test_the_first_finished_record_of_a_run_is_kept(tmp_path: Path) -> None:
    rows = [
        record(run="a", status="failed", loss=None),
        record(run="a", loss=0.8),
        record(run="a", loss=0.7),
        record(run="a", status="failed", loss=None),
        record(run="a", status="diverged", loss=None),
    ]
    sweep = read_sweep(write_sweep(tmp_path, rows))
    assert [(r.line, r.loss) for r in sweep.records] == [(2, 0.8)]
    assert not sweep.stopped
    assert [r.line for r in sweep.rejections] == [1, 3, 4, 5]
    assert all("also on line 2" in r.reason for r in sweep.rejections)


@pytest.mark.parametrize(("field", "value"), [("data_digest", "another"), ("schedule", "constant")])
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, field: str, value: str) -> None:
    rows = [*numbered(2), record(run="odd", **{field: value})]
    with pytest.raises(InputError, match=rf"mixed {field}: .* \(2 runs\), {value} \(1 runs\)"):
        read_sweep(write_sweep(tmp_path, rows))


def test_a_sweep_without_a_loss_is_refused_and_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no records"):
        read_sweep(write_sweep(tmp_path, []))
    rows = [{**row, "loss": float("nan")} for row in numbered(3)]
    with pytest.raises(InputError, match=r"no finished run.*3 rejected, the first: .*:1: loss is"):
        read_sweep(write_sweep(tmp_path, rows))
    blown = [{**row, "status": "diverged", "loss": None} for row in numbered(2)]
    with pytest.raises(InputError, match="2 diverged"):
        read_sweep(write_sweep(tmp_path, blown))


def test_broken_sweep_toml_is_refused(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [record()])
    (folder / "sweep.toml").write_text("base = [")
    with pytest.raises(InputError, match=r"sweep\.toml: not valid TOML"):
        read_sweep(folder)


def test_a_sweep_is_found_as_a_file_a_folder_or_the_only_sub_folder(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "one", [record()]) / "runs.jsonl"
    assert locate(runs) == locate(tmp_path / "one") == locate(tmp_path) == runs


def test_no_sweep_and_several_sweeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        locate(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no runs\.jsonl here or one folder below"):
        locate(tmp_path)
    write_sweep(tmp_path / "one", [record()])
    write_sweep(tmp_path / "two", [record()])
    with pytest.raises(InputError, match=r"holds 2 sweeps; name one of them: .*one, .*two"):
        locate(tmp_path)
