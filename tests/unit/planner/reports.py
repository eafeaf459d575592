"""Fits with plans for figures and reports: one with everything, one that carries no plan."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from planner.findings import Finding
from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.surface import Surface
from planner.planning.plan import Plan, make_plan
from planner.reading.records import Accounting, Rejection, Run, Stopped, Sweep
from planner.showing.report import write_report

TRUTH = Surface(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
BUDGETS = (1e18, 5e18, 2e19, 1e20)
SPREAD = (0.4, 1.0, 2.5)
RATES = tuple(1e-3 * 2.0**power for power in range(-2, 3))
BATCHES = tuple(2.5e5 * 2.0**power for power in range(-1, 2))
HOSTILE = "<script>alert('run')</script> & \"$x^2$\" \x00\x1b\ud800 https://evil.example/x.js"
OPTIONS = FitOptions(resamples=40)
COMMAND = "planner report 'runs of <b>&.csv' --where 'loss<4'"

Fitted = tuple[Fit, list[Plan]]


def best_lr(params: float) -> float:
    return 1e-3 * (params / 1e9) ** -0.1


def _runs(budget: float, share: float, noise: np.random.Generator) -> Iterator[Run]:
    """All learning rates of one (N, D); in the middle of each curve all batches as well."""
    params = TRUTH.best_params(budget) * share
    tokens = budget / (6 * params)
    for lr in RATES:
        for batch in BATCHES if share == 1 else BATCHES[1:2]:
            off = math.log(lr / best_lr(params)) ** 2 + 0.5 * math.log(batch / 2.5e5) ** 2
            loss = TRUTH.loss(params, tokens) * (1 + 0.01 * off)
            yield Run(
                row=0,
                run="",
                params=params,
                tokens=tokens,
                flops=budget,
                loss=loss * math.exp(0.001 * noise.standard_normal()),
                budget_flops=budget,
                lr=lr,
                batch_tokens=batch,
                width=round((params / 12) ** (1 / 3)),
            )


def full_sweep(group: str | None = None, name: str = HOSTILE) -> Sweep:
    """Budgets, sizes, learning rates and batches; a rejected row, a diverged run, a finding."""
    noise = np.random.default_rng(0)
    made = [run for c in BUDGETS for share in SPREAD for run in _runs(c, share, noise)]
    runs = tuple(replace(run, row=i + 2, run=f"{name} {i}") for i, run in enumerate(made))
    first = runs[0]
    stopped = Stopped(
        900, f"{name} hot", "diverged", first.params, first.tokens, None, BUDGETS[0], 8e-3, 2.5e5
    )
    return Sweep(
        source=f"runs of {name}.csv",
        folder=None,
        group=group,
        sha256="0123456789abcdef" * 4,
        rows=len(runs) + 2,
        runs=runs,
        stopped=(stopped,),
        rejections=(Rejection(901, f"loss is {name!r}, not a number"),),
        accounting=Accounting("6nd", f"all of them, {name}"),
        noise=None,
        findings=(Finding("made_up", f"a finding about {name}"),),
        settings=None,
    )


def fitted(sweep: Sweep, targets: tuple[float, ...] = (1e21, 1e23)) -> Fitted:
    fit = fit_sweep(sweep, OPTIONS)
    return fit, [make_plan(fit, flops) for flops in targets]


@cache
def full() -> Fitted:
    """The first target is planned, the second one lies too far and is refused."""
    return fitted(full_sweep("base"))


@cache
def one_size(group: str | None = None) -> Fitted:
    """A grid of learning rate and batch at one size: no law of size, so no plan."""
    whole = full_sweep(group, name="run")
    one = TRUTH.best_params(BUDGETS[-1])
    runs = tuple(run for run in whole.runs if math.isclose(run.params, one))
    fit = fit_sweep(replace(whole, runs=runs, stopped=(), rows=len(runs), rejections=()), OPTIONS)
    return fit, []


@cache
def written() -> tuple[Path, tuple[Path, ...]]:
    """A folder with a report of both, the name of the second group leading out of it."""
    folder = Path(_outer().name) / "deep" / "report"
    return folder, tuple(write_report([full(), one_size(f"../../{HOSTILE}")], folder, COMMAND))


@cache
def _outer() -> TemporaryDirectory[str]:
    """It goes when the tests end."""
    return TemporaryDirectory()
