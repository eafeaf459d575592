"""`planner design` from the command line."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.planner.kling import FIVE, kling_sweep

from planner.cli import main
from planner.designing.prior import KLING

ROOT = Path(__file__).parents[3]
SPEC = ROOT / "sweeps/demo/sweep.toml"

Planner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Run the command in this process."""

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = ["planner", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as done:
            main()
        seen = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return subprocess.CompletedProcess(command, done.value.code, seen.out, seen.err)

    return run


def one_object(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_json_before_a_sweep_is_one_object_and_the_same_each_time(planner: Planner) -> None:
    asked = ["design", "--cost", "1e21", "--target", "1e22", "--budgets", "3..4", "--batches", "2"]
    asked += ["--sweeps", "60"]
    first, second = planner(*asked, "--json"), planner(*asked, "--json")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    found = one_object(first.stdout)
    assert (found["schema_version"], found["kind"]) == (1, "before")
    assert sum(run["flops"] for run in found["runs"]) == pytest.approx(
        found["design"]["cost_flops"]
    )
    assert found["design"]["cost_flops"] <= 1e21
    for run in found["runs"]:
        assert run["runs"] == len(run["lrs"]) * len(run["batch_tokens"]) == 8
        centre = math.sqrt(run["lrs"][1] * run["lrs"][2])
        assert KLING.lr is not None
        assert centre == pytest.approx(KLING.lr.value(run["params"], run["tokens"]))
    simulated = found["design"]["simulated"]["params_factor"]
    assert math.log(simulated) == pytest.approx(
        math.log(found["design"]["predicted"]["params_factor"]), rel=0.25
    )
    assert "Design for 1e22 FLOPs" in first.stderr


def test_the_least_cost_that_a_refusal_names_is_enough(planner: Planner) -> None:
    asked = ("design", "--target", "1e20", "--budgets", "3", "--decades", "1", "--sweeps", "20")
    refused = planner(*asked, "--cost", "1e10")
    assert refused.returncode == 2
    assert refused.stdout == ""
    least = float(refused.stderr.split("the least is ")[1].split(". Raise")[0])
    assert planner(*asked, "--cost", f"{least * 0.98}").returncode == 2
    assert planner(*asked, "--cost", f"{least}").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cost", "1e20"], "--target missing"),
        ([], "--cost and --target missing"),
        (["--cost", "-1", "--target", "1e22"], "'--cost': -1 is not in the range 1 to 1e+32"),
        (["--cost", "nan", "--target", "1e22"], "nan is not in the range 1 to 1e+32"),
        (["--cost", "1e-300", "--target", "1e-300"], "1e-300 is not in the range 1 to 1e+32"),
        (
            ["--cost", "1e20", "--target", "1e22", "--noise", "0"],
            "0 is not in the range 1e-09 to 1",
        ),
        (["--cost", "1e20", "--target", "1e22", "--precision", "1"], "give a factor above 1"),
        (["--cost", "1e21", "--target", "1e22", "--seed", "-1"], "-1 is not in the range 0 to"),
        (["--cost", "1e21", "--target", "1e22", "--smallest", "1e11"], "or lower --smallest"),
        (["--cost", "1e21", "--target", "1e22", "--smallest", "1e12"], "or lower --smallest"),
        (["--cost", "1", "--target", "1"], "no design fits below --target 1 FLOPs"),
        (["--cost", "1e20", "--target", "1e22", "--budgets", "9..4"], "counts go from 3 to 12"),
        (["--cost", "1e20", "--target", "1e22", "--budgets", "five"], "expected a count such as 5"),
        (["--cost", "1e20", "--target", "1e22", "--lrs", "0"], "0 is not in the range"),
        (["--cost", "1e20", "--target", "1e14"], "no design fits below --target"),
        (
            ["--cost", "1e20", "--target", "1e22", "--next", "3"],
            "--next: for a sweep that is there",
        ),
        (
            ["--cost", "1e20", "--target", "1e22", "--prior", "gpt"],
            "--prior gpt: neither kling nor",
        ),
        (["--cost", "1", "--target", "2", "--spec", str(SPEC), "--batches", "3"], "--batches 3:"),
        (["sweeps/demo"], "--next missing"),
        (["sweeps/demo", "--next", "0"], "0 is not in the range"),
        (["sweeps/demo", "--next", "2", "--cost", "1e20"], "--cost: for a design before a sweep"),
    ],
)
def test_bad_input_before_anything_is_computed(
    planner: Planner, arguments: list[str], told: str
) -> None:
    done = planner("design", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_after_a_sweep_edges_come_first_and_runs_follow_the_laws(
    planner: Planner, tmp_path: Path
) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl")
    done = planner("design", table, "--next", "4", "--target", "1e21", "--json")
    assert done.returncode == 0, done.stderr
    found = one_object(done.stdout)
    assert (found["schema_version"], found["kind"]) == (1, "after")
    assert [(run["beyond"], run["side"], run["lr"]) for run in found["edges"]] == [
        ("lr", "upper", pytest.approx(3.2e-3))
    ]
    before = found["params_factor"]["before"]
    for run in found["next"]:
        assert run["params_factor"]["before"] == pytest.approx(before)
        before = run["params_factor"]["after"]
        assert run["params_factor"]["after"] < run["params_factor"]["before"]
        assert run["flops"] <= 3 * 6e18 * (1 + 1e-9)
        assert KLING.lr is not None
        expected = KLING.lr.value(run["params"], run["tokens"])
        assert run["lrs"] == [pytest.approx(expected, rel=0.3)]
    assert found["params_factor"]["after"] == pytest.approx(before)
    assert done.stderr.index("First: grids whose best is at an edge") < done.stderr.index("Then")
    assert "edges_first" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "1e18"], "--target 1e+18 FLOPs is not above the largest budget"),
        (["--budget-cap", "1e17"], "--budget-cap 1e+17 FLOPs leaves no run"),
        (["--noise", "1e300"], "1e300 is not in the range 1e-09 to 1: give the relative"),
        (["--next", "5000"], "candidate runs up to"),
    ],
)
def test_bad_input_after_a_sweep(
    planner: Planner, tmp_path: Path, arguments: list[str], told: str
) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl")
    done = planner("design", table, "--next", "2", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_what_refuses_the_sweep_refuses_the_next_runs(planner: Planner, tmp_path: Path) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    tenfold = [{**row, "flops": 10 * row["flops"]} for row in rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in tenfold))
    asked = ("design", table, "--next", "2", "--json")
    refused, forced = planner(*asked), planner(*asked, "--force")
    assert (refused.returncode, forced.returncode) == (3, 0)
    assert "REFUSED [flops_contradict]: flops are 10 to 10 times 6ND" in refused.stderr
    found = one_object(refused.stdout)
    assert found == one_object(forced.stdout)
    assert not found["trusted"]
    assert [each["code"] for each in found["findings"] if each["refuses"]] == ["flops_contradict"]
    assert len(found["next"]) == 2


