"""The figures of a fit, for papers: PNG and SVG, readable in grey and by the colour-blind.

`isoflop`: loss over size for each budget. `laws`: what the laws say over compute, with the band
that one more observation would fall into, and the targets.
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from planner.fit import Fit
from planner.hyper import Cell, LearningRateLaw
from planner.isoflop import Budget, ComputeLaws, Optimum, minima_half_width
from planner.laws import LEVEL, Estimate, NotFitted
from planner.plan import Forecast, ForecastOnly, Outcome, Plan
from planner.results import write_bytes

DPI = 200
CURVE_POINTS = 80
SHORT_AXIS_DECADES = 1.5  # below it, powers of ten alone leave an axis without labels
DODGE = 1.25  # cells of one budget are spread over this ratio, so that none hides another
# Okabe and Ito's palette for single series; viridis, dark to light, for ordered ones.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"
STYLE: Any = {  # Any: matplotlib types the keys as one literal after the other
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "scalewright",  # equal input, equal bytes
    "svg.fonttype": "none",
}


def write_figures(fit: Fit, outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write `isoflop` and, where there are laws, `laws`; returns the paths."""
    with matplotlib.rc_context(STYLE):
        figures = {"isoflop": _isoflop(fit)}
        if not isinstance(fit.compute, NotFitted):
            figures["laws"] = _laws(fit, fit.compute, outcomes)
        return [path for name, figure in figures.items() for path in _save(figure, folder / name)]


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        path = stem.with_suffix(f".{kind}")
        write_bytes(path, content.getvalue())
        paths.append(path)
        figure.set_layout_engine("none")  # laid out once; both files share the positions
    return paths


def _isoflop(fit: Fit) -> Figure:
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    half_width = minima_half_width(fit.budgets)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(fit.budgets)))
    for budget, shade in zip(fit.budgets, shades, strict=True):
        _curve(axes, budget, shade, half_width)
    axes.set(xscale="log", xlabel="block parameters $N$", ylabel="validation loss")
    _few_ticks(axes)
    colours = [Line2D([], [], color=shade, lw=3) for shade in shades]
    figure.legend(
        colours[::-1],
        [_power_of_ten(budget.budget_flops) for budget in reversed(fit.budgets)],
        loc="outside right center",
        title="budget (FLOPs)",
    )
    figure.legend(
        handles=_isoflop_key(fit.budgets, half_width), loc="outside lower center", ncols=2
    )
    return figure


def _isoflop_key(budgets: Sequence[Budget], half_width: float | None) -> list[Line2D]:
    """Only the marks that the figure holds."""
    bounds = any(budget.upper_bounds for budget in budgets)
    edges = any(budget.optimum is None for budget in budgets)
    minima = any(budget.optimum is not None for budget in budgets)
    interval = "" if half_width is None else f" and its {LEVEL:.0%} interval"
    key = [_mark("o", "loss at the best learning rate", GREY)]
    key += [_mark("v", "upper bound: no interior learning rate", GREY)] if bounds else []
    key += [_mark("*", f"minimum{interval}", GREY, 9)] if minima else []
    key += [_mark("o", "best size at the edge: no minimum", "white", 8)] if edges else []
    return key


def _mark(marker: str, label: str, face: Any, size: float = 4, color: Any = GREY) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=color, mfc=face, ms=size, label=label)


def _curve(axes: Axes, budget: Budget, shade: Any, half_width: float | None) -> None:
    """Points of one budget, its parabola over the window it was fitted to, and its minimum."""
    sizes = [cell.block_params for cell in budget.cells]
    axes.plot(sizes, [cell.loss for cell in budget.cells], ":", color=shade, lw=0.8)
    for cell in budget.cells:
        marker = "o" if cell.interior else "v"
        axes.plot(cell.block_params, cell.loss, marker, color=shade, ms=4, mew=0)
    optimum = budget.optimum
    if optimum is None:
        best = budget.best
        axes.plot(best.block_params, best.loss, "o", color=shade, mfc="white", ms=8, mew=1.2)
        return
    parabola = optimum.parabola
    grid = np.geomspace(parabola.x_low, parabola.x_high, CURVE_POINTS)
    axes.plot(grid, [parabola.at(float(size)) for size in grid], "-", color=shade, lw=1.2)
    axes.plot(optimum.block_params, optimum.loss, "*", color=shade, ms=10, mec="white", mew=0.6)
    if half_width is not None:
        low, high = _minimum_interval(optimum, half_width)
        axes.plot([low, high], [optimum.loss] * 2, "-", color=shade, lw=3, alpha=0.5)


