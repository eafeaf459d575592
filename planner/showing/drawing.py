"""What every figure shares: its style, its panels, its axes, and how it becomes PNG and SVG.

Readable in grey and by the colour-blind: single series in Okabe and Ito's palette, ordered ones in
viridis, and no meaning in colour alone. Text stays text in the SVG, and equal input gives equal
bytes.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from planner import wording
from planner.fitting.surface import Floats
from planner.showing import inline_svg

DPI, CSS_DPI = 150, 96
WIDTH_IN, LEAST_IN = 9.6, 5.2  # of a figure
LEFT_IN = 0.72
INK, GREY, PALE, FAINT = "#1c2330", "#6b7280", "#9aa1ad", "#c8ccd4"
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
VIRIDIS = matplotlib.colormaps["viridis"].resampled(256)
LIGHTEST = 0.88  # of viridis; its end is too pale on white
NARROW = 4.0  # over less than this factor, ticks in equal steps are easier to read
DIGITS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 2, 4), (1, 3), (2, 5), (1,))

STYLE: Any = {  # Any: matplotlib types the keys as one literal after the other
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": "#9aa1ad",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e8eaee",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "scalewright",
    "svg.fonttype": "none",
}

Words = Callable[[float], str]
Values = Sequence[float] | Floats
Span = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A figure, and what a page says of it: `least_px` is the width below which it is scrolled.

    `tips` are texts for the points of a scatter, by the id of its group in the SVG.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    least_px: int = 640
    tips: dict[str, list[str]] = field(default_factory=dict)

    @property
    def widths_px(self) -> tuple[int, int]:
        """From which width on it is scrolled, and up to which it grows on a page."""
        natural = round(self.figure.get_figwidth() * CSS_DPI)
        return min(self.least_px, natural), natural

    def points(
        self, axes: Axes, x: Values, y: Values, tips: list[str], **style: Any
    ) -> PathCollection:
        """A scatter of points that each tell something when pointed at."""
        if isinstance(style["c"], str):
            # One colour for all would leave out points beyond the axes, and their tips would slip.
            style["c"] = [style["c"]] * len(tips)
        drawn = axes.scatter(x, y, **{"s": 16, "linewidths": 0, "zorder": 3, **style})
        name = f"points{len(self.tips)}"
        drawn.set_gid(name)
        self.tips[name] = tips
        return drawn


@dataclass(frozen=True)
class Rendered:
    """A drawing as two files, and as the element for a page."""

    drawing: Drawing
    png: bytes
    svg: bytes
    inline: str


def render(drawing: Drawing, prefix: str) -> Rendered:
    """Draw it; `prefix` keeps the ids of several drawings on one page apart."""
    figure = drawing.figure
    files = {}
    for kind, behind, metadata in (
        ("png", "white", {"Software": None}),
        ("svg", "none", {"Date": None, "Creator": None}),
    ):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata, facecolor=behind)
        files[kind] = content.getvalue()
    label = f"{drawing.title}. {drawing.caption}"
    inline = inline_svg.for_page(files["svg"], f"{prefix}{drawing.name}-", label, drawing.tips)
    return Rendered(drawing, files["png"], files["svg"], inline)


def panels(
    count: int,
    columns: int,
    panel_height_in: float,
    *,
    right_in: float = 0.15,
    gap_in: tuple[float, float] = (0.62, 0.62),
    top_in: float = 0.3,
    bottom_in: float = 0.55,
) -> tuple[Figure, list[Axes]]:
    """`count` panels of one size, row by row; margins in inches, so that nothing is cut.

    Laid out by hand: matplotlib's own layout of 24 panels takes seconds. Fewer panels than
    `columns` make a narrower figure.
    """
    width = (WIDTH_IN - LEFT_IN - right_in - (columns - 1) * gap_in[0]) / columns
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    height = top_in + bottom_in + rows * panel_height_in + (rows - 1) * gap_in[1]
    margins = LEFT_IN + right_in + (columns - 1) * gap_in[0]
    whole = max(margins + columns * width, LEAST_IN)
    width = (whole - margins) / columns
    figure = Figure(figsize=(whole, height))
    grid = figure.add_gridspec(
        rows, columns,
        left=LEFT_IN / whole, right=1 - right_in / whole,
        top=1 - top_in / height, bottom=bottom_in / height,
        wspace=gap_in[0] / width, hspace=gap_in[1] / panel_height_in,
    )  # fmt: skip
    return figure, [figure.add_subplot(grid[i // columns, i % columns]) for i in range(count)]


def columns_of(panels: Sequence[Axes]) -> tuple[list[Axes], list[Axes]]:
    """The panels with nothing below them, and those with nothing to their left."""
    columns = max(_column(axes) for axes in panels) + 1
    return list(panels[-columns:]), list(panels[::columns])


def _column(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return 0 if spec is None else spec.colspan.start


def log_axis(axis: Axis, low: float, high: float, words: Words, most: int = 6) -> None:
    """A logarithmic axis from `low` to `high` with few ticks, all of them labelled."""
    axes: Any = axis.axes
    name = axis.axis_name  # type: ignore[attr-defined]
    getattr(axes, f"set_{name}scale")("log")
    getattr(axes, f"set_{name}lim")(low, high)
    places = log_ticks(low, high, most)
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([words(place) for place in places]))
    axis.set_minor_locator(NullLocator())


def linear_axis(axis: Axis, most: int = 5) -> None:
    """A linear axis with few ticks, all with as many decimals as tell them apart."""
    axis.set_major_locator(MaxNLocator(nbins=most))
    axis.set_major_formatter(ScalarFormatter(useOffset=False))


def percent_axis(axis: Axis, most: int = 6) -> None:
    """A linear axis of fractions with a sign."""
    axis.set_major_locator(MaxNLocator(nbins=most))
    axis.set_major_formatter(FuncFormatter(_signed_percent))


def _signed_percent(value: float, _: object) -> str:
    return f"{100 * value:+.3g}%" if value else "0"


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers within [low, high], none too close to another."""
    if high / low < NARROW:
        places = MaxNLocator(nbins=max(most - 1, 2)).tick_values(low, high)
        return [float(place) for place in places if low <= place <= high]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    room = math.log10(high / low) / (1.15 * most)
    for digits in DIGITS:
        places = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        inside = [place for place in places if low <= place <= high]
        closest = min(np.diff(np.log10(inside)), default=math.inf)
        if 2 <= len(inside) <= most and closest >= room:
            return inside
    step = math.ceil(len(inside) / most)
    return inside[(len(inside) - 1) % step :: step]


