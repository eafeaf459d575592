"""The figure of a muP check: every site's size against the size of the model."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalewright.model.mup_check import KINDS, Scan, Site, steepness

NAMED = 4  # sites in the legend of a panel: the steepest ones


def write_figure(scan: Scan, path: Path) -> Path:
    """One panel a kind of site, all on one scale: flat lines are sizes that carry over."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for kind, panel in zip(KINDS, panels, strict=True):
        _draw(panel, scan, [site for site in scan.sites if site.kind == kind])
        panel.set_title(f"{kind}s")
    panels[0].set_ylabel(f"l1 after the last step, relative to {scan.axis} {scan.sizes[0]}")
    verdict = f"breaks at {len(scan.failing)} sites" if scan.failing else "holds"
    figure.suptitle(f"muP over {scan.axis} {verdict} (slopes up to {scan.max_slope:g} allowed)")
    figure.savefig(path, dpi=130)
    return path


def _draw(panel: Axes, scan: Scan, sites: list[Site]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    by_steepness = sorted(sites, key=steepness, reverse=True)
    for site in by_steepness[NAMED:]:
        panel.plot(scan.sizes, _relative(site), color="0.75", linewidth=0.8)
    for site in by_steepness[:NAMED]:
        slope = "no slope" if site.slope is None else f"{site.slope:+.3f}"
        style = "o-" if steepness(site) <= scan.max_slope else "o--"
        label = f"{slope} {site.name}"
        panel.plot(scan.sizes, _relative(site), style, markersize=3, label=label)
    panel.axhline(1, color="black", linewidth=0.6)
    low, high = panel.get_ylim()
    panel.set_ylim(min(low, 0.5), max(high, 2))  # noise must not look like a trend
    panel.set_xticks(scan.sizes, [str(size) for size in scan.sizes])
    panel.minorticks_off()
    panel.set_xlabel(scan.axis)
    panel.legend(fontsize="small", loc="lower left")


def _relative(site: Site) -> list[float]:
    last = site.l1[-1]
    return [value / last[0] if last[0] > 0 else math.nan for value in last]
