#!/usr/bin/env python3
"""Do the planner's 90% intervals hold the truth in nine sweeps of ten?

    benchmarks/planner_coverage.py --sweeps 200 > benchmarks/planner_coverage.md

Sweeps are drawn from two known surfaces, fitted and planned as `planner fit --force` does, and the
exponent of N*(C) and N* at 1e22 FLOPs are held against the surface's own minimum under C = 6ND:
- kling: video diffusion transformers (arXiv 2411.17470, Eq. 15), nine sizes within 4x a budget;
- asymmetric: the same floor with exponents 0.465 and 0.155 (arXiv 2603.22339) and a grid of sizes
  that drifts to 3x off the best one, where the parabola over all sizes is far off.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np

from planner.designing.prior import KLING
from planner.fitting.fit import FitOptions, fit_sweep
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import Surface
from planner.planning.plan import make_plan
from planner.reading.records import Sweep
from planner.reading.runs import Accounting, Run

TARGET_FLOPS = 1e22
BUDGETS_FLOPS = (3e17, 6e17, 1e18, 3e18, 6e18)
SIZES = 9
NOISE_NATS = 3e-4
ASYMMETRIC = Surface(
    E=0.4856, A=0.0082 * 1e9**0.465, B=0.0373 * 1e9**0.155, alpha=0.465, beta=0.155
)


@dataclass(frozen=True)
class Case:
    """A truth and a grid: sizes within `reach` of a centre that moves to `drift` x the best."""

    truth: Surface
    reach: float
    drift: float


CASES = {"kling": Case(KLING.surface, 4.0, 1.0), "asymmetric": Case(ASYMMETRIC, 8.0, 3.0)}


@click.command()
@click.option("--sweeps", default=200, show_default=True, help="Sweeps of each case.")
@click.option("--resamples", default=300, show_default=True, help="Resamples of each fit.")
@click.option("--json", "as_json", is_flag=True, help="Shares as JSON instead of a table.")
def main(sweeps: int, resamples: int, as_json: bool) -> None:
    """Print the share of intervals that hold the truth."""
    with ProcessPoolExecutor() as pool:
        found = pool.map(partial(coverage, sweeps=sweeps, resamples=resamples), CASES.values())
        shares = dict(zip(CASES, found, strict=True))
    if as_json:
        print(json.dumps(shares))
        return
    print(f"# Planner: coverage of 90% intervals over {sweeps} simulated sweeps\n")
    print("| surface | interval | covers | mean error | mean half-width |\n|---|---|---|---|---|")
    for name, rows in shares.items():
        for what, row in rows.items():
            error = "" if row["error"] is None else f"{row['error']:+.4f}"
            print(f"| {name} | {what} | {row['covers']:.1%} | {error} | {row['half_width']:.4f} |")


def coverage(case: Case, sweeps: int, resamples: int) -> dict[str, dict[str, float | None]]:
    """For each number: share of intervals with the truth inside, mean error, mean half-width."""
    truth = {
        "surface exponent": case.truth.a,
        "isoFLOP exponent": case.truth.a,
        "N* at 1e22": math.log(case.truth.best_params(TARGET_FLOPS)),
        "loss at 1e22": math.log(_best_loss(case.truth)),
    }
    found: dict[str, list[Estimate]] = {name: [] for name in truth}
    full_width = []
    for sweep in simulated(case, sweeps):
        fit = fit_sweep(sweep, FitOptions(resamples=resamples))
        numbers = make_plan(fit, TARGET_FLOPS, force=True).numbers
        found["surface exponent"].append(fit.constants["huber"]["a"])
        found["N* at 1e22"].append(_log(numbers["params"].estimate))
        found["loss at 1e22"].append(_log(numbers["loss"].estimate))
        laws = fit.isoflop.laws
        if not isinstance(laws, NotFitted):
            found["isoFLOP exponent"].append(laws.size.exponent("C"))
            full_width.append(laws.exponents.get("full width"))
    rows: dict[str, dict[str, Any]] = {name: _row(found[name], truth[name]) for name in truth}
    known = [value for value in full_width if value is not None]
    if known:
        error = float(np.mean(known)) / case.truth.a - 1
        rows["parabola over all sizes, relative error"] = {
            "covers": 0.0, "error": error, "half_width": float(np.std(known)),
        }  # fmt: skip
    return rows


def simulated(case: Case, count: int) -> Iterator[Sweep]:
    """Sweeps of this case; the sizes are the same, the noise is new."""
    rng = np.random.default_rng(1)
    places = list(_grid(case))
    for index in range(count):
        runs = tuple(
            Run(
                row=row,
                run=f"run {row}",
                params=params,
                tokens=tokens,
                flops=6 * params * tokens,
                loss=case.truth.loss(params, tokens) + NOISE_NATS * float(rng.standard_normal()),
            )
            for row, (params, tokens) in enumerate(places, start=1)
        )
        yield Sweep(
            source=f"simulated {index}",
            folder=None,
            group=None,
            sha256="",
            rows=len(runs),
            runs=runs,
            stopped=(),
            rejections=(),
            accounting=Accounting(flops="6nd", params=None),
            noise=None,
            findings=(),
            settings=None,
        )


def _grid(case: Case) -> Iterator[tuple[float, float]]:
    for step, flops in enumerate(BUDGETS_FLOPS):
        drift = case.drift ** (step / (len(BUDGETS_FLOPS) - 1))
        centre = case.truth.best_params(flops) * drift
        for params in np.geomspace(centre / case.reach, centre * case.reach, SIZES):
            yield float(params), flops / 6 / float(params)


def _best_loss(truth: Surface) -> float:
    params = truth.best_params(TARGET_FLOPS)
    return truth.loss(params, TARGET_FLOPS / 6 / params)


def _log(estimate: Estimate) -> Estimate:
    assert estimate.low is not None and estimate.high is not None
    return Estimate(math.log(estimate.value), math.log(estimate.low), math.log(estimate.high))


def _row(estimates: list[Estimate], truth: float) -> dict[str, Any]:
    low, high = (np.array([getattr(each, side) for each in estimates]) for side in ("low", "high"))
    values = np.array([each.value for each in estimates])
    return {
        "covers": float(((low <= truth) & (truth <= high)).mean()),
        "error": float((values - truth).mean()),
        "half_width": float((high - low).mean() / 2),
    }


if __name__ == "__main__":
    main()
