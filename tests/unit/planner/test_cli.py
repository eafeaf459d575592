"""The command as a user has it: what it prints, writes and exits with."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from unit.planner.surfaces import KLING, isoflop_points

from planner.cli import main
from planner.cli_options import repeat_options

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
DEMO = ROOT / "sweeps" / "demo"
QUICK = ("--resamples", "50")

Process = subprocess.CompletedProcess[str]
Row = dict[str, Any]


def rows_of(noise: float = 1e-4, **grid: Any) -> list[Row]:
    """A table with the canonical columns, from Kling's surface."""
    made = isoflop_points(KLING, noise=noise, **grid)
    return [
        {"params": N, "tokens": D, "flops": 6 * N * D, "loss": L}
        for N, D, L in zip(made.params, made.tokens, made.loss, strict=True)
    ]


def table(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def planner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    """Run the command in this process, in a folder of its own."""
    (tmp_path / "here").mkdir()

    def run(*arguments: str | Path) -> Process:
        command = ["planner", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert isinstance(done.value.code, int)
        return subprocess.CompletedProcess(command, done.value.code, captured.out, captured.err)

    return run


def fitted_without(modules: set[str], *arguments: str) -> Process:
    """Run the command in a fresh process that fails if it imported any of `modules`."""
    code = (
        f"import sys; sys.argv = {['planner', *arguments]!r}\n"
        "from planner.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        f"slow = {modules!r} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@pytest.mark.parametrize("command", ["fit", "report", "design"])
def test_help_imports_nothing_slow(command: str) -> None:
    slow = {"numpy", "scipy", "matplotlib", "torch", "ray", "mlflow", "pandas", "pyarrow"}
    done = fitted_without(slow, command, "-h")
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    for option in ("--map", "--where", "--spec", "--target", "--json"):
        assert option in done.stdout


def test_a_fit_needs_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    heavy = {"torch", "ray", "mlflow", "matplotlib", "pandas", "pyarrow", "jinja2"}
    done = fitted_without(heavy, "fit", str(DEMO), "--out", str(tmp_path), *QUICK)
    assert done.returncode == 0, done.stderr


def test_json_is_the_documented_object(planner: Any, tmp_path: Path) -> None:
    rows = [*rows_of(), {"params": 1e8, "tokens": 1e9, "flops": 6e17, "loss": -0.1}]
    source = table(tmp_path / "runs.jsonl", rows)
    done = planner("fit", source, "--target", "3e19", "--target", "1e20", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["schema_version"] == 2
    data = found["data"]
    assert (data["rows"], data["used"]) == (46, 45)
    assert [each["row"] for each in data["rejected"]] == [46]
    assert data["hash"].startswith("sha256:")
    for way in ("huber", "varpro"):
        surface = found["surface"][way]
        assert surface["a"] == pytest.approx(KLING.a, abs=0.03)
        for name in ("E", "A", "B", "alpha", "beta", "a"):
            low, high = surface["interval"][name]
            assert low <= surface[name] <= high
            assert surface["se"][name] > 0
        assert surface["objective"] > 0
    isoflop = found["isoflop"]
    low, high = isoflop["interval"]
    assert low < isoflop["exponent"] < high
    assert [budget["verdict"] for budget in isoflop["budgets"]] == ["interior"] * 5
    assert {"flops", "params", "loss"} <= isoflop["budgets"][0].keys()
    assert {"groups", "laws", "regret"} <= found["hyper"].keys()
    assert found["hyper"]["groups"][0]["lr_edge"] == "degenerate"
    forecast = found["forecast"]
    assert forecast["held_out_flops"] == pytest.approx(6e18)
    error = forecast["predicted"] / forecast["observed"] - 1
    assert forecast["relative_error"] == pytest.approx(error)
    assert [plan["flops"] for plan in found["plan"]] == [3e19, 1e20]
    for name in ("params", "tokens", "loss"):
        low, high = found["plan"][0][name]["interval"]
        assert low < found["plan"][0][name]["value"] < high
    assert {"code", "text", "refuses"} == found["warnings"][0].keys()
    assert (tmp_path / "here" / "fit" / "laws.json").read_text() == done.stdout


def test_with_groups_there_is_one_object_a_group(planner: Any, tmp_path: Path) -> None:
    rows = [{**row, "model": name} for name in ("a", "b") for row in rows_of(seed=ord(name))]
    source = table(tmp_path / "runs.jsonl", rows)
    done = planner("fit", source, "--group", "model", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["groups"]) == ["a", "b"]
    assert [each["data"]["rows"] for each in found["groups"].values()] == [45, 45]


def test_equal_input_gives_equal_bytes(planner: Any, tmp_path: Path) -> None:
    source = table(tmp_path / "runs.jsonl", rows_of())
    first, again = (planner("fit", source, "--json", *QUICK).stdout for _ in range(2))
    assert first == again
    assert planner("fit", source, "--json", *QUICK, "--seed", "1").stdout != first


def test_targets_are_10_30_and_100_times_the_largest_unless_said(
    planner: Any, tmp_path: Path
) -> None:
    source = table(tmp_path / "runs.jsonl", rows_of())

    def flops(*options: str) -> list[float]:
        done = planner("fit", source, "--json", *QUICK, *options)
        assert done.returncode == 0, done.stderr
        return [plan["flops"] for plan in json.loads(done.stdout)["plan"]]

    assert flops() == pytest.approx([6e19, 1.8e20, 6e20])
    gpu_days = ("--gpus", "2", "--days", "3", "--gpu", "H100", "--utilisation", "0.5")
    assert flops(*gpu_days) == pytest.approx([2 * 3 * 86400 * 989e12 * 0.5])


def test_the_demo_sweep_is_planned_and_an_older_plan_does_not_outlive_a_refusal(
    planner: Any, tmp_path: Path
) -> None:
    done = planner("fit", DEMO, "--target", "3e12", "--out", tmp_path / "out", *QUICK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "plan.toml").is_file()
    far = planner("fit", DEMO, "--target", "1e16", "--out", tmp_path / "out", *QUICK)
    assert far.returncode == 3
    assert "REFUSED [extrapolation]" in far.stdout
    assert "the limit is 300x" in far.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"laws.json"}
    forced = planner("fit", DEMO, "--target", "1e16", "--out", tmp_path / "out", "--force", *QUICK)
    assert forced.returncode == 0
    assert (tmp_path / "out" / "plan.toml").is_file()


def test_other_peoples_folders_are_not_written_into(planner: Any, tmp_path: Path) -> None:
    table(tmp_path / "theirs" / "runs.jsonl", rows_of())
    assert planner("fit", tmp_path / "theirs", *QUICK).returncode == 0
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["runs.jsonl"]
    assert (tmp_path / "here" / "fit" / "laws.json").is_file()
    (tmp_path / "theirs" / "sweep.toml").write_text('[accounting]\nflops = "6nd"\n')
    assert planner("fit", tmp_path / "theirs", *QUICK).returncode == 0
    assert (tmp_path / "theirs" / "fit" / "laws.json").is_file()


def changed(rows: list[Row], where: Any, change: Any) -> list[Row]:
    return [{**row, **change(row)} if where(index, row) else row for index, row in enumerate(rows)]


def every(step: int) -> Any:
    return lambda index, _: index % step == 0


TUNED = [
    {"params": 1e8, "tokens": 2e9, "flops": 1.2e18, "lr": lr, "batch_tokens": batch,
     "loss": 0.6 + 0.01 * (i - 2) ** 2 + 0.004 * (j - 2) ** 2}
    for i, lr in enumerate((1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3))
    for j, batch in enumerate((65536, 131072, 262144, 524288, 1048576))
]  # fmt: skip

BAD = {
    "three budgets": (rows_of(budgets=(3e17, 1e18, 3e18)), "few_budgets", 0),
    "one size": ([{**row, "params": 1e8, "flops": 6e8 * row["tokens"]} for row in rows_of()],
                 "one_size", 3),
    "one learning rate": ([{**row, "lr": 1e-4} for row in rows_of()], "one_learning_rate", 0),
    "losses partly in bits": (
        changed(rows_of(), every(3), lambda row: {"loss": row["loss"] / 0.6931}),
        "loss_units_mixed", 3),
    "batch in samples and tokens": (
        changed(TUNED, every(2), lambda row: {"batch_tokens": row["batch_tokens"] // 2048}),
        "batch_units_mixed", 3),
    "N with and without embeddings": (
        changed(
            [{**row, "width": 64 + index % 9, "depth": 4} for index, row in enumerate(rows_of())],
            every(4), lambda row: {"params": row["params"] * 1.6}),
        "params_mixed", 3),
    "duplicates": ([*rows_of(), *rows_of()[:5]], "duplicate_rows", 0),
    "a diverged run": (
        changed(rows_of(), lambda i, _: i == 7, lambda _: {"loss": None, "status": "diverged"}),
        "diverged", 0),
    "a loss that is not a number": (
        changed(rows_of(), lambda i, _: i == 7, lambda row: {"loss": float("nan")}), "diverged", 0),
    "a negative loss": (changed(rows_of(), lambda i, _: i == 7, lambda row: {"loss": -1.0}),
                        "negative_loss", 0),
    "FLOPs that contradict N and D": (
        changed(rows_of(), every(3), lambda row: {"flops": row["flops"] * 3}),
        "flops_contradict", 3),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_get_their_own_message(planner: Any, tmp_path: Path, case: str) -> None:
    rows, code, exit_code = BAD[case]
    done = planner("fit", table(tmp_path / "runs.jsonl", rows), "--json", *QUICK)
    assert done.returncode == exit_code, done.stderr
    said = {each["code"]: each for each in json.loads(done.stdout)["warnings"]}
    assert code in said, sorted(said)
    assert f"[{code}]" in done.stderr


def test_a_good_table_gets_none_of_these_messages(planner: Any, tmp_path: Path) -> None:
    done = planner("fit", table(tmp_path / "runs.jsonl", rows_of()), "--json", *QUICK)
    assert done.returncode == 0
    said = {each["code"] for each in json.loads(done.stdout)["warnings"]}
    assert said.isdisjoint({code for _, code, _ in BAD.values()})


def test_a_grid_at_one_size_is_answered_where_it_can_be(planner: Any, tmp_path: Path) -> None:
    source = table(tmp_path / "runs.jsonl", TUNED)
    done = planner("fit", source, "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"] == []
    (group,) = found["hyper"]["groups"]
    assert (group["lr_edge"], group["batch_edge"]) == ("interior", "interior")
    assert group["lr"] == pytest.approx(4e-4, rel=0.02)
    assert planner("fit", source, "--target", "1e19", *QUICK).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere"], "nowhere"),
        (["fit", "--targets", "1e9", "."], "No such option '--targets'. Did you mean '--target'?"),
        (["fitt"], "No such command 'fitt'"),
        (["fit", ".", "--target", "-1"], "-1 is not in the range 1 to 1e+32: give the training"),
        (["fit", ".", "--target", "nan"], "nan is not in the range 1 to 1e+32"),
        (["fit", ".", "--target", "1e300"], "1e300 is not in the range 1 to 1e+32"),
        (["fit", ".", "--target", "much"], "'much' is not a valid float"),
        (["fit", ".", "--utilisation", "1.5"], "1.5 is not in the range 0.001 to 1: give the"),
        (["fit", ".", "--days", "1e300", "--gpus", "8"], "1e300 is not in the range 0.001 to 3650"),
        (["fit", ".", "--gpus", "1e9"], "'1e9' is not a valid integer"),
        (["fit", ".", "--gpus", "0"], "0 is not in the range 1 to 1000000: give a count of GPUs"),
        (["fit", ".", "--gpu-peak-tflops", "1e-300"], "1e-300 is not in the range 0.1 to 1000000"),
        (["fit", ".", "--price", "1e308"], "1e308 is not in the range 0.0001 to 1000000"),
        (["fit", ".", "--seed", "-1"], "-1 is not in the range 0 to 4294967295"),
        (["report", ".", "--resamples", "-1"], "-1 is not in the range 0 to 100000"),
        (["fit", ".", "--days", "3"], "--days needs --gpus"),
        (["fit", ".", "--gpu", "H1000"], "H1000"),
        (["fit"], "Missing argument"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_is_wrong(
    planner: Any, arguments: list[str], message: str
) -> None:
    done = planner(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_bad_input_leaves_nothing_behind(planner: Any, tmp_path: Path) -> None:
    source = table(tmp_path / "runs.jsonl", [{"N": 1e8, "D": 1e9, "loss": 2.0}])
    done = planner("fit", source, "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "--map" in done.stderr
    assert done.stdout == ""
    assert list((tmp_path / "here").iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_told_before_the_fit(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "runs.jsonl", rows_of())
    monkeypatch.setattr("planner.session.fit_sweep", lambda *_: pytest.fail("fitted first"))
    for out, culprit in ((source / "below", source), ("/dev/null", "/dev/null")):
        done = planner("fit", source, "--out", out, *QUICK)
        assert done.returncode == 2
        assert (
            done.stderr
            == f"Error: --out {out}: {culprit} is no folder; name one that is, or a new one\n"
        )
    monkeypatch.setattr("planner.session.os.access", lambda *_: False)
    done = planner("fit", source, "--out", tmp_path / "a" / "b", *QUICK)
    assert done.returncode == 2
    assert f"nothing can be written into {tmp_path}" in done.stderr


def test_a_folder_that_fills_up_meanwhile_exits_with_1(
    planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("planner.session.write_bytes", full)
    done = planner("fit", table(tmp_path / "runs.jsonl", rows_of()), *QUICK)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_a_fit_leaves_no_earlier_report_beside_its_laws(planner: Any, tmp_path: Path) -> None:
    source = table(tmp_path / "runs.jsonl", rows_of())
    assert planner("report", source, "--out", tmp_path / "out", *QUICK).returncode == 0
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "out" / "notes.png").write_text("mine")
    assert planner("fit", source, "--out", tmp_path / "out", *QUICK).returncode == 0
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["laws.json", "notes.png"]


def test_runs_that_diverged_by_their_loss_are_counted_where_the_rows_are(
    planner: Any, tmp_path: Path
) -> None:
    rows = [{**row, "lr": lr} for row in rows_of() for lr in (1e-3, 2e-3)]
    rows[4]["loss"] *= 2
    done = planner("fit", table(tmp_path / "runs.jsonl", rows), "--json", *QUICK)
    assert (
        "90 rows: 90 used (1 of them diverged by their loss), 0 diverged, 0 failed" in done.stderr
    )
    data = json.loads(done.stdout)["data"]
    assert (data["diverged_by_loss"], data["stopped"]) == ([5], [])


def test_groups_that_a_sweep_toml_asks_for_are_all_told(planner: Any, tmp_path: Path) -> None:
    rows = [{**row, "kind": kind} for kind in "ab" for row in rows_of()]
    table(tmp_path / "theirs" / "runs.jsonl", rows)
    (tmp_path / "theirs" / "sweep.toml").write_text('group = "kind"\n')
    done = planner("fit", tmp_path / "theirs", "--json", *QUICK)
    assert list(json.loads(done.stdout)["groups"]) == ["a", "b"]


def test_an_interruption_exits_with_130(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.reading.records.read_sweeps", interrupted)
    monkeypatch.setattr("planner.session.read_sweeps", interrupted)
    done = planner("fit", ".")
    assert done.returncode == 130
    assert "interrupted" in done.stderr


def test_many_values_may_follow_one_option() -> None:
    given = ["--map", "params=N", "tokens=D", "--where", "loss<5", "model=a", "runs.csv", "--json"]
    assert repeat_options(given) == [
        "--map", "params=N", "--map", "tokens=D", "--where", "loss<5", "--where", "model=a",
        "runs.csv", "--json",
    ]  # fmt: skip
    assert repeat_options(["a=b.csv", "--map", "params=N"]) == ["a=b.csv", "--map", "params=N"]
