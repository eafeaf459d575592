"""`planner design` before a sweep: the design to run, how well confirmed, what else there is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.designing.comparison import Comparison, compare
from planner.designing.design import (
    TUNED_SIZES,
    Design,
    Problem,
    Tuning,
    catalogue,
    shapes,
)
from planner.designing.design_runs import Setting, settings
from planner.designing.information import factor
from planner.designing.prior import Prior
from planner.designing.simulation import Simulation, simulate
from planner.errors import InputError
from planner.findings import Finding
from planner.fitting.base import Base
from planner.fitting.frontier import six_nd
from planner.planning.distrust import MAX_EXTRAPOLATION
from planner.wording import many, percent, scientific, scientific_enough

CONFIRMED = 1.25  # a design whose simulated interval is wider than predicted by more is passed over
SHOWN, SIMULATED = 5, 3
LARGEST_PARAMS = 1e15
FEW_STEPS = 100
INTERIOR = 3  # learning rates without which there is no inside of the grid


@dataclass(frozen=True)
class Wish:
    """What the command line asks: N* at the target within `precision` times or divided by.

    `smallest_params` is the least size worth training, where no ladder says; so many `sweeps` are
    simulated.
    """

    cost_flops: float
    target_flops: float
    precision: float
    noise: float
    budgets: tuple[int, int]
    decades: float
    smallest_params: float
    tuning: Tuning
    sweeps: int
    seed: int


@dataclass(frozen=True)
class Advice:
    """The chosen design with its runs; `tried` are the best few, simulated or (None) not.

    `needed_flops` is the least cost that reaches the precision, None where none below the target
    does.
    """

    wish: Wish
    problem: Problem
    base: Base | None
    chosen: Design
    simulated: Simulation
    tried: tuple[tuple[Design, Simulation | None], ...]
    settings: tuple[Setting, ...]
    comparison: Comparison
    needed_flops: float | None
    findings: tuple[Finding, ...]

    @property
    def reached(self) -> bool:
        precise = self.simulated.half_params <= math.log(self.wish.precision)
        return precise and self.extrapolation <= MAX_EXTRAPOLATION

    @property
    def extrapolation(self) -> float:
        return self.wish.target_flops / self.chosen.largest_flops


def advise(wish: Wish, prior: Prior, base: Base | None) -> Advice:
    """Choose, confirm by simulation, compare; `InputError` where no design can be had."""
    _check(wish, base)
    problem = _problem(wish, prior, base)
    offered = catalogue(problem, shapes(wish.budgets, wish.decades))
    best = offered.best(wish.cost_flops, SHOWN)
    simulated = [simulate(problem, each, wish.sweeps, wish.seed) for each in best[:SIMULATED]]
    at = _confirmed(best, simulated)
    chosen, seen = best[at], simulated[at]
    # What the prediction was off by here, it will be off by at other costs too.
    half = math.log(wish.precision) * chosen.half_params / seen.half_params
    needed = offered.least_cost(half)
    comparison = compare(problem, chosen)
    unconfirmed = seen.half_params > CONFIRMED * chosen.half_params
    return Advice(
        wish=wish,
        problem=problem,
        base=base,
        chosen=chosen,
        simulated=seen,
        tried=tuple(
            (each, simulated[i] if i < len(simulated) else None) for i, each in enumerate(best)
        ),
        settings=tuple(settings(chosen, problem, base)),
        comparison=comparison,
        needed_flops=needed if math.isfinite(needed) else None,
        findings=(
            *_doubts(wish, chosen, offered.least_cost(math.inf), unconfirmed),
            *_short_runs(chosen, prior, base),
            *_lessons(comparison),
        ),
    )


def _check(wish: Wish, base: Base | None) -> None:
    if base is not None and wish.tuning.batches > 1:
        raise InputError(
            f"--batches {wish.tuning.batches}: jobs/sweep.py holds the batch of its config; give "
            "--batches 1 with a [base], or leave --spec out"
        )


def _problem(wish: Wish, prior: Prior, base: Base | None) -> Problem:
    if base is None:
        frontier = six_nd(wish.smallest_params, LARGEST_PARAMS)
        rungs = None
    else:
        frontier = base.frontier()
        rungs = np.array([float(size.block_params) for size in base.ladder])
    return Problem(prior, frontier, rungs, wish.target_flops, wish.noise, wish.tuning)


def _confirmed(best: list[Design], simulated: list[Simulation]) -> int:
    """The first design that simulation does not contradict, or the first of all."""
    pairs = zip(best, simulated, strict=False)
    agree = [seen.half_params <= CONFIRMED * each.half_params for each, seen in pairs]
    return agree.index(True) if True in agree else 0


def _doubts(wish: Wish, chosen: Design, least: float, unconfirmed: bool) -> Iterator[Finding]:
    """What the reader must know of the chosen design itself."""
    ratio = wish.target_flops / chosen.largest_flops
    if ratio > MAX_EXTRAPOLATION:
        way_out = (
            f"the least cost of a design within it is {scientific_enough(least)} FLOPs"
            if math.isfinite(least)
            else "no design here comes within it"
        )
        yield Finding(
            "beyond_extrapolation",
            f"the target is {ratio:,.0f}x the largest budget that the cost pays for; `planner "
            f"fit` plans up to {MAX_EXTRAPOLATION:.0f}x, and no simulation knows whether the law "
            f"still holds so far out. Lower --target or raise --cost: {way_out}",
        )
    if wish.cost_flops > wish.target_flops:
        yield Finding(
            "costs_more_than_target",
            f"--cost {scientific(wish.cost_flops)} is more than the target run's "
            f"{scientific(wish.target_flops)} FLOPs",
        )
    if unconfirmed:
        yield Finding(
            "not_confirmed",
            f"simulated sweeps spread more than {CONFIRMED - 1:.0%} beyond the prediction: the "
            "losses are too noisy for this design. Repeat runs, or raise --cost",
        )
    if wish.tuning.lrs < INTERIOR:
        yield Finding(
            "few_lrs",
            f"{wish.tuning.lrs} learning rates an (N, D): an optimum inside the grid needs "
            f"{INTERIOR}, and a loss at an edge is only an upper bound. Raise --lrs, and save with "
            "--mup if need be",
        )


def _short_runs(chosen: Design, prior: Prior, base: Base | None) -> Iterator[Finding]:
    """Runs of a few steps, by the prior's batch or that of the config."""
    if base is not None:
        batches = [float(base.packs_per_step * base.pack_tokens)] * len(chosen.params)
    elif prior.batch_tokens is not None:
        points = zip(chosen.params.tolist(), chosen.tokens.tolist(), strict=True)
        batches = [prior.batch_tokens.value(n, d) for n, d in points]
    else:
        return
    steps = chosen.tokens / np.array(batches)
    short = int((steps < FEW_STEPS).sum())
    if short:
        yield Finding(
            "short_runs",
            f"{short} of {len(steps)} (N, D) train for fewer than {FEW_STEPS} steps (the shortest "
            f"for {steps.min():.0f}): such runs hardly leave the warm-up. Use a smaller batch, or "
            "raise --cost",
        )


