"""`planner design` after a sweep: the next runs with their settings, grids to extend first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.designing.design_runs import spaced
from planner.designing.next_runs import (
    CAP,
    REACH,
    EdgeRun,
    NextRun,
    NextRuns,
    Per,
    candidate_runs,
    edge_runs,
    next_runs,
)
from planner.errors import InputError
from planner.findings import Finding
from planner.fitting.fit import Fit
from planner.fitting.hyper import Edge, Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import NotFitted

TARGET = 10.0  # times the largest run
GRID = 3


@dataclass(frozen=True)
class NextWish:
    """What the command line asks; None where the sweep itself is to say."""

    count: int
    target_flops: float | None
    cap_flops: float | None
    noise: float | None
    per: Per


@dataclass(frozen=True)
class NextSetting:
    """A next run; `lrs` is one rate where a law gives it, None where the table has none."""

    run: NextRun
    width: int | None
    lrs: tuple[float, ...] | None
    batch_tokens: float | None

    @property
    def flops(self) -> float:
        return self.run.flops * len(self.lrs or (1,))


@dataclass(frozen=True)
class NextAdvice:
    """What to run next, `edges` before `settings`; `findings` are of the advice, not of the fit."""

    fit: Fit
    target_flops: float
    cap_flops: float
    noise: float
    per: Per
    edges: tuple[EdgeRun, ...]
    found: NextRuns
    settings: tuple[NextSetting, ...]
    findings: tuple[Finding, ...]

    @property
    def trusted(self) -> bool:
        """Whether `planner fit` would not refuse these data whatever the target."""
        return not any(finding.refuses for finding in self.fit.findings)


def advise_next(fit: Fit, wish: NextWish) -> NextAdvice:
    """The next runs for a fitted sweep; `InputError` where it has no surface to improve."""
    if isinstance(fit.huber, NotFitted):
        wrong = [finding.text for finding in fit.sweep.findings if finding.refuses]
        first = f". First of all, {wrong[0]}" if wrong else ""
        raise InputError(
            f"{fit.sweep.source}: no loss surface to improve: {fit.huber.reason}. Design the sweep "
            f"anew: planner design --cost FLOPS --target FLOPS{first}"
        )
    target = TARGET * fit.largest_flops if wish.target_flops is None else wish.target_flops
    cap = min(CAP * fit.largest_flops, target) if wish.cap_flops is None else wish.cap_flops
    noise = fit.noise if wish.noise is None else wish.noise
    _check(fit, target, cap, noise)
    widths = _widths(fit)
    rungs = np.array(sorted(widths)) if widths else None
    surfaces = fit.huber.surfaces
    candidates = candidate_runs(surfaces, fit.frontier, fit.points, cap, rungs)
    if wish.count > len(candidates.params):
        raise InputError(
            f"--next {wish.count}: there are {len(candidates.params)} candidate runs up to "
            f"{cap:.3g} FLOPs; ask for fewer, or raise --budget-cap"
        )
    found = next_runs(
        surfaces, fit.frontier, fit.points.params, fit.points.tokens, noise, target, candidates,
        wish.count, wish.per,
    )  # fmt: skip
    edges = edge_runs(fit.groups)
    return NextAdvice(
        fit=fit,
        target_flops=target,
        cap_flops=cap,
        noise=noise,
        per=wish.per,
        edges=tuple(edges),
        found=found,
        settings=tuple(_setting(run, fit, widths) for run in found.runs),
        findings=tuple(_findings(found, edges, fit)),
    )


def _check(fit: Fit, target: float, cap: float, noise: float) -> None:
    smallest = float(fit.points.flops.min())
    if not fit.largest_flops < target < math.inf:
        raise InputError(
            f"--target {target:.3g} FLOPs is not above the largest budget of the sweep "
            f"({fit.largest_flops:.3g}): there `planner fit` already says what is best. Raise "
            "--target"
        )
    if not smallest < cap < math.inf:
        raise InputError(
            f"--budget-cap {cap:.3g} FLOPs leaves no run: the smallest tried cost {smallest:.3g}. "
            "Raise --budget-cap"
        )
    if not 0 < noise < math.inf:
        raise InputError(
            f"the noise of a loss is {noise:g}: the interval cannot shrink. Give the relative "
            "standard deviation between seeds with --noise, above 0"
        )


def _widths(fit: Fit) -> dict[float, int]:
    """The width of each size there is, empty for sweeps of other platforms."""
    if fit.base is None:
        return {}
    return {float(size.block_params): size.model.width for size in fit.base.ladder}


def _setting(run: NextRun, fit: Fit, widths: dict[float, int]) -> NextSetting:
    rate, batch = fit.hyper.lr, fit.hyper.batch_tokens
    nearest = _nearest(fit.groups, run)
    if isinstance(rate, HyperLaw):
        lrs: tuple[float, ...] | None = (rate.value(run.params, run.tokens),)
    else:
        best = nearest.grid.best.values[0] if nearest.grid.points else None
        lrs = None if best is None else spaced(best, GRID)
    return NextSetting(
        run=run,
        width=widths.get(run.params),
        lrs=lrs,
        batch_tokens=batch.value(run.params, run.tokens)
        if isinstance(batch, HyperLaw)
        else nearest.grid.best.values[1],
    )


def _nearest(groups: Sequence[Group], run: NextRun) -> Group:
    def distance(group: Group) -> float:
        ratios = (group.params / run.params, group.tokens / run.tokens)
        return math.hypot(*map(math.log, ratios))

    return min(groups, key=distance)


def with_grid(groups: Sequence[Group]) -> list[Group]:
    """The groups with enough settings to have an edge: the others say nothing of one."""
    return [group for group in groups if set(group.edges) != {Edge.DEGENERATE}]


def _findings(found: NextRuns, edges: Sequence[EdgeRun], fit: Fit) -> Iterator[Finding]:
    if edges:
        at_edge = len({(run.params, run.tokens) for run in edges})
        yield Finding(
            "edges_first",
            f"{at_edge} of {len(with_grid(fit.groups))} groups with a grid have their best setting "
            "at an edge of it, so that their losses are only upper bounds: extend those grids "
            "before anything else",
        )
    if found.collinear:
        yield Finding(
            "fixed_ratio_collinear",
            "tokens rise with the size as one power throughout, so that the terms of N and D are "
            f"collinear (condition number {found.condition:.2g}): the next runs leave that line, "
            f"up to {REACH:g}x off the best size of their budget",
        )
    if isinstance(fit.hyper.lr, NotFitted):
        known = any(point.lr for group in fit.groups for point in group.grid.points)
        grid = f"run a grid of {GRID} at each, about the best rate of the nearest group"
        yield Finding(
            "no_lr_law",
            f"no law of the learning rate ({fit.hyper.lr.reason}): "
            + (grid if known else "each run counts as one, at your best rate"),
        )
