"""All figures of a fit, each as PNG, as SVG and as an element for a page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

from planner.files import write_bytes
from planner.fitting.fit import Fit
from planner.fitting.grid import BATCH, LR
from planner.fitting.laws import NotFitted
from planner.planning.plan import Plan
from planner.showing import (
    drawing,
    figures_hyper,
    figures_hyper_law,
    figures_isoflop,
    figures_laws,
    figures_plan,
    figures_surface,
)
from planner.showing.drawing import Drawing, Rendered
from planner.showing.report_files import KINDS


def render_all(fit: Fit, plans: Sequence[Plan], prefix: str = "") -> dict[str, Rendered]:
    """Every figure this fit can fill, by name; ids on a page start with `prefix`."""
    with matplotlib.rc_context(drawing.STYLE):
        return {each.name: drawing.render(each, prefix) for each in _drawings(fit, plans)}


def write_figures(rendered: dict[str, Rendered], folder: Path, prefix: str = "") -> list[Path]:
    """Write each as `<prefix><name>.png` and `.svg`; returns the paths."""
    written = []
    for name, each in rendered.items():
        for kind, content in zip(KINDS, (each.png, each.svg), strict=True):
            path = folder / f"{prefix}{name}.{kind}"
            write_bytes(path, content)
            written.append(path)
    return written


def _drawings(fit: Fit, plans: Sequence[Plan]) -> Iterator[Drawing]:
    planned = [plan for plan in plans if plan.numbers]
    if not isinstance(fit.huber, NotFitted):
        yield figures_surface.surface(fit, fit.huber)
        yield figures_surface.residuals(fit, fit.huber)
    if fit.isoflop.budgets:
        yield figures_isoflop.curves(fit)
    if figures_laws.speaks(fit):
        yield figures_laws.laws(fit, planned)
    yield from _hyper(fit, planned)
    if planned and figures_plan.offers(planned[0]):
        yield figures_plan.tradeoff(fit, planned[0])


def _hyper(fit: Fit, planned: Sequence[Plan]) -> Iterator[Drawing]:
    if figures_hyper.on_maps(fit):
        yield figures_hyper.maps(fit)
    for axis in (LR, BATCH):
        if figures_hyper.alone(fit, axis):
            yield figures_hyper.curves(fit, axis)
    if figures_hyper_law.shown(fit):
        yield figures_hyper_law.laws(fit, planned)
    if not isinstance(fit.transfer, NotFitted):
        yield figures_hyper_law.transfer(fit, fit.transfer.law)
