"""jobs/sweep.py: real small runs, nothing run twice; and a fit of the shipped sweep."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, run

GRID = (
    "--widths", "16,32", "--budgets", "2e8,4e8", "--lrs", "4e-3,1e-2", "model.head_dim=16",
    "model.depth=1", "data.pack_tokens=96", "log.validation_clips=4", "log.validation_levels=2",
)  # fmt: skip


def records(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "sweeps/s/runs.jsonl").read_text().splitlines()]


@pytest.mark.ray
def test_a_sweep_runs_every_cell_once_and_goes_on(data_folder: Path, tmp_path: Path) -> None:
    arguments = ("--name", "s", *GRID, f"data.path={data_folder}")
    code, out, err = run(tmp_path, "sweep", *arguments)
    assert code == 0, err
    assert "8 runs done now, 0 were there before" in out
    first = records(tmp_path)
    assert {(r["width"], r["budget_flops"], r["lr_peak"]) for r in first} == {
        (w, b, lr) for w in (16, 32) for b in (2e8, 4e8) for lr in (4e-3, 1e-2)
    }
    for record in first:
        assert record["status"] == "done"
        assert record["flops"] == pytest.approx(record["budget_flops"], rel=0.2)
        assert 0 < record["loss"] < 10

    # Lose one record and cut off another: both cells, and only they, are run again, to the bit.
    path = tmp_path / "sweeps/s/runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:-1]) + lines[-1][:40])
    code, out, err = run(tmp_path, "sweep", *arguments)
    assert code == 0, err
    assert "2 runs done now, 6 were there before" in out
    assert "took out a line cut off" in out

    def losses(rows: list[dict]) -> dict[str, float]:
        return {row["run"]: row["loss"] for row in rows}

    assert losses(records(tmp_path)) == losses(first)

    code, _, err = run(tmp_path, "sweep", *arguments, "optimizer.beta1=0.8")
    assert code == 2
    assert "written for other settings" in err


def test_a_budget_below_half_a_step_is_refused(data_folder: Path, tmp_path: Path) -> None:
    code, _, err = run(
        tmp_path, "sweep", "--budgets", "1e3", "--widths", "32", f"data.path={data_folder}"
    )
    assert code == 2
    assert "budget 1e+03 FLOPs is less than half a step" in err
    assert not (tmp_path / "sweeps").exists()


def test_the_shipped_sweep_gives_a_plan_that_pretrain_takes(tmp_path: Path) -> None:
    fit = subprocess.run(
        [sys.executable, "-m", "planner", "report", "sweeps/", "--out", str(tmp_path), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fit.returncode == 0, fit.stderr
    assert json.loads(fit.stdout)["schema_version"] == 2
    for name in ("laws.json", "plan.toml", "report.html", "isoflop.png", "laws.svg"):
        assert (tmp_path / name).stat().st_size > 0, name
    code, out, err = run(
        tmp_path / "home", "pretrain", "--plan", str(tmp_path / "plan.toml"), "--dry-run", "--json"
    )
    assert code == 0, err
    plan = json.loads(out)
    target = json.loads(fit.stdout)["plan"][0]["flops"]
    assert plan["run_flops"] == pytest.approx(target, rel=0.05)
