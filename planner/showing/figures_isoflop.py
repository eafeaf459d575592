"""The isoFLOP curves: one panel a budget, with what finds its best size, and the verdict."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.interpolate import Akima1DInterpolator

from planner import wording
from planner.fitting.fit import Fit
from planner.fitting.isoflop import Budget, Optimum, minima_half_width
from planner.fitting.laws import LEVEL, NotFitted
from planner.fitting.surface import Floats
from planner.showing import drawing
from planner.showing.drawing import Drawing, around, log_axis
from planner.showing.figures_surface import REACH, band, tips

CURVE_POINTS = 60
COLUMNS = 4
HIGHEST = 1.3  # times a budget's best loss: what lies above would flatten its minimum


def curves(fit: Fit) -> Drawing:
    """One panel a budget: points, parabola over its window, Akima, surface, verdict."""
    budgets = fit.isoflop.budgets
    figure, panels = drawing.panels(
        len(budgets), COLUMNS, 1.45, gap_in=(0.5, 0.78), top_in=0.42, bottom_in=0.85
    )
    found = Drawing(
        "isoflop",
        "isoFLOP curves",
        _caption(fit),
        figure,
        least_px=760,
    )
    half_width = minima_half_width(budgets)
    for axes, budget in zip(panels, budgets, strict=True):
        _panel(found, axes, fit, budget, half_width)
    lowest, leftmost = drawing.columns_of(panels)
    for axes in lowest:
        axes.set_xlabel("parameters N")
    for axes in leftmost:
        axes.set_ylabel("loss")
    drawing.key(figure, _curve_legend(fit, half_width))
    return found


def _caption(fit: Fit) -> str:
    parts = ["Loss over size at one cost."]
    if not isinstance(fit.huber, NotFitted):
        parts.append("Grey: the surface, fitted to all budgets.")
    if fit.isoflop.optima:
        parts.append(
            "Blue: parabola over the window it was fitted to; dashed: Akima's interpolation. Star: "
            "the parabola's minimum. Only interior minima feed the laws of compute."
        )
    return " ".join(parts)


def _panel(found: Drawing, axes: Axes, fit: Fit, budget: Budget, half_width: float | None) -> None:
    shade = drawing.BLUE
    params, loss = np.array(budget.params), np.array(budget.loss)
    _surface_line(axes, fit, budget)
    members = list(budget.points)
    bound = fit.points.bound[members]
    for is_bound, marker in ((False, "o"), (True, "v")):
        part = bound == is_bound
        if part.any():
            chosen = [member for member, kept in zip(members, part, strict=True) if kept]
            found.points(axes, params[part], loss[part], tips(fit, chosen),
                         c=drawing.INK, marker=marker, s=14)  # fmt: skip
    if budget.optimum is not None:
        _akima(axes, params, loss)
        _minimum(axes, budget.optimum, half_width, shade)
    _limits(axes, budget)
    good = budget.optimum is not None
    axes.set_title(drawing.shown_flops(budget.flops), pad=13)
    axes.text(
        0, 1.03, _verdict(budget), transform=axes.transAxes, fontsize=7,
        color=drawing.GREY if good else drawing.VERMILION,
    )  # fmt: skip


def _verdict(budget: Budget) -> str:
    if budget.optimum is None:
        return budget.verdict
    return f"interior, N* = {wording.count(budget.optimum.params)}"


def _surface_line(axes: Axes, fit: Fit, budget: Budget) -> None:
    if isinstance(fit.huber, NotFitted):
        return
    params = np.geomspace(budget.params[0] / REACH, budget.params[-1] * REACH, CURVE_POINTS)
    # Along the tokens of these very runs: a frontier of other FLOPs would shift the curve.
    tokens = np.exp(np.interp(np.log(params), np.log(budget.params), np.log(budget.tokens)))
    tokens = _beyond(params, tokens, budget)
    line = np.exp(fit.huber.surfaces.log_loss(params, tokens)[0])
    axes.plot(params, line, color=drawing.PALE, lw=1)
    if fit.resamples is not None and fit.resamples.count >= 20:
        low, high = band(fit.resamples.huber.log_loss(params, tokens), fit.resamples.stretch)
        axes.fill_between(params, np.exp(low), np.exp(high), color=drawing.PALE, alpha=0.25, lw=0)


def _beyond(params: Floats, tokens: Floats, budget: Budget) -> Floats:
    """Outside of the runs' sizes tokens go on as C / N does."""
    low, high = budget.params[0], budget.params[-1]
    return tokens * np.where(params < low, low / params, np.where(params > high, high / params, 1))


