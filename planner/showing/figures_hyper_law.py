"""The laws of learning rate and batch through the groups' optima, and whether width moves them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from planner import wording
from planner.fitting.bands import QUANTILES, Z
from planner.fitting.fit import Fit
from planner.fitting.grid import BATCH, LR
from planner.fitting.group_law import GroupLaw
from planner.fitting.hyper import NAMES, Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import LEVEL, NotFitted
from planner.planning.plan import Plan
from planner.showing import drawing
from planner.showing.drawing import Drawing, Values, around, log_axis

CURVE_POINTS = 24
WORDS = {LR: wording.scientific, BATCH: wording.count}
PLANNED = {LR: "lr", BATCH: "batch_tokens"}
LETTERS = {"params": "N", "tokens": "D"}

Variances = Sequence[float | None]


@dataclass(frozen=True)
class View:
    """One panel: the law of the setting on `axis` over N or D, the other one held at `middle`."""

    axis: int
    law: HyperLaw
    over: str
    middle: float

    @property
    def other(self) -> str:
        return "tokens" if self.over == "params" else "params"

    def place(self, x: float) -> dict[str, float]:
        return {self.over: x, self.other: self.middle}

    def moved(self, value: float, params: float, tokens: float) -> float:
        """The value as the law would have it if the other variable were at `middle`."""
        own = {"params": params, "tokens": tokens}
        return value * self.law.value(**{**own, self.other: self.middle}) / self.law.value(**own)


def shown(fit: Fit) -> list[View]:
    """A panel for each law there is, over each of its variables."""
    both = {LR: fit.hyper.lr, BATCH: fit.hyper.batch_tokens}
    return [
        _view(fit, axis, law, over)
        for axis, law in both.items()
        if not isinstance(law, NotFitted)
        for over in law.law.variables
    ]


def _view(fit: Fit, axis: int, law: HyperLaw, over: str) -> View:
    other = "tokens" if over == "params" else "params"
    optima = [group for group in fit.groups if group.optimum[axis] is not None]
    middle = float(np.mean([math.log(getattr(group, other)) for group in optima]))
    return View(axis, law, over, math.exp(middle))


def laws(fit: Fit, plans: Sequence[Plan]) -> Drawing:
    """Each law over N and over D, the optima moved along it to where the other one is equal."""
    views = shown(fit)
    figure, panels = drawing.panels(
        len(views), 2, 2.3, right_in=1.0, gap_in=(0.85, 0.75), bottom_in=0.95
    )
    found = Drawing(
        "hyper_laws",
        "Best settings over N and D",
        f"Points: interior optima, with {LEVEL:.0%} intervals where their grid tells one. Each is "
        "moved along the law to the N or D that the title names, so that the line can go through "
        "all of them. Triangles are bounds from grids whose best is at an edge; the law was not "
        "fitted to them. Diamonds: the plans.",
        figure,
        least_px=620,
    )
    for axes, view in zip(panels, views, strict=True):
        _panel(found, axes, fit, view, plans)
    drawing.key(figure, _legend(fit, plans))
    return found


def transfer(fit: Fit, law: GroupLaw) -> Drawing:
    """The best learning rate over width: what muP promises to be flat."""
    figure, (axes,) = drawing.panels(1, 2, 2.3, right_in=0.3, bottom_in=0.95)
    optima = [group for group in fit.groups if group.width is not None and group.lr is not None]
    widths = np.array([float(group.width or 0) for group in optima])
    tokens = np.array([group.tokens for group in optima])
    middle = math.exp(float(np.log(tokens).mean()))
    held = "tokens" in law.variables
    found = Drawing(
        "transfer",
        "The best learning rate over width",
        f"Interior optima over width{' at equal tokens' if held else ''}, with the law and its "
        f"{LEVEL:.0%} band. muP promises a flat line.",
        figure,
        least_px=420,
    )
    shift = [
        law.value(width=width, tokens=middle) / law.value(width=width, tokens=own)
        for width, own in zip(widths, tokens, strict=True)
    ]
    values = np.array([group.lr or 0 for group in optima]) * shift
    grid = np.geomspace(widths.min(), widths.max(), CURVE_POINTS)
    _law_line(axes, grid, [{"width": float(w), "tokens": middle} for w in grid], law)
    variances = [group.variance(LR) for group in optima]
    _bars(axes, widths, values, variances)
    said = [f"{tell(group)}, width {group.width}" for group in optima]
    found.points(axes, widths, values, said, c=drawing.INK, s=18)
    log_axis(axes.xaxis, *around(widths), wording.whole, most=5)
    log_axis(axes.yaxis, *around(_bar_ends(values, variances), 0.1), wording.scientific, most=6)
    at = f" at D = {wording.count(middle)}" if held else ""
    axes.set_title(f"best learning rate{at}")
    axes.set_xlabel("width")
    drawing.key(figure, _legend(fit, ())[:3])
    return found


def tell(group: Group) -> str:
    """A group and its optimum."""
    parts = [f"N {wording.count(group.params)}", f"D {wording.count(group.tokens)}"]
    if group.lr is not None:
        parts.append(f"best lr {wording.scientific(group.lr)}")
    if group.batch_tokens is not None:
        parts.append(f"best batch {wording.count(group.batch_tokens)}")
    return ", ".join(parts)


def _panel(found: Drawing, axes: Axes, fit: Fit, view: View, plans: Sequence[Plan]) -> None:
    optima = [group for group in fit.groups if group.optimum[view.axis] is not None]
    x = [float(getattr(group, view.over)) for group in optima]
    y = [view.moved(g.optimum[view.axis] or 0, g.params, g.tokens) for g in optima]
    variances = [group.variance(view.axis) for group in optima]
    planned, bounds = _planned(plans, view), _bounds(fit, view)
    ends = [*x, *(place for place, _ in planned), *(place for place, _, _ in bounds)]
    grid = np.geomspace(min(ends), max(ends), CURVE_POINTS)
    line = _law_line(axes, grid, [view.place(float(v)) for v in grid], view.law.law)
    for place, value, marker in bounds:
        axes.plot(place, value, marker, mfc="none", mec=drawing.GREY, ms=5, mew=0.8)
    _bars(axes, x, y, variances)
    found.points(axes, x, y, [tell(group) for group in optima], c=drawing.INK, s=18)
    for place, value in planned:
        axes.plot(place, value, "D", color=drawing.ORANGE, mec=drawing.INK, mew=0.6, ms=5)
    seen = [*_bar_ends(y, variances), *line, *(v for _, v in planned), *(v for _, v, _ in bounds)]
    log_axis(axes.xaxis, *around(ends), wording.count, most=6)
    log_axis(axes.yaxis, *around(seen, 0.1), WORDS[view.axis], most=6)
    held = f" at {LETTERS[view.other]} = {wording.count(view.middle)}"
    axes.set_title(f"best {NAMES[view.axis]}{held if view.other in view.law.law.variables else ''}")
    axes.set_xlabel(f"{view.over.replace('params', 'parameters')} {LETTERS[view.over]}")


def _planned(plans: Sequence[Plan], view: View) -> list[tuple[float, float]]:
    needed = ("params", "tokens", PLANNED[view.axis])
    found = []
    for plan in plans:
        if all(name in plan.numbers for name in needed):
            params, tokens, value = (plan.numbers[name].estimate.value for name in needed)
            x = params if view.over == "params" else tokens
            found.append((x, view.moved(value, params, tokens)))
    return found


def _bounds(fit: Fit, view: View) -> list[tuple[float, float, str]]:
    """Censored optima: at or above (triangle up) or at or below (down) the value."""
    return [
        (getattr(group, view.over), view.moved(value, group.params, group.tokens), marker)
        for group in fit.groups
        for value, marker in zip(group.bounds[view.axis], "^v", strict=True)
        if value is not None
    ]


def _law_line(axes: Axes, x: Values, at: Sequence[dict[str, float]], law: GroupLaw) -> list[float]:
    line = [law.value(**place) for place in at]
    axes.plot(x, line, "-", color=drawing.BLUE, lw=1.4)
    samples = [law.resampled(**place) for place in at]
    known = [each for each in samples if each is not None]
    if len(known) == len(samples):
        low, high = np.percentile(np.stack(known), QUANTILES, axis=1)
        axes.fill_between(x, low, high, color=drawing.BLUE, alpha=0.16, lw=0)
    return line


def _bars(axes: Axes, x: Values, y: Values, variances: Variances) -> None:
    for place, value, variance in zip(x, y, variances, strict=True):
        spread = _spread(variance)
        axes.plot([place] * 2, [value / spread, value * spread], "-", color=drawing.PALE, lw=1)


def _bar_ends(y: Values, variances: Variances) -> list[float]:
    """What of the bars must be seen: a very wide one says no more than that it is wide."""
    spreads = [min(_spread(variance), 1.6) for variance in variances]
    pairs = list(zip(y, spreads, strict=True))
    return [*(value / spread for value, spread in pairs), *(v * spread for v, spread in pairs)]


def _spread(variance: float | None) -> float:
    return 1.0 if variance is None else math.exp(min(Z * math.sqrt(variance), 5.0))


def _legend(fit: Fit, plans: Sequence[Plan]) -> list[Any]:
    entries: list[Any] = [
        drawing.mark("o", "interior optimum", color=drawing.INK, markersize=4),
        Line2D([], [], color=drawing.BLUE, lw=1.4, label="law"),
        Patch(color=drawing.BLUE, alpha=0.2, lw=0, label=f"{LEVEL:.0%} band"),
    ]
    if any(bound != (None, None) for group in fit.groups for bound in group.bounds):
        style = {"markerfacecolor": "none", "markeredgecolor": drawing.GREY}
        entries.append(drawing.mark("^", "best lies above", **style))
        entries.append(drawing.mark("v", "best lies below", **style))
    if plans:
        entries.append(drawing.mark("D", "plan", color=drawing.ORANGE))
    return entries