def _minimum_interval(optimum: Optimum, half_width: float) -> tuple[float, float]:
    """Where N* lies given the noise of the losses, cut to the window that was fitted."""
    parabola = optimum.parabola
    spread = math.exp(min(half_width * parabola.unit_se_ln_x, 50.0))
    low, high = optimum.block_params / spread, optimum.block_params * spread
    return max(low, parabola.x_low), min(high, parabola.x_high)


def _laws(fit: Fit, laws: ComputeLaws, outcomes: Sequence[Outcome]) -> Figure:
    figure = Figure(figsize=(6.6, 5.0), layout="constrained")
    size, tokens, rate, loss = figure.subplots(2, 2, sharex=True).flat
    forecasts = [o.forecast for o in outcomes if isinstance(o, Plan | ForecastOnly)]
    C = _compute_grid(laws, forecasts)
    optima = [budget.optimum for budget in fit.budgets if budget.optimum is not None]
    _law(size, C, lambda c: laws.size.predict(C=c))
    _law(tokens, C, lambda c: laws.tokens.predict(C=c))
    _law(loss, C, lambda c: laws.loss.predict(C=c))
    size.plot(laws.budgets_flops, [o.block_params for o in optima], "o", color="black", ms=4)
    tokens.plot(laws.budgets_flops, [o.tokens for o in optima], "o", color="black", ms=4)
    loss.plot(laws.budgets_flops, [o.loss for o in optima], "o", color="black", ms=4)
    _rate_panel(rate, fit, laws, C)
    for forecast in forecasts:
        _target(size, forecast, forecast.block_params)
        _target(tokens, forecast, forecast.tokens)
        _target(loss, forecast, forecast.loss)
        _target(rate, forecast, forecast.lr_peak)
    size.set_ylabel("best size $N^*$ (block parameters)")
    tokens.set_ylabel("best tokens $D^*$ (visual tokens)")
    rate.set(ylabel="best peak learning rate (base width)", xlabel="compute $C$ (FLOPs)")
    loss.set(ylabel="validation loss", xlabel="compute $C$ (FLOPs)")
    for axes in (size, tokens, rate, loss):
        _few_ticks(axes)
    loss.yaxis.set_major_locator(MaxNLocator(nbins=5))
    loss.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    figure.align_ylabels()
    figure.legend(handles=_laws_key(laws, bool(forecasts)), loc="outside lower center", ncols=4)
    return figure


def _laws_key(laws: ComputeLaws, targets: bool) -> list[Line2D]:
    key = [_mark("o", "minimum of a budget", "black", color="black")]
    key.append(Line2D([], [], color=BLUE, lw=1.2, label="law"))
    if laws.size.residual_sd is not None:
        band = f"{LEVEL:.0%}: one more observation"
        key.append(Line2D([], [], color=BLUE, lw=6, alpha=0.15, label=band))
    if targets:
        key.append(_mark("D", "target", VERMILION, color=VERMILION))
    return key


def _compute_grid(laws: ComputeLaws, forecasts: Sequence[Forecast]) -> list[float]:
    ends = [*laws.budgets_flops, *(forecast.target_flops for forecast in forecasts)]
    return [float(c) for c in np.geomspace(min(ends) / 1.5, max(ends) * 1.5, CURVE_POINTS)]


