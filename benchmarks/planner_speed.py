#!/usr/bin/env python3
"""How long the planner takes, and the PyPI package `chinchilla` beside it in the same run.

    pip install chinchilla==0.2.0 "setuptools<80"     # the peer, best in an environment of its own
    benchmarks/planner_speed.py DATA > benchmarks/planner_speed-2-cores.md

DATA holds `epoch_chinchilla/svg_extracted_data.csv` (arXiv 2404.10102) and
`steplaw/dense_lr_bs_loss.csv` (arXiv 2503.04715). Imports are not timed. Without the peer its rows
say so.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from planner.fitting.estimators import SurfaceFit, fit_huber, fit_varpro
from planner.fitting.fit import FitOptions, fit_sweep, points_of
from planner.fitting.hyper import groups
from planner.planning.cost import targets
from planner.planning.plan import make_plan
from planner.reading.records import Sweep, read_sweeps
from planner.reading.spec import ReadOptions
from planner.showing.report import write_report

CHINCHILLA = ReadOptions(
    maps=("params=Model Size", "flops=Training FLOP", "loss=loss"), where=("loss<3.44",)
)
STEPLAW = ReadOptions(
    maps=("params=N", "tokens=D", "loss=smooth loss", "lr=lr", "batch_tokens=bs*2048")
)
REPEATS = 5


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(data: Path) -> None:
    """Print a table of times, one row a task."""
    print(f"# Planner: times\n\n{machine()}\n\n| what | seconds | result |\n| --- | --- | --- |")
    sweep = one(data / "epoch_chinchilla" / "svg_extracted_data.csv", CHINCHILLA)
    points = points_of(groups(sweep))
    huber_s, huber = timed(lambda: fit_huber(points), REPEATS)
    varpro_s, varpro = timed(lambda: fit_varpro(points), REPEATS)
    row(f"point fit, Huber, {len(points)} runs", huber_s, described(huber))
    row(f"point fit, variable projection, {len(points)} runs", varpro_s, described(varpro))
    for name, loss in (("its default loss", None), ("log_huber", "log_huber")):
        peer(sweep, name, loss, huber_s)
    whole_s, rows = timed(lambda: full_report(data / "steplaw" / "dense_lr_bs_loss.csv"), 1)
    row(f"read, fit, 1,000 resamples, report of {rows} rows", whole_s, "step-law sweep")


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def one(path: Path, how: ReadOptions) -> Sweep:
    (sweep,) = read_sweeps(str(path), how)
    return sweep


def timed(task: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest of `repeats` runs, and what the last one returned."""
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        result = task()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s), result


def row(what: str, seconds: float, result: str) -> None:
    print(f"| {what} | {seconds:.3g} | {result} |", flush=True)


def described(fit: SurfaceFit) -> str:
    surface = fit.surfaces.surface()
    return f"a {surface.a:.4f}, objective {fit.objective:.7g}"


def peer(sweep: Sweep, name: str, loss: str | None, ours_s: float) -> None:
    """The same runs through `chinchilla`, from 5^5 starts as its documentation has them."""
    try:
        import chinchilla
    except ImportError:
        print(f"| chinchilla, {name} | not installed | |")
        return
    grid = {
        "E": np.linspace(1, 2, 5),
        "a": np.linspace(1, 10, 5),
        "b": np.linspace(1, 10, 5),
        "alpha": np.linspace(0.1, 0.7, 5),
        "beta": np.linspace(0.1, 0.7, 5),
    }
    chosen = {} if loss is None else {"loss_fn": getattr(chinchilla._metrics, loss)}
    with tempfile.TemporaryDirectory() as folder:
        model = chinchilla.Chinchilla(folder, param_grid=grid, log_level=60, **chosen)
        for run in sweep.runs:
            model.database.append(C=run.flops, N=run.params, D=run.tokens, loss=run.loss)
        seconds, _ = timed(lambda: model.fit(parallel=True), 1)
    exponent = model.beta / (model.alpha + model.beta)
    row(f"chinchilla, {name}", seconds, f"a {exponent:.4f}, {seconds / ours_s:.0f}x ours")


def full_report(path: Path) -> int:
    sweep = one(path, STEPLAW)
    fit = fit_sweep(sweep, FitOptions(resamples=1000))
    plans = [make_plan(fit, each) for each in targets(fit.largest_flops)]
    with tempfile.TemporaryDirectory() as folder:
        write_report([(fit, plans)], Path(folder), "planner report")
    return sweep.rows


if __name__ == "__main__":
    main()
