"""The loss surface against what was observed: curves with bands, and residuals."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from planner import wording
from planner.fitting.bands import QUANTILES
from planner.fitting.estimators import SurfaceFit
from planner.fitting.fit import Fit
from planner.fitting.judgement import OUTLIER_SDS
from planner.fitting.laws import LEVEL
from planner.fitting.surface import Floats
from planner.showing import drawing
from planner.showing.drawing import Drawing, around, clean, log_axis

CURVE_POINTS = 48
MOST_SIZES = 40
REACH = 1.25  # curves go this much beyond the first and last of their points


@dataclass(frozen=True)
class Family:
    """Points that one curve goes through: one budget's, or one size's. `x` is what varies."""

    value: float
    members: list[int]
    params: Floats
    tokens: Floats


def surface(fit: Fit, huber: SurfaceFit) -> Drawing:
    """Loss over size, one curve a budget; or over tokens, one curve a size."""
    by_budget = _budgets(fit)
    of_budgets = sum(len(family.members) for family in by_budget) >= len(fit.points) / 2
    families = by_budget if of_budgets else _sizes(fit)
    figure, (axes,) = drawing.panels(1, 1, 3.9, right_in=1.05, top_in=0.2, bottom_in=0.8)
    what = "budget" if of_budgets else "size"
    found = Drawing(
        "surface",
        f"Loss surface, one curve for each {what}",
        f"Points: the best loss of each (N, D). Lines: the surface fitted to all of them at once; "
        f"bands: its {LEVEL:.0%} interval by resampling. Points off their line are what it misses.",
        figure,
    )
    colour_of = fit.points.flops if of_budgets else fit.points.params
    norm, _ = drawing.shades([*colour_of, *(family.value for family in families)])
    for family in families:
        x = family.params if of_budgets else family.tokens
        shade = drawing.VIRIDIS(norm(family.value) * drawing.LIGHTEST)
        _curve(axes, fit, huber, family, x, shade)
    _points(found, axes, fit, of_budgets, norm)
    x = fit.points.params if of_budgets else fit.points.tokens
    log_axis(axes.xaxis, *around(x), wording.count, most=9)
    log_axis(axes.yaxis, *around(fit.points.loss), wording.plain, most=8)
    axes.set_xlabel("parameters N" if of_budgets else "tokens D")
    axes.set_ylabel("loss")
    label, words = ("FLOPs", wording.scientific) if of_budgets else ("N", wording.count)
    drawing.colour_key(figure, norm, label, words, (0.8, 4.2))
    drawing.key(figure, _legend(fit))
    return found


def residuals(fit: Fit, huber: SurfaceFit) -> Drawing:
    """How far each loss lies off the surface, over N, D and the loss predicted."""
    figure, panels = drawing.panels(3, 3, 2.3, right_in=1.05, gap_in=(0.3, 0.6), bottom_in=0.85)
    found = Drawing(
        "residuals",
        "What the surface misses",
        "Observed over predicted loss, minus one. A trend along an axis means that the form does "
        f"not hold there. Grey: two standard deviations, {wording.percent(2 * huber.residual_sd)}; "
        f"ringed: outliers, beyond {OUTLIER_SDS:.0f}.",
        figure,
        least_px=720,
    )
    points = fit.points
    predicted = points.loss / np.exp(huber.residuals)
    norm, colours = drawing.shades(points.flops)
    for axes, x, label, words in zip(
        panels,
        (points.params, points.tokens, predicted),
        ("parameters N", "tokens D", "predicted loss"),
        (wording.count, wording.count, wording.plain),
        strict=True,
    ):
        _residual_panel(found, axes, fit, huber, x, colours)
        log_axis(axes.xaxis, *around(x), words, most=5)
        axes.set_xlabel(label)
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)
    panels[0].set_ylabel("residual")
    drawing.colour_key(figure, norm, "FLOPs", wording.scientific, (0.85, 2.8))
    drawing.key(figure, _residual_legend())
    return found


def tips(fit: Fit, members: Iterable[int] | None = None) -> list[str]:
    """What to tell about each point."""
    points = fit.points
    return [
        f"{clean(points.names[i])}: N {wording.count(points.params[i])}, "
        f"D {wording.count(points.tokens[i])}, {drawing.shown_flops(points.flops[i])}, loss "
        f"{wording.loss(points.loss[i])}" + (" (an upper bound)" if points.bound[i] else "")
        for i in (range(len(points)) if members is None else members)
    ]


def band(samples: Floats, stretch: float) -> tuple[Floats, Floats]:
    """The interval of each column of `samples` (row 0 the estimate) by resampling."""
    estimate, drawn = samples[0], samples[1:]
    low, high = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), QUANTILES, axis=0)
    below, above = np.maximum(estimate - low, 0), np.maximum(high - estimate, 0)
    return estimate - below * stretch, estimate + above * stretch


def _budgets(fit: Fit) -> list[Family]:
    families = []
    for budget in fit.isoflop.budgets:
        params = np.geomspace(budget.params[0] / REACH, budget.params[-1] * REACH, CURVE_POINTS)
        tokens = budget.flops / fit.frontier.flops_per_token(params)
        families.append(Family(budget.flops, list(budget.points), params, tokens))
    return families


def _sizes(fit: Fit) -> list[Family]:
    """One family for each size with several token counts; beyond `MOST_SIZES` none at all."""
    rounded = np.round(np.log(fit.points.params), 2)
    families = []
    for size in np.unique(rounded):
        members = np.flatnonzero(rounded == size)
        value = float(np.exp(np.mean(np.log(fit.points.params[members]))))
        seen = fit.points.tokens[members]
        tokens = np.geomspace(seen.min() / REACH, seen.max() * REACH, CURVE_POINTS)
        families.append(Family(value, members.tolist(), np.full(CURVE_POINTS, value), tokens))
    return families if len(families) <= MOST_SIZES else []


def _curve(axes: Axes, fit: Fit, huber: SurfaceFit, family: Family, x: Floats, shade: Any) -> None:
    line = np.exp(huber.surfaces.log_loss(family.params, family.tokens)[0])
    axes.plot(x, line, "-", color=shade, lw=1)
    if fit.resamples is None or fit.resamples.count < 20:
        return
    samples = fit.resamples.huber.log_loss(family.params, family.tokens)
    low, high = band(samples, fit.resamples.stretch)
    axes.fill_between(x, np.exp(low), np.exp(high), color=shade, alpha=0.18, lw=0)


def _points(found: Drawing, axes: Axes, fit: Fit, of_budgets: bool, norm: Any) -> None:
    points = fit.points
    x = points.params if of_budgets else points.tokens
    values = points.flops if of_budgets else points.params
    colours = drawing.VIRIDIS(np.asarray(norm(values)) * drawing.LIGHTEST)
    for bound, marker in ((False, "o"), (True, "v")):
        members = np.flatnonzero(points.bound == bound)
        if len(members):
            found.points(
                axes, x[members], points.loss[members], tips(fit, members),
                c=colours[members], marker=marker, s=15 if not bound else 20,
            )  # fmt: skip


def _legend(fit: Fit) -> list[Any]:
    entries: list[Any] = [drawing.mark("o", "loss at the best settings tried")]
    if fit.points.bound.any():
        entries.append(drawing.mark("v", "upper bound: best setting at the grid's edge"))
    entries.append(Line2D([], [], color=drawing.GREY, lw=1, label="surface"))
    if fit.resamples is not None and fit.resamples.count:
        entries.append(Patch(color=drawing.GREY, alpha=0.25, lw=0, label=f"{LEVEL:.0%} band"))
    return entries


def _residual_panel(
    found: Drawing, axes: Axes, fit: Fit, huber: SurfaceFit, x: Floats, colours: Any
) -> None:
    sd = huber.residual_sd
    off = np.expm1(huber.residuals)
    axes.axhspan(-2 * sd, 2 * sd, color=drawing.FAINT, alpha=0.35, lw=0)
    axes.axhline(0, color=drawing.GREY, lw=0.8)
    said = [
        f"{tip}, {wording.percent(share, signed=True)} off"
        for tip, share in zip(tips(fit), off, strict=True)
    ]
    found.points(axes, x, off, said, c=colours, s=13)
    far = np.abs(huber.residuals) > OUTLIER_SDS * max(sd, 1e-6)
    axes.scatter(x[far], off[far], s=46, facecolors="none", edgecolors=drawing.VERMILION, lw=1)
    limit = max(float(np.abs(off).max()), 3 * sd, 1e-6) * 1.1
    axes.set_ylim(-limit, limit)
    drawing.percent_axis(axes.yaxis)


def _residual_legend() -> list[Any]:
    outlier = {"markerfacecolor": "none", "markeredgecolor": drawing.VERMILION, "markersize": 7}
    return [
        drawing.mark("o", "one (N, D)"),
        Patch(color=drawing.FAINT, alpha=0.5, lw=0, label="two standard deviations"),
        drawing.mark("o", "outlier", **outlier),
    ]
