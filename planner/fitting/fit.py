"""All stages of a fit in order: groups, points, surface, isoFLOP curves, hyperparameters, bands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.findings import Finding
from planner.fitting import bands, isoflop
from planner.fitting.bands import Resamples
from planner.fitting.base import Base, check_flops, frontier_of, read_base
from planner.fitting.estimators import SurfaceFit, fit_huber, fit_varpro
from planner.fitting.forecast import HoldOut, hold_out
from planner.fitting.frontier import Frontier
from planner.fitting.hyper import Group, groups
from planner.fitting.hyper_law import HyperLaws, fit_hyper_laws
from planner.fitting.isoflop import IsoFlop
from planner.fitting.judgement import judge
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import CONSTANTS, Floats, Points, Surfaces
from planner.fitting.transfer import Transfer, transfer
from planner.reading.records import Sweep


@dataclass(frozen=True)
class FitOptions:
    """How often runs are resampled for the intervals (0: no intervals), from which seed."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """Everything a sweep says; a law it cannot carry is a `NotFitted` with its reason.

    `constants` are E, A, B, alpha, beta and a of each estimator; `noise` is the relative standard
    deviation of one loss.
    """

    sweep: Sweep
    options: FitOptions
    base: Base | None
    groups: tuple[Group, ...]
    points: Points
    frontier: Frontier
    huber: SurfaceFit | NotFitted
    varpro: SurfaceFit | NotFitted
    resamples: Resamples | None
    constants: Mapping[str, Mapping[str, Estimate]]
    isoflop: IsoFlop
    hyper: HyperLaws
    transfer: Transfer | NotFitted
    forecast: HoldOut | NotFitted
    noise: float
    findings: tuple[Finding, ...]

    @property
    def largest_flops(self) -> float:
        return float(self.points.flops.max())

    @property
    def has_law_of_size(self) -> bool:
        """Whether anything says how N* moves with compute."""
        fitted = (self.huber, self.isoflop.laws)
        return not all(isinstance(law, NotFitted) for law in fitted)


def fit_sweep(sweep: Sweep, options: FitOptions = FitOptions()) -> Fit:
    """Fit every law the sweep can carry."""
    base = read_base(sweep)
    found = groups(sweep)
    points = points_of(found)
    frontier = frontier_of(base, points, sweep.accounting)
    huber, varpro = fit_huber(points), fit_varpro(points)
    surfaces = None if isinstance(huber, NotFitted) else huber.surfaces
    curves = isoflop.fit_isoflop(points, surfaces, frontier)
    resamples = _resamples(points, huber, varpro, curves, options)
    hyper = fit_hyper_laws(found, resamples=options.resamples, seed=options.seed)
    forecast = hold_out(points, curves, frontier)
    doubts = judge(points, huber, varpro, curves, found, hyper, forecast)
    off = check_flops(sweep, base) if base is not None else None
    return Fit(
        sweep=sweep,
        options=options,
        base=base,
        groups=tuple(found),
        points=points,
        frontier=frontier,
        huber=huber,
        varpro=varpro,
        resamples=resamples,
        constants=_constants(huber, varpro, resamples),
        isoflop=curves,
        hyper=hyper,
        transfer=transfer(found, resamples=options.resamples, seed=options.seed),
        forecast=forecast,
        noise=_noise(sweep, huber),
        findings=(*sweep.findings, *([off] if off else []), *doubts),
    )


def points_of(found: Sequence[Group]) -> Points:
    """One point a group; a run that fed several groups (checkpoints) makes them one cluster."""
    cluster_of: dict[str, int] = {}
    clusters = []
    for index, group in enumerate(found):
        names = [run.run for run in group.runs]
        cluster = next((cluster_of[name] for name in names if name in cluster_of), index)
        cluster_of.update(dict.fromkeys(names, cluster))
        clusters.append(cluster)
    return Points(
        params=_column([group.params for group in found]),
        tokens=_column([group.tokens for group in found]),
        flops=_column([group.budget_flops or group.flops for group in found]),
        loss=_column([group.loss for group in found]),
        bound=np.array([group.loss_is_bound for group in found], dtype=bool),
        cluster=np.array(clusters, dtype=np.int64),
        names=tuple(_name(group) for group in found),
    )


def _name(group: Group) -> str:
    rows = sorted(run.row for run in group.runs)
    listed = ", ".join(map(str, rows[:3])) + (f" and {len(rows) - 3} more" if rows[3:] else "")
    return f"row{'s' if rows[1:] else ''} {listed}"


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=float)


def _resamples(
    points: Points,
    huber: SurfaceFit | NotFitted,
    varpro: SurfaceFit | NotFitted,
    curves: IsoFlop,
    options: FitOptions,
) -> Resamples | None:
    if isinstance(huber, NotFitted) or isinstance(varpro, NotFitted):
        return None
    masks = isoflop.budget_masks(points)
    kept = {budget.flops: masks[budget.flops] for budget in curves.budgets}
    return bands.resample(points, huber, varpro, kept, options.resamples, options.seed)


def _constants(
    huber: SurfaceFit | NotFitted, varpro: SurfaceFit | NotFitted, resamples: Resamples | None
) -> dict[str, dict[str, Estimate]]:
    """Each constant's interval: resampling and left-out budgets; of `a` also the estimators."""
    if resamples is None or isinstance(huber, NotFitted) or isinstance(varpro, NotFitted):
        return {}
    return {
        "huber": _banded(resamples.huber, resamples, spread=True),
        "varpro": _banded(resamples.varpro, resamples, spread=False),
    }


def _banded(surfaces: Surfaces, resamples: Resamples, spread: bool) -> dict[str, Estimate]:
    values = surfaces.constants()
    banded = {
        name: _not_negative(bands.band(values[name], resamples.stretch, bands.Spread({})))
        for name in CONSTANTS
    }
    known = (
        bands.spread_of(resamples, lambda each: each.constants()["a"])
        if spread
        else bands.Spread({})
    )
    return banded | {"a": bands.band(values["a"], resamples.stretch, known)}


def _not_negative(estimate: Estimate) -> Estimate:
    """Every constant of the surface is zero or more; a stretched interval may not reach below."""
    return estimate if estimate.low is None else replace(estimate, low=max(estimate.low, 0.0))


def _noise(sweep: Sweep, huber: SurfaceFit | NotFitted) -> float:
    """The stated noise of a loss, or the scatter about the surface if that is larger."""
    scatter = 0.0 if isinstance(huber, NotFitted) else huber.residual_sd
    return max(sweep.noise or 0.0, scatter)
