"""What compute buys: best size, tokens and loss over FLOPs, by the surface and by the minima."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from planner import wording
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.fitting.isoflop import ComputeLaws
from planner.fitting.laws import LEVEL, Estimate, NotFitted
from planner.fitting.surface import Floats
from planner.planning.plan import Plan
from planner.planning.target import best_size, loss_at
from planner.showing import drawing
from planner.showing.drawing import Drawing, around, log_axis

COMPUTE_POINTS = 12
WIDEST = 8.0  # a band wider than this factor is cut, or it would flatten the law
QUANTITIES = {"params": "best size N*", "tokens": "best tokens D*", "loss": "loss L*"}


def speaks(fit: Fit) -> bool:
    """Whether any law of compute was fitted."""
    return fit.resamples is not None or not isinstance(fit.isoflop.laws, NotFitted)


def laws(fit: Fit, plans: Sequence[Plan]) -> Drawing:
    """N*(C), D*(C) and L*(C): minima, both laws with bands, the planned targets."""
    figure, panels = drawing.panels(3, 3, 2.7, gap_in=(0.72, 0.6), top_in=0.35, bottom_in=0.95)
    found = Drawing(
        "laws",
        "Best size, tokens and loss over compute",
        _caption(fit, plans),
        figure,
        least_px=760,
    )
    compute = _compute_grid(fit, plans)
    along = _along(fit, compute)
    for axes, (name, title) in zip(panels, QUANTITIES.items(), strict=True):
        axes.set_title(title)
        seen = _planning_law(axes, compute, along.get(name, []))
        seen += _isoflop_law(axes, fit.isoflop.laws, name, compute)
        seen += _minima(found, axes, fit, name) + _held_out(axes, fit, name)
        seen += [v for plan in plans for v in _target(axes, plan, name)]
        log_axis(axes.xaxis, *around(compute, 0.05), wording.scientific, most=5)
        words = wording.plain if name == "loss" else wording.count
        log_axis(axes.yaxis, *around([v for v in seen if v > 0]), words, most=6)
        axes.set_xlabel("FLOPs")
    drawing.key(figure, _legend(fit, plans))
    return found


def _caption(fit: Fit, plans: Sequence[Plan]) -> str:
    parts = [
        f"Blue: the law that plans follow, with its {LEVEL:.0%} interval; that of the loss holds "
        "the noise of one run."
    ]
    if not isinstance(fit.isoflop.laws, NotFitted):
        parts.append(
            "Points: minima of the budgets. Dashed: laws through these alone; where the two part, "
            "so do forecasts."
        )
    if isinstance(fit.forecast, HoldOut):
        parts.append("Square: the largest budget's loss, forecast without it.")
    return " ".join([*parts, "Diamonds: the plans."] if plans else parts)


def _compute_grid(fit: Fit, plans: Sequence[Plan]) -> Floats:
    targets = [plan.target_flops for plan in plans] or [10 * fit.largest_flops]
    ends = [float(fit.points.flops.min()), fit.largest_flops, *targets]
    return np.geomspace(min(ends), max(ends), COMPUTE_POINTS)


def _along(fit: Fit, compute: Floats) -> dict[str, list[Estimate]]:
    """N*, D* and L* at each compute, as a plan there would have them."""
    found: dict[str, list[Estimate]] = {name: [] for name in QUANTITIES}
    for flops in map(float, compute):
        best = best_size(fit, flops)
        if isinstance(best, NotFitted):
            return {}
        size = best.params
        tokens = _over_ends(size, partial(fit.frontier.tokens, budget_flops=flops))
        found["params"].append(size)
        found["tokens"].append(tokens)
        found["loss"].append(loss_at(fit, best, size.value, tokens.value))
    return found


def _over_ends(size: Estimate, quantity: Callable[[float], float]) -> Estimate:
    """What follows from a size, between its values at the ends of the size's interval."""
    value = quantity(size.value)
    if size.low is None or size.high is None:
        return Estimate(value, unknown=size.unknown)
    ends = sorted((quantity(size.low), quantity(size.high)))
    return Estimate(value, min(value, ends[0]), max(value, ends[1]))


def _planning_law(axes: Axes, compute: Floats, estimates: list[Estimate]) -> list[float]:
    if not estimates:
        return []
    values = np.array([estimate.value for estimate in estimates])
    low, high = np.array([_ends(estimate) for estimate in estimates]).T
    axes.plot(compute, values, "-", color=drawing.BLUE, lw=1.4)
    axes.fill_between(compute, low, high, color=drawing.BLUE, alpha=0.16, lw=0)
    seen = [*values, *np.maximum(low, values / WIDEST), *np.minimum(high, values * WIDEST)]
    return [float(value) for value in seen]


def _isoflop_law(
    axes: Axes, found: ComputeLaws | NotFitted, name: str, compute: Floats
) -> list[float]:
    if isinstance(found, NotFitted):
        return []
    law = {"params": found.size, "tokens": found.tokens, "loss": found.loss}[name]
    values = [law.value(C=float(flops)) for flops in compute]
    axes.plot(compute, values, "--", color=drawing.INK, lw=1, dashes=(4, 2.5))
    return values


def _minima(found: Drawing, axes: Axes, fit: Fit, name: str) -> list[float]:
    optima = fit.isoflop.optima
    if not optima:
        return []
    values = [float(getattr(optimum, name)) for _, optimum in optima]
    said = [
        f"{drawing.shown_flops(flops)}: N* {wording.count(best.params)}, "
        f"D* {wording.count(best.tokens)}, loss {wording.loss(best.loss)}"
        for flops, best in optima
    ]
    found.points(axes, [flops for flops, _ in optima], values, said, c=drawing.INK, s=18)
    return values


def _held_out(axes: Axes, fit: Fit, name: str) -> list[float]:
    if name != "loss" or isinstance(fit.forecast, NotFitted):
        return []
    held = fit.forecast
    axes.plot(
        held.held_out_flops, held.predicted, "s", mfc="none", mec=drawing.VERMILION, ms=7, mew=1.1,
        zorder=4,
    )  # fmt: skip
    return [held.predicted]


def _target(axes: Axes, plan: Plan, name: str) -> list[float]:
    if name not in plan.numbers:
        return []
    estimate = plan.numbers[name].estimate
    flops, low, high = plan.target_flops, *_ends(estimate)
    axes.plot([flops, flops], [low, high], "-", color=drawing.ORANGE, lw=2.2, alpha=0.8, zorder=4)
    axes.plot(
        flops, estimate.value, "D", color=drawing.ORANGE, mec=drawing.INK, mew=0.6, ms=5, zorder=5
    )
    return [estimate.value, max(low, estimate.value / WIDEST), min(high, estimate.value * WIDEST)]


def _ends(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _legend(fit: Fit, plans: Sequence[Plan]) -> list[Any]:
    entries: list[Any] = []
    if fit.isoflop.optima:
        entries.append(drawing.mark("o", "minimum of a budget", color=drawing.INK, markersize=4))
    entries.append(Line2D([], [], color=drawing.BLUE, lw=1.4, label="law that plans follow"))
    if not isinstance(fit.isoflop.laws, NotFitted):
        entries.append(
            Line2D([], [], color=drawing.INK, lw=1, dashes=(4, 2.5), label="law through the minima")
        )
    if isinstance(fit.forecast, HoldOut):
        style = {"markerfacecolor": "none", "markeredgecolor": drawing.VERMILION}
        entries.append(drawing.mark("s", "forecast without that budget", **style))
    if plans:
        entries.append(drawing.mark("D", "plan", color=drawing.ORANGE))
    return entries