def _lessons(found: Comparison) -> Iterator[Finding]:
    """What the comparisons show, said only where it is so."""
    plain, wider, denser = found.plain, found.wider, found.denser
    if plain and wider and denser and found.width_wins is not None:
        told = (
            f"at the same cost, one more decade of budgets ({plain.shape.decades:g} to "
            f"{wider.shape.decades:g}) narrows N* at the target from {_factor(plain)} to "
            f"{_factor(wider)}; {denser.shape.sizes} sizes a budget for {plain.shape.sizes} narrow "
            f"it to {_factor(denser)}"
        )
        if found.width_wins:
            yield Finding("wider_beats_more", f"a wider budget range beats more points: {told}")
        else:
            yield Finding("more_beats_wider", f"more points beat a wider budget range: {told}")
    fixed = found.fixed_ratio
    yield Finding(
        "fixed_ratio_collinear",
        f"holding tokens per parameter fixed (here at {fixed.tokens[0] / fixed.params[0]:.3g}) "
        f"makes the terms of N and D collinear: condition number {fixed.condition:.2g}; N* for "
        f"the same cost: {_factor(fixed)}",
    )


def _factor(design: Design) -> str:
    return words_of_factor(design.half_params)


def words_of_factor(half: float) -> str:
    """Half of an interval of ln N* in words."""
    value = factor(half)
    if value >= 1e3:
        return "no bound at all"
    return f"x/÷{value:.3f}" if value < 2 else f"x/÷{value:.3g}"


def assumptions(advice: Advice) -> list[str]:
    """What the numbers rest on, in sentences."""
    problem, tuning = advice.problem, advice.problem.tuning
    grid = f"{tuning.lrs} learning rates x {many(tuning.batches, 'batch', 'batches')}"
    told = [
        f"The law is {problem.prior.name} ({problem.prior.source}), exact in form; the FLOPs are "
        f"counted as {problem.frontier.source}.",
        f"One loss an (N, D), at its best setting, with a relative noise of "
        f"{percent(problem.noise)}: as noisy as one run.",
    ]
    if tuning.mup:
        told.append(
            f"muP: {grid} at the {TUNED_SIZES} smallest sizes of each budget; the other sizes run "
            "once, at the best setting found there. It holds only where the best learning rate "
            "does not move with width (`planner fit` judges that)."
        )
    else:
        told.append(f"Every (N, D) runs {grid}; with --mup only the smallest sizes would.")
    return told