def test_a_sweep_without_a_surface_is_to_be_designed_anew(planner: Planner, tmp_path: Path) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl", budgets=FIVE[:1])
    lines = table.read_text().splitlines()[:10]  # two sizes
    table.write_text("\n".join(lines) + "\n")
    done = planner("design", table, "--next", "2")
    assert done.returncode == 2
    assert "no loss surface to improve" in done.stderr
    assert "First of all" not in done.stderr
    two = [json.loads(line) for line in lines]
    table.write_text("".join(json.dumps({**row, "flops": row["flops"] * 99}) + "\n" for row in two))
    assert (
        "First of all, flops are 99 to 99 times 6ND"
        in planner("design", table, "--next", "2").stderr
    )


def test_a_sweep_at_one_ratio_is_told_to_leave_that_line(planner: Planner, tmp_path: Path) -> None:
    law = replace(KLING.surface, alpha=0.5, A=KLING.surface.A * 40)
    rng = np.random.default_rng(0)
    rows = []
    for n in np.geomspace(1e7, 1e9, 14):
        d = 100 * n * math.exp(0.05 * rng.standard_normal())
        loss = law.loss(n, d) * math.exp(1e-4 * rng.standard_normal())
        rows.append({"params": n, "tokens": d, "flops": 6 * n * d, "loss": loss})
    table = tmp_path / "runs.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = planner("design", table, "--next", "3", "--noise", "1e-4", "--json")
    assert done.returncode == 0, done.stderr
    found = one_object(done.stdout)
    assert "fixed_ratio_collinear" in [finding["code"] for finding in found["findings"]]
    ratio = [run["tokens"] / run["params"] for run in found["next"]]
    assert max(abs(math.log(each / 100)) for each in ratio) > math.log(2)
    assert found["params_factor"]["after"] < found["params_factor"]["before"]


def test_help_needs_nothing_but_click() -> None:
    code = (
        "import sys; sys.argv = ['planner', 'design', '--help']\n"
        "from planner.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'numpy', 'scipy'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "planner design sweeps/demo --next 6" in done.stdout
