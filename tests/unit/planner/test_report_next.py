"""What a report says to run next, in settings and a command line that can be copied."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from unit.planner import reports
from unit.planner.kling import kling_sweep
from unit.planner.tables import read_one, write_jsonl

from planner.cli_design import design
from planner.cli_options import repeat_options
from planner.fitting.fit import FitOptions, fit_sweep
from planner.reading.records import read_sweeps
from planner.reading.spec import ReadOptions
from planner.showing.report_next import design_command, what_next


def test_grids_at_an_edge_are_named_with_their_next_setting(tmp_path: Path) -> None:
    fit = fit_sweep(read_one(kling_sweep(tmp_path / "runs.jsonl")), FitOptions(resamples=0))
    found = what_next(fit, 1e21, ReadOptions())
    assert found.advice[0].startswith(
        "Extend the grid to a larger learning rate in 1 of the 25 groups that have a grid:"
    )
    assert found.edges is not None
    assert found.edges.head == ("grids to extend", "N", "D", "learning rate", "FLOPs")
    ((what, *_, rate, flops),) = found.edges.rows
    assert (what, rate, flops) == ("larger learning rate", "3.2e-3", "3e17")
    assert f"`planner design {tmp_path}/runs.jsonl --target 1e+21 --next 12`" in found.advice[-1]


def test_without_an_edge_there_is_no_table_of_them() -> None:
    fit, _ = reports.one_size()
    inside = replace(fit, groups=tuple(g for g in fit.groups if g.lr is not None))
    assert what_next(inside, None, ReadOptions()).edges is None


@pytest.mark.parametrize("in_file", [False, True])
def test_the_command_reads_the_same_rows(tmp_path: Path, in_file: bool) -> None:
    rows = [
        {"N": 1e8 * k, "tokens": 1e9 * k, "loss": 3 - 0.1 * k, "model kind": kind}
        for kind in ("base", "other one")
        for k in (1, 2, 3)
    ]
    source = write_jsonl(tmp_path / "my runs.jsonl", rows)
    spec = tmp_path / "how.toml"
    spec.write_text('group = "model kind"\n' if in_file else "")
    reading = ReadOptions(("params=N",), ("loss<2.85",), None if in_file else "model kind", spec)
    sweep = read_sweeps(str(source), reading)[1]
    command, name, *arguments = shlex.split(design_command(sweep, None, reading))
    assert (command, name) == ("planner", "design")
    given = design.make_context("design", repeat_options(arguments)).params
    again = ReadOptions(given["maps"], given["where"], given["group"], given["spec"])
    (read_again,) = read_sweeps(given["path"], again)
    assert read_again.runs == sweep.runs
    assert {run.row for run in sweep.runs} == {5, 6}