def _akima(axes: Axes, params: Floats, loss: Floats) -> None:
    """Where its minimum is looked for: between the neighbours of the best size."""
    ln_params, best = np.log(params), int(np.argmin(loss))
    grid = np.linspace(ln_params[best - 1], ln_params[best + 1], CURVE_POINTS)
    axes.plot(
        np.exp(grid), Akima1DInterpolator(ln_params, loss)(grid), color=drawing.GREEN, lw=1.3,
        dashes=(1.5, 1.2), zorder=3,
    )  # fmt: skip


def _minimum(axes: Axes, optimum: Optimum, half_width: float | None, shade: str) -> None:
    parabola = optimum.parabola
    grid = np.geomspace(parabola.x_low, parabola.x_high, CURVE_POINTS)
    axes.plot(grid, [parabola.at(float(size)) for size in grid], "-", color=shade, lw=1.3)
    if half_width is not None:
        spread = math.exp(min(half_width * parabola.unit_se_ln_x, 50.0))
        ends = (
            max(optimum.params / spread, parabola.x_low),
            min(optimum.params * spread, parabola.x_high),
        )
        axes.plot(ends, [optimum.loss] * 2, "-", color=drawing.VERMILION, lw=3, alpha=0.45)
    axes.plot(
        optimum.params, optimum.loss, "*", color=drawing.VERMILION, ms=9, mec="white", mew=0.6,
        zorder=5,
    )  # fmt: skip


def _limits(axes: Axes, budget: Budget) -> None:
    low, worst = min(*budget.loss, budget.best_loss), max(budget.loss)
    high = min(worst, low * HIGHEST)
    room = max((high - low) * 0.1, low * 1e-4)
    axes.set_ylim(low - room, high + room)
    drawing.linear_axis(axes.yaxis, 4)
    log_axis(axes.xaxis, *around(budget.params, 0.08), wording.count, most=4)
    above = sum(value > high for value in budget.loss)
    if above:
        axes.text(
            1, 1.03, f"{above} above", transform=axes.transAxes, fontsize=7, color=drawing.GREY,
            ha="right",
        )  # fmt: skip


def _curve_legend(fit: Fit, half_width: float | None) -> list[Any]:
    optima = any(budget.optimum is not None for budget in fit.isoflop.budgets)
    entries: list[Any] = [drawing.mark("o", "loss", color=drawing.INK, markersize=4)]
    if any(budget.upper_bounds for budget in fit.isoflop.budgets):
        entries.append(drawing.mark("v", "upper bound", color=drawing.INK))
    if optima:
        akima: Any = {"color": drawing.GREEN, "lw": 1.3, "dashes": (1.5, 1.2)}
        entries.append(Line2D([], [], label="Akima", **akima))
    if not isinstance(fit.huber, NotFitted):
        entries.append(Line2D([], [], color=drawing.PALE, lw=1, label="surface"))
    if optima:
        entries.append(Line2D([], [], color=drawing.BLUE, lw=1.3, label="parabola"))
        interval = "" if half_width is None else f", {LEVEL:.0%} interval"
        entries.append(
            drawing.mark("*", f"minimum{interval}", color=drawing.VERMILION, markersize=8)
        )
    return entries
