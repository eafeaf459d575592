"""Over-training: what another size costs in loss, or in training to the same loss."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from planner import wording
from planner.fitting.fit import Fit
from planner.fitting.laws import LEVEL, Estimate
from planner.fitting.surface import Floats
from planner.planning.plan import Plan
from planner.planning.tradeoff import Smaller
from planner.showing import drawing
from planner.showing.drawing import Drawing, log_axis
from planner.showing.figures_surface import band

CURVE_POINTS = 41
REACH = 1.5
DEAREST = 5.0  # times the training: beyond it nobody goes


def tradeoff(fit: Fit, plan: Plan) -> Drawing:
    """Extra loss at equal training FLOPs, and training FLOPs to equal loss, over size."""
    figure, (loss, training) = drawing.panels(
        2, 2, 2.5, right_in=0.25, gap_in=(0.85, 0.6), bottom_in=0.9
    )
    found = Drawing(
        "tradeoff",
        f"Other sizes than the best, {drawing.shown_flops(plan.target_flops)}",
        "Left: extra loss when another size is trained for the same FLOPs. Right: training FLOPs "
        "that bring it to the loss of the planned run, over the planned ones. A smaller model is "
        "cheaper to use in proportion to its size.",
        figure,
        least_px=620,
    )
    sizes = [each.params for each in plan.tradeoff]
    ends = min(sizes) / REACH, max(sizes) * REACH
    planned = next((each for each in plan.tradeoff if each.ratio == 1), plan.tradeoff[0])
    _loss_curve(loss, fit, plan, np.geomspace(*ends, CURVE_POINTS), planned.params)
    _marks(found, loss, plan, [each.loss_given_up for each in plan.tradeoff], planned.loss)
    drawing.percent_axis(loss.yaxis)
    loss.set_title("extra loss for the same training")
    dearer = [each.equal_loss_flops for each in plan.tradeoff]
    _marks(found, training, plan, dearer, plan.numbers["planned_flops"].estimate.value)
    _training_curve(training, fit, np.geomspace(*ends, CURVE_POINTS), planned)
    log_axis(training.yaxis, 0.92, DEAREST, wording.factor, most=6)
    training.set_title("training for the same loss")
    for axes in (loss, training):
        log_axis(axes.xaxis, *ends, wording.count, most=6)
        axes.axvline(planned.params, color=drawing.ORANGE, lw=1, ls="--", zorder=1)
        axes.set_xlabel("parameters N")
    drawing.key(figure, _legend())
    return found


def _loss_curve(axes: Axes, fit: Fit, plan: Plan, params: Floats, planned: float) -> None:
    """(L(N) - L(planned)) / L(planned) on the surface, with its band by resampling."""
    if fit.resamples is None:
        return
    params = np.append(params, planned)
    tokens = plan.target_flops / fit.frontier.flops_per_token(params)
    log_loss = fit.resamples.huber.log_loss(params, tokens)
    extra = np.expm1(log_loss[:, :-1] - log_loss[:, -1:])
    axes.plot(params[:-1], extra[0], "-", color=drawing.BLUE, lw=1.4)
    if fit.resamples.count >= 20:
        low, high = band(extra, fit.resamples.stretch)
        axes.fill_between(params[:-1], low, high, color=drawing.BLUE, alpha=0.16, lw=0)
    axes.set_ylim(min(0, float(extra[0].min())) - 0.1 * float(np.ptp(extra[0])),
                  float(extra[0].max()) * 1.35)  # fmt: skip


def _training_curve(axes: Axes, fit: Fit, params: Floats, planned: Smaller) -> None:
    """FLOPs to the planned loss over those planned; a size too small for it has none."""
    if fit.resamples is None:
        return
    surface = fit.resamples.huber.surface()
    above_floor = surface.loss(planned.params, planned.tokens) - surface.E
    room = above_floor - surface.A * params**-surface.alpha
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        tokens = np.where(room > 0, (room / surface.B) ** (-1 / surface.beta), np.nan)
    flops = tokens * fit.frontier.flops_per_token(params)
    axes.plot(params, flops / fit.frontier.flops(planned.params, planned.tokens), "-",
              color=drawing.BLUE, lw=1.4)  # fmt: skip


def _marks(
    found: Drawing, axes: Axes, plan: Plan, values: "list[Estimate] | list[Estimate | None]",
    unit: float,
) -> None:  # fmt: skip
    """Each size's value in units of `unit`, with its interval; those without one are left out."""
    known = [(e, v) for e, v in zip(plan.tradeoff, values, strict=True) if v is not None]
    for each, value in known:
        if value.low is not None and value.high is not None:
            ends = [value.low / unit, value.high / unit]
            axes.plot([each.params] * 2, ends, "-", color=drawing.PALE, lw=1.2)
    found.points(
        axes, [each.params for each, _ in known], [value.value / unit for _, value in known],
        [f"N {wording.count(each.params)}: {each.reason}" for each, _ in known],
        c=drawing.INK, s=20,
    )  # fmt: skip


def _legend() -> list[Any]:
    return [
        drawing.mark("o", "size considered", color=drawing.INK, markersize=4),
        Line2D([], [], color=drawing.BLUE, lw=1.4, label="surface"),
        Patch(color=drawing.BLUE, alpha=0.2, lw=0, label=f"{LEVEL:.0%} band"),
        Line2D([], [], color=drawing.ORANGE, lw=1, ls="--", label="planned size"),
    ]


def offers(plan: Plan) -> bool:
    """Whether there is another size to compare with."""
    return len(plan.tradeoff) > 1 and "planned_flops" in plan.numbers
