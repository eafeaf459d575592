"""Learning rate and batch: what was tried in each (N, D), how it came out, where the best lies."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D

from planner import wording
from planner.fitting.fit import Fit
from planner.fitting.grid import BATCH, LR, Point
from planner.fitting.hyper import MIN_LEVELS, NAMES, Edge, Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import LEVEL, NotFitted
from planner.fitting.minimum import Parabola
from planner.fitting.quadratic import Quadratic
from planner.showing import drawing
from planner.showing.drawing import Drawing, Words, around, log_axis

MOST_MAPS = 24
MOST_PANELS = 12
COLUMNS = 4
WORST_REGRET = 0.05  # whatever is worse has one colour
HIGHEST = 1.25  # times a panel's best loss
CONTOURS = (0.001, 0.005, 0.02)
RADIUS = math.sqrt(4.605)  # of chi squared with two degrees of freedom, at LEVEL
WORDS = {LR: wording.scientific, BATCH: wording.count}


def swept(group: Group, axis: int) -> bool:
    return group.grid.tried(axis) >= MIN_LEVELS


def on_maps(fit: Fit) -> list[Group]:
    """Groups with a map of their own: both settings were swept; the largest `MOST_MAPS`."""
    both = [group for group in fit.groups if swept(group, LR) and swept(group, BATCH)]
    largest = sorted(both, key=lambda group: -group.flops)[:MOST_MAPS]
    return [group for group in both if group in largest]


def maps(fit: Fit) -> Drawing:
    """Learning rate x batch of each group, coloured by what a setting costs."""
    shown = on_maps(fit)
    figure, panels = drawing.panels(
        len(shown), COLUMNS, 1.6, gap_in=(0.5, 0.78), top_in=0.42, bottom_in=0.85, right_in=0.95
    )
    found = Drawing(
        "maps",
        "Learning rate and batch",
        "Each point is a setting that was tried, coloured by how much more loss it gives than the "
        f"best of its group. Crosses diverged. Star and ellipse: the optimum and its {LEVEL:.0%} "
        "region; thin rings: 0.1%, 0.5% and 2% more loss. Diamond: what the law says.",
        figure,
        least_px=780,
    )
    for axes, group in zip(panels, shown, strict=True):
        _map(found, axes, fit, group)
    lowest, leftmost = drawing.columns_of(panels)
    for axes in lowest:
        axes.set_xlabel("learning rate")
    for axes in leftmost:
        axes.set_ylabel("batch (tokens)")
    top = figure.get_figheight()
    drawing.colour_key(figure, _regret_norm(), "regret", wording.percent, (top - 1.95, top - 0.55))
    drawing.key(figure, _map_legend(fit, shown))
    return found


def curves(fit: Fit, axis: int) -> Drawing:
    """Loss over one setting where only that one was swept: a panel for each budget or size."""
    facets, colour_name = _facets(alone(fit, axis))
    figure, panels = drawing.panels(
        len(facets), COLUMNS, 1.9, gap_in=(0.5, 0.75), bottom_in=0.85, right_in=1.0
    )
    name = NAMES[axis]
    found = Drawing(
        "lr_curves" if axis == LR else "batch_curves",
        f"Loss over {name}",
        f"One line for each (N, D). Star: its interpolated best {name}. Hollow triangle: the best "
        "is the last one tried on that side, and so only a bound. Crosses on top diverged.",
        figure,
        least_px=780 if len(facets) > 2 else 520,
    )
    groups = [group for members in facets.values() for group in members]
    norm, _ = drawing.shades([_colour_value(group, colour_name) for group in groups])
    for axes, (title, members) in zip(panels, facets.items(), strict=True):
        axes.set_title(title)
        for group in members:
            shade = drawing.VIRIDIS(norm(_colour_value(group, colour_name)) * drawing.LIGHTEST)
            _curve(found, axes, group, axis, shade)
        _limits(axes, members, axis)
    lowest, leftmost = drawing.columns_of(panels)
    for axes in lowest:
        axes.set_xlabel(name)
    for axes in leftmost:
        axes.set_ylabel("loss")
    top = figure.get_figheight()
    drawing.colour_key(figure, norm, colour_name, wording.count, (top - 2.05, top - 0.5))
    drawing.key(figure, _curve_legend(name))
    return found


def alone(fit: Fit, axis: int) -> list[Group]:
    """Groups in which this setting was swept and the other one was not."""
    return [g for g in fit.groups if swept(g, axis) and not swept(g, 1 - axis)]


def _regret_norm() -> PowerNorm:
    # Near the best, a tenth of a per cent matters; at 3%, it does not.
    return PowerNorm(0.5, 0, WORST_REGRET, clip=True)


def _map(found: Drawing, axes: Axes, fit: Fit, group: Group) -> None:
    stable, best = group.grid.stable, group.grid.best_loss
    regrets = [loss / best - 1 for loss in group.grid.losses]
    colours = drawing.VIRIDIS(np.asarray(_regret_norm()(regrets)) * drawing.LIGHTEST)
    found.points(
        axes, [point.setting(LR) for point in stable], [point.setting(BATCH) for point in stable],
        [f"{tell(point)}, {wording.percent(r)} above the best"
         for point, r in zip(stable, regrets, strict=True)],
        c=colours, s=20,
    )  # fmt: skip
    diverged = [point for point in group.grid.points if point.loss is None]
    axes.plot(
        [point.setting(LR) for point in diverged], [point.setting(BATCH) for point in diverged],
        "x", color=drawing.VERMILION, ms=3.5, mew=0.9, alpha=0.8,
    )  # fmt: skip
    for axis, shown in ((LR, axes.xaxis), (BATCH, axes.yaxis)):
        tried = [point.setting(axis) for point in group.grid.points]
        log_axis(shown, *around(tried, 0.08), WORDS[axis], most=6 if axis else 4)
    if isinstance(group.curve, Quadratic):
        _optimum(axes, group, group.curve)
    _law(axes, fit, group)
    axes.set_title(_name(group), pad=13)
    text, good = _map_verdict(group)
    axes.text(
        0, 1.03, text, transform=axes.transAxes, fontsize=7,
        color=drawing.GREY if good else drawing.VERMILION,
    )  # fmt: skip


def tell(point: Point) -> str:
    """A setting and its loss."""
    parts = [] if point.lr is None else [f"lr {wording.scientific(point.lr)}"]
    if point.batch_tokens is not None:
        parts.append(f"batch {wording.count(point.batch_tokens)}")
    parts.append("diverged" if point.loss is None else f"loss {wording.loss(point.loss)}")
    return ", ".join(parts)


def _name(group: Group) -> str:
    return f"N {wording.count(group.params)}, D {wording.count(group.tokens)}"


def _map_verdict(group: Group) -> tuple[str, bool]:
    if group.lr is not None and group.batch_tokens is not None:
        lr, batch = wording.scientific(group.lr), wording.count(group.batch_tokens)
        return f"lr {lr}, batch {batch}", True
    off = [
        f"{name} at {edge.value} edge"
        for name, edge in zip(("lr", "batch"), group.edges, strict=True)
        if edge in (Edge.LOWER, Edge.UPPER)
    ]
    return "; ".join(off) or "no joint optimum", False


def _optimum(axes: Axes, group: Group, curve: Quadratic) -> None:
    """The region of the optimum, and rings of equal loss; drawn in logarithms as polygons."""
    for rise in CONTOURS:
        scale = math.sqrt(2 * rise * curve.y_star)
        _ring(axes, curve, np.linalg.inv(np.asarray(curve.hessian)), scale,
              color=drawing.GREY, lw=0.5, alpha=0.7)  # fmt: skip
    if group.lr is None or group.batch_tokens is None:
        return
    if group.noise:
        covariance = np.asarray(curve.unit_covariance)
        _ring(axes, curve, covariance, RADIUS * group.noise * curve.y_star,
              color=drawing.VERMILION, lw=1.3)  # fmt: skip
    axes.plot(group.lr, group.batch_tokens, "*", color=drawing.VERMILION, ms=8, mec="white",
              mew=0.6, zorder=5)  # fmt: skip


def _ring(axes: Axes, curve: Quadratic, shape: Any, radius: float, **style: Any) -> None:
    """{z : (z - vertex)' shape^-1 (z - vertex) = radius²}."""
    turn = np.linspace(0, 2 * math.pi, 49)
    root = np.linalg.cholesky(shape + 1e-15 * np.eye(2))
    z = np.asarray(curve.vertex)[:, None] + radius * root @ np.stack([np.cos(turn), np.sin(turn)])
    axes.plot(*np.exp(np.clip(z, -300, 300)), **style)


def _law(axes: Axes, fit: Fit, group: Group) -> None:
    lr, batch = fit.hyper.lr, fit.hyper.batch_tokens
    if not isinstance(lr, HyperLaw) or not isinstance(batch, HyperLaw):
        return
    place = lr.value(group.params, group.tokens), batch.value(group.params, group.tokens)
    axes.plot(*place, "D", mfc="none", mec=drawing.INK, ms=5, mew=1.1, zorder=4)


def _map_legend(fit: Fit, shown: Sequence[Group]) -> list[Any]:
    entries: list[Any] = [drawing.mark("o", "tried", color=drawing.VIRIDIS(0.4))]
    if any(point.loss is None for group in shown for point in group.grid.points):
        entries.append(drawing.mark("x", "diverged", color=drawing.VERMILION))
    if any(group.lr is not None for group in shown):
        entries.append(drawing.mark("*", "optimum", color=drawing.VERMILION, markersize=8))
        entries.append(
            Line2D([], [], color=drawing.VERMILION, lw=1.3, label=f"its {LEVEL:.0%} region")
        )
    if not isinstance(fit.hyper.lr, NotFitted) and not isinstance(
        fit.hyper.batch_tokens, NotFitted
    ):
        style = {"markerfacecolor": "none", "markeredgecolor": drawing.INK}
        entries.append(drawing.mark("D", "law", **style))
    return entries


def _facets(members: Sequence[Group]) -> tuple[dict[str, list[Group]], str]:
    """Groups by budget, else by what varies less, N or D; and what the colour then tells."""
    words: Words = drawing.shown_flops
    colour = "N"
    if all(group.budget_flops for group in members):
        parted = _parted(members, [group.budget_flops or 0 for group in members])
    else:
        by_size = _parted(members, [group.params for group in members])
        parted, words = _parted(members, [group.tokens for group in members]), _tokens_title
        if len(by_size) <= len(parted):
            parted, colour, words = by_size, "D", _size_title
    chosen = sorted(parted, key=lambda value: -len(parted[value]))[:MOST_PANELS]
    return {words(value): parted[value] for value in sorted(chosen)}, colour


def _size_title(params: float) -> str:
    return f"N {wording.count(params)}"


def _tokens_title(tokens: float) -> str:
    return f"D {wording.count(tokens)}"


def _parted(members: Sequence[Group], values: Sequence[float]) -> dict[float, list[Group]]:
    parted: dict[float, list[Group]] = defaultdict(list)
    for group, value in zip(members, values, strict=True):
        parted[float(f"{value:.2g}")].append(group)
    return dict(parted)


def _colour_value(group: Group, name: str) -> float:
    return group.params if name == "N" else group.tokens


def _curve(found: Drawing, axes: Axes, group: Group, axis: int, shade: Any) -> None:
    through = group.grid.slice_through_best(axis)
    x = [point.setting(axis) for point in through.stable]
    axes.plot(x, through.losses, "-", color=shade, lw=0.7, alpha=0.35)
    told = [f"{_name(group)}: {tell(point)}" for point in through.stable]
    found.points(axes, x, through.losses, told, c=[shade] * len(x), s=12)
    for point in through.points:
        if point.loss is None:
            axes.plot(point.setting(axis), 0.98, "x", color=shade, ms=4, mew=1,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    best, edge = group.optimum[axis], group.edges[axis]
    if best is not None and isinstance(group.curve, Parabola):
        window = np.geomspace(group.curve.x_low, group.curve.x_high, 24)
        axes.plot(window, [group.curve.at(float(value)) for value in window], color=shade, lw=1)
        axes.plot(best, group.curve.y_star, "*", color=shade, ms=8, mec="white", mew=0.5, zorder=5)
    elif edge in (Edge.LOWER, Edge.UPPER):
        marker = "<" if edge is Edge.LOWER else ">"
        axes.plot(group.grid.best.setting(axis), group.grid.best_loss, marker, mfc="white",
                  mec=shade, ms=6, mew=1.2, zorder=5)  # fmt: skip


def _limits(axes: Axes, members: Sequence[Group], axis: int) -> None:
    tried = [p.setting(axis) for g in members for p in g.grid.points if p.values[axis] is not None]
    log_axis(axes.xaxis, *around(tried, 0.08), WORDS[axis], most=4)
    losses = [loss for group in members for loss in group.grid.losses]
    best = max(group.grid.best_loss for group in members)
    low, high = around([min(losses), min(max(losses), best * HIGHEST)], 0.08)
    log_axis(axes.yaxis, low, high, wording.plain, most=5)


def _curve_legend(name: str) -> list[Any]:
    hollow = {"markerfacecolor": "white", "markeredgecolor": drawing.GREY, "markersize": 6}
    return [
        drawing.mark("o", "run", markersize=4),
        drawing.mark("*", f"interpolated best {name}", markersize=8),
        drawing.mark(">", "best is at this edge of the grid: a bound", **hollow),
        drawing.mark("x", "diverged"),
    ]
