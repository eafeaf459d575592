import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from unit.planner.synthetic import Truth, platform_sweep, record, settings, write_sweep

from planner.cli import main

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
FILES = {"laws.json", "plan.toml", "isoflop.png", "isoflop.svg", "laws.png", "laws.svg"}

Process = subprocess.CompletedProcess[str]


def python(*arguments: str) -> Process:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def planner_without(modules: set[str], *arguments: str) -> Process:
    """Run the command in a fresh process that fails if it imported any of `modules`."""
    return python(
        "-c",
        f"import sys; sys.argv = {['planner', *arguments]!r}\n"
        "from planner.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        f"slow = {modules!r} & sys.modules.keys()\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n",
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = platform_sweep(Truth(noise=5e-4), lrs=(2e-3, 4e-3, 8e-3), widths=(32, 64, 128, 192))
    rows.append({**rows[0], "run": "broken", "loss": float("nan")})
    return write_sweep(tmp_path_factory.mktemp("sweep"), rows, settings())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def fitted(sweep: Path, out: Path) -> Process:
    targets = ["--target", "1e13", "--target", "3e13"]
    return python("-m", "planner", "fit", str(sweep), *targets, "--out", str(out), "--json")


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in this process."""

    def run(*arguments: str | Path) -> Process:
        command = ["planner", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return subprocess.CompletedProcess(command, done.value.code, captured.out, captured.err)

    return run


def test_help_imports_nothing_slow_and_has_a_line_for_every_option() -> None:
    slow = {"numpy", "scipy", "matplotlib", "torch", "ray", "mlflow"}
    done = planner_without(slow, "fit", "-h")
    assert done.returncode == 0, done.stderr
    options = done.stdout.split("Options:\n")[1].split("\n\n")[0].splitlines()
    names = [line.split()[0].rstrip(",") for line in options]
    assert names == ["--target", "--out", "--force", "--json", "-h"]
    examples = done.stdout.split("Examples:\n")[1].splitlines()
    assert sum(line.strip().startswith("planner fit") for line in examples) == 2


def test_json_is_one_strict_object_equal_to_laws_json(fitted: Process, out: Path) -> None:
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stdout == (out / "laws.json").read_text()
    document = json.loads(fitted.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert document["schema_version"] == 1
    assert [plan["target_flops"] for plan in document["plans"]] == [1e13, 3e13]
    assert document["sweep"]["counts"]["used"] == len(document["used"]) == 60
    assert document["rejected"][0]["at"].endswith("runs.jsonl:61")
    assert len(document["cells"]) == 20
    assert all(cell["verdict"] for cell in document["cells"] + document["budgets"])


def test_a_fit_writes_everything_and_the_first_target_is_the_plan(
    fitted: Process, out: Path
) -> None:
    assert {path.name for path in out.iterdir()} == FILES
    assert tomllib.loads((out / "plan.toml").read_text())["plan"]["target_flops"] == 1e13


def test_people_are_told_what_was_used_rejected_and_concluded(fitted: Process) -> None:
    assert "60 used, 0 diverged, 0 failed, 1 rejected" in fitted.stderr
    assert "runs.jsonl:61: loss is nan" in fitted.stderr
    assert "Plan for 1e+13 FLOPs" in fitted.stderr
    assert "Plan for 3e+13 FLOPs" in fitted.stderr


def test_equal_input_gives_equal_bytes_without_torch_or_ray(
    fitted: Process, sweep: Path, out: Path, tmp_path: Path
) -> None:
    targets = ["--target", "1e13", "--target", "3e13"]
    again = planner_without(
        {"torch", "ray", "mlflow"}, "fit", str(sweep), *targets, "--out", str(tmp_path)
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("Written")[0] == fitted.stderr.split("Written")[0]
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_a_refusal_exits_with_3_and_leaves_no_older_plan(
    planner: Any, sweep: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text("steps = 1\n")
    refused = planner("fit", sweep, "--target", "1e16", "--out", tmp_path, "--json")
    assert refused.returncode == 3
    assert "the limit is 300x" in refused.stderr
    assert "the limit is 300x" in json.loads(refused.stdout)["plans"][0]["refused"]
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"plan.toml"}


def test_a_sweep_of_another_platform_is_fitted_without_a_plan(
    planner: Any, sweep: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs.jsonl").write_bytes((sweep / "runs.jsonl").read_bytes())
    done = planner("fit", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no plan: no sweep.toml" in done.stdout
    assert {path.name for path in (tmp_path / "fit").iterdir()} == FILES - {"plan.toml"}


def test_a_single_run_is_no_law(planner: Any, tmp_path: Path) -> None:
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "laws.png").write_text("of an earlier fit")
    (tmp_path / "fit" / "notes.txt").write_text("of the user")
    done = planner("fit", write_sweep(tmp_path, [record()]))
    assert done.returncode == 3
    assert "0 of 1 budgets" in done.stdout
    left = {path.name for path in (tmp_path / "fit").iterdir()}
    assert left == {"laws.json", "isoflop.png", "isoflop.svg", "notes.txt"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere"], "nowhere: no such file or folder"),
        (["fit", "--targets", "1e9", "."], "No such option '--targets'. Did you mean '--target'?"),
        (["fitt"], "No such command 'fitt'"),
        (["fit", ".", "--target", "-1"], "not a finite number of FLOPs above 0"),
        (["fit", ".", "--target", "nan"], "not a finite number of FLOPs above 0"),
        (["fit", ".", "--target", "big"], "not a valid float"),
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


def test_bad_input_exits_with_2_and_prints_no_traceback(planner: Any, tmp_path: Path) -> None:
    rows = [record(run="a"), record(run="b", schedule="constant")]
    done = planner("fit", write_sweep(tmp_path, rows), "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "mixed schedule" in done.stderr
    assert done.stdout == ""


def test_an_output_folder_that_cannot_be_made_exits_with_1(planner: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = planner("fit", write_sweep(tmp_path, [record()]), "--out", tmp_path / "file" / "below")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")


def test_an_interruption_exits_with_130(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.records.read_sweep", interrupted)
    done = planner("fit", ".")
    assert done.returncode == 130
    assert "interrupted" in done.stderr