def around(values: Values, share: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis that shows all of `values` with room on both sides."""
    logs = np.log(np.asarray(values, dtype=float))
    room = max(float(np.ptp(logs)) * share, 0.01)
    return math.exp(float(logs.min()) - room), math.exp(float(logs.max()) + room)


def shades(values: Values) -> tuple[LogNorm, Any]:
    """A logarithmic norm over `values`, and their colours, dark for small."""
    low, high = min(values), max(values)
    norm = LogNorm(low, high if high > low else low * 1.01)
    return norm, VIRIDIS(np.asarray(norm(np.asarray(values))) * LIGHTEST)


def colour_key(figure: Figure, norm: Normalize, label: str, words: Words, span_in: Span) -> None:
    """A colour bar at the right edge; `span_in` is from where to where, from the bottom."""
    low_in, high_in = span_in
    width, height = figure.get_size_inches()
    place = (1 - 0.78 / width, low_in / height, 0.15 / width, (high_in - low_in) / height)
    colours = ListedColormap(VIRIDIS(np.linspace(0, LIGHTEST, 64)))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=figure.add_axes(place))
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    ticks = log_ticks(low, high, 6) if isinstance(norm, LogNorm) else np.linspace(low, high, 6)
    bar.set_ticks([float(tick) for tick in ticks], labels=[words(float(tick)) for tick in ticks])
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(length=0)
    bar.ax.set_title(label, fontsize=7.5, fontweight="normal", color=GREY, pad=6)


def mark(marker: str, label: str, **style: Any) -> Line2D:
    """A legend's entry for a point."""
    given = {"color": GREY, "markersize": 5, "markeredgewidth": 0.8, **style}
    return Line2D([], [], linestyle="", marker=marker, label=label, **given)


def key(figure: Figure, entries: Sequence[Any]) -> None:
    """A legend along the lower edge of the figure, in as few rows as fit."""
    letter_in, mark_in = 0.066, 0.5
    needed = sum(len(entry.get_label()) * letter_in + mark_in for entry in entries)
    rows = math.ceil(needed / figure.get_figwidth())
    figure.legend(
        handles=entries, loc="lower center", ncols=math.ceil(len(entries) / rows),
        columnspacing=1.6, handletextpad=0.5, borderaxespad=0.3,
    )  # fmt: skip


def clean(text: str) -> str:
    """Without what neither XML nor UTF-8 can hold: a run may have any name."""
    return "".join(map(_readable, text))


def _readable(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"


def short(text: str, most: int = 60) -> str:
    """At most so many characters, the middle left out."""
    text = clean(text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def shown_flops(value: float) -> str:
    return f"{wording.scientific(value)} FLOPs"