def _law(
    axes: Axes, C: Sequence[float], law: Callable[[float], Estimate], seen: Sequence[float] = ()
) -> None:
    """The law with its band, on logarithmic axes that show the law and the values `seen`."""
    estimates = [law(c) for c in C]
    values = [estimate.value for estimate in estimates]
    axes.set(xscale="log", yscale="log")
    axes.plot(C, values, "-", color=BLUE, lw=1.2)
    bands = [(e.low, e.high) for e in estimates if e.low is not None and e.high is not None]
    low, high = zip(*bands, strict=True) if bands else (values, values)
    if bands:
        axes.fill_between(C, low, high, color=BLUE, alpha=0.15, lw=0)
    # A band of one degree of freedom must not squeeze the law into a flat line.
    bottom, top = min(*values, *seen), max(*values, *seen)
    room = math.sqrt(top / bottom)
    bottom, top = max(min(*low, bottom), bottom / room), min(max(*high, top), top * room)
    margin = (top / bottom) ** 0.05
    axes.set_ylim(bottom / margin, top * margin)


def _target(axes: Axes, forecast: Forecast, estimate: Estimate | NotFitted) -> None:
    flops = forecast.target_flops
    axes.axvline(flops, color=VERMILION, lw=0.8, ls="--")
    if isinstance(estimate, NotFitted):
        return
    axes.plot(flops, estimate.value, "D", color=VERMILION, ms=4, zorder=4)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([flops] * 2, [estimate.low, estimate.high], "-", color=VERMILION, lw=1.6)


def _rate_panel(axes: Axes, fit: Fit, laws: ComputeLaws, C: Sequence[float]) -> None:
    """Optima of all cells, shaded by size, and the law along N*(C), D*(C)."""
    axes.set(xscale="log", yscale="log")
    rate = fit.learning_rate
    if isinstance(rate, LearningRateLaw):
        seen = [cell.lr or cell.best.lr for cell in fit.cells]
        _law(axes, C, lambda c: _rate_at(rate, laws, c), seen)
    sizes = sorted({cell.block_params for cell in fit.cells})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(sizes)))
    for cell in fit.cells:
        marker, face = _rate_marker(cell)
        shade = shades[sizes.index(cell.block_params)]
        place = sizes.index(cell.block_params) / max(len(sizes) - 1, 1) - 0.5
        axes.plot(
            cell.budget_flops * DODGE**place,
            cell.lr or cell.best.lr,
            marker,
            color=shade,
            mfc=shade if face else "none",
            ms=4,
            mew=0.8,
        )
    key = [
        _mark("o", f"N = {_power_of_ten(sizes[i])}", shades[i], color=shades[i])
        for i in sorted({0, len(sizes) - 1})
    ]
    seen_marks = {_rate_marker(cell)[0] for cell in fit.cells}
    for marker, label in (("^", "highest tried is best"), ("v", "lowest tried is best")):
        key += [_mark(marker, f"censored: {label}", "none")] if marker in seen_marks else []
    key += [_mark("s", "not resolved", "none")] if "s" in seen_marks else []
    axes.legend(handles=key, loc="best")


def _rate_marker(cell: Cell) -> tuple[str, bool]:
    """Marker and whether it is filled: hollow ones are bounds, pointing to where lr* may lie."""
    if cell.interior:
        return "o", True
    if cell.lr_high is None and cell.lr_low is not None:
        return "^", False
    if cell.lr_low is None and cell.lr_high is not None:
        return "v", False
    return "s", False


def _rate_at(rate: LearningRateLaw, laws: ComputeLaws, C: float) -> Estimate:
    return rate.law.predict(**rate.variables(laws.size.value(C=C), laws.tokens.value(C=C)))


def _few_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() != "log":
            continue
        axis.set_minor_formatter(NullFormatter())
        if math.log10(high / low) < SHORT_AXIS_DECADES:
            narrow = math.log10(high / low) < SHORT_AXIS_DECADES / 2
            axis.set_major_locator(
                LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if narrow else (1, 2, 5))
            )
            axis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
        else:
            axis.set_major_locator(LogLocator(numticks=6))


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa.removesuffix('.0')}\times10^{{{int(exponent)}}}$"
