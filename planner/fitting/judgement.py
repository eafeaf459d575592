"""What is doubtful in a fit, in words: each doubt a finding with its code, value and way out."""

from collections.abc import Iterator, Sequence

import numpy as np

from planner.findings import Finding
from planner.fitting.descent import LOG_HUBER
from planner.fitting.estimators import AGREE, SurfaceFit, refit
from planner.fitting.forecast import HoldOut
from planner.fitting.hyper import Edge, Group
from planner.fitting.hyper_law import HyperLaws
from planner.fitting.isoflop import ComputeLaws, IsoFlop
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import Points
from planner.reading.runs import counted

OUTLIER_SDS = 5.0
CONDITION_LIMIT = 300.0
BIAS_LN_PARAMS = 0.05
BIAS_EXPONENT = 0.02
EXPONENTS_DIFFER = 0.05
EXPONENT_UNKNOWN = 1.0  # N* from independent of compute to all of it
FORECAST_ERROR = 0.01
FORECAST_WORTHLESS = 0.5
MISSED_LOSS = 0.02
FEW_STARTS = 0.25


def judge(
    points: Points,
    huber: SurfaceFit | NotFitted,
    varpro: SurfaceFit | NotFitted,
    curves: IsoFlop,
    groups: Sequence[Group],
    hyper: HyperLaws,
    forecast: HoldOut | NotFitted,
) -> list[Finding]:
    """Every doubt about these fits, most basic first."""
    found = [*_lone(groups), *_surface(points, huber, varpro)]
    found += [*_curves(curves, huber), *_hyper(groups, hyper)]
    found += _nothing(huber, curves, groups)
    if isinstance(forecast, HoldOut) and abs(forecast.relative_error) > FORECAST_ERROR:
        found.append(_forecast_off(forecast))
    return found


def _forecast_off(forecast: HoldOut) -> Finding:
    refuses = abs(forecast.relative_error) > FORECAST_WORTHLESS
    limit = FORECAST_WORTHLESS if refuses else FORECAST_ERROR
    beyond = (
        "these laws forecast nothing. Look for runs of another kind among them (--where), or "
        "sweep larger budgets"
        if refuses
        else "expect no better beyond it"
    )
    return Finding(
        "forecast_off",
        f"fitted without the largest budget ({forecast.held_out_flops:.3g} FLOPs), its loss is "
        f"forecast {forecast.relative_error:+.2%} off (limit {limit:.0%}): {beyond}",
        refuses=refuses,
    )


def _lone(groups: Sequence[Group]) -> Iterator[Finding]:
    """Losses left out because everything near them belies them."""
    lone = [group.lone for group in groups if group.lone is not None]
    if not lone:
        return
    listed = "; ".join(
        f"row {each.run.row} (loss {each.run.loss:.4g}, nearby {each.usual:.4g})"
        for each in lone[:5]
    )
    more = f" and {len(lone) - 5} more" if lone[5:] else ""
    yield Finding(
        "lone_losses",
        f"{counted(len(lone), 'row')} with a loss far below all others of the same N and D, and "
        f"unlike those of groups nearby: {listed}{more}. Left out; correct them",
    )


def _nothing(
    huber: SurfaceFit | NotFitted, curves: IsoFlop, groups: Sequence[Group]
) -> Iterator[Finding]:
    """A refusal where neither a size nor a learning rate or batch could be told."""
    sizes = isinstance(huber, SurfaceFit) or isinstance(curves.laws, ComputeLaws)
    tuned = any(group.lr is not None or group.batch_tokens is not None for group in groups)
    if sizes or tuned:
        return
    swept = [group for group in groups if {group.lr_edge, group.batch_edge} != {Edge.DEGENERATE}]
    why = f": {swept[0].reason}" if swept else ""
    yield Finding(
        "nothing_fitted",
        "neither a law of the best size nor an optimum of learning rate or batch can be told from "
        f"these runs{why}. `planner design` says which runs to add",
        refuses=True,
    )


def _surface(
    points: Points, huber: SurfaceFit | NotFitted, varpro: SurfaceFit | NotFitted
) -> Iterator[Finding]:
    if isinstance(huber, NotFitted):
        yield Finding("no_surface", f"no loss surface: {huber.reason}")
        return
    yield from _outliers(points, huber)
    surface = huber.surfaces.surface()
    if huber.condition > CONDITION_LIMIT:
        yield Finding(
            "ill_conditioned",
            f"the surface's Jacobian has condition number {huber.condition:.3g} (limit "
            f"{CONDITION_LIMIT:.0f}): sizes and token counts vary together; vary tokens per "
            "parameter more",
        )
    if 1e-6 * points.loss.min() > surface.E:
        yield Finding(
            "no_floor",
            "the best irreducible loss E is zero: the data show no floor yet, so a loss forecast "
            "far beyond them has nothing to level off at. Sweep larger budgets",
        )
    if huber.agreeing < FEW_STARTS * huber.starts:
        yield Finding(
            "starts_disagree",
            f"{huber.agreeing} of {huber.starts} starts reach the lowest objective within "
            f"{AGREE:.0e}: the minimum may not be the global one",
        )
    if isinstance(varpro, SurfaceFit):
        other = varpro.surfaces.surface()
        if abs(surface.a - other.a) > EXPONENTS_DIFFER:
            yield Finding(
                "estimators_disagree",
                f"the exponent of N* is {surface.a:.3f} by Huber's loss and {other.a:.3f} by least "
                f"squares (limit {EXPONENTS_DIFFER}): the form does not hold over all these runs. "
                "Leave out runs far from the best size, or the smallest budgets (--where)",
            )


def _outliers(points: Points, huber: SurfaceFit) -> Iterator[Finding]:
    far = np.abs(huber.residuals) > OUTLIER_SDS * max(huber.residual_sd, 1e-6)
    if not far.any():
        return
    worst = sorted(np.flatnonzero(far), key=lambda index: -abs(huber.residuals[index]))
    listed = "; ".join(
        f"{points.names[i]} (loss {points.loss[i]:.4g}, {np.expm1(huber.residuals[i]):+.1%})"
        for i in worst[:5]
    )
    more = f" and {len(worst) - 5} more" if len(worst) > 5 else ""
    limit = np.expm1(OUTLIER_SDS * huber.residual_sd)
    without, _ = refit(LOG_HUBER, points, huber.surfaces, (~far)[None].astype(float))
    yield Finding(
        "outliers",
        f"{len(worst)} of {len(points)} losses lie more than {OUTLIER_SDS:.0f} standard deviations "
        f"({limit:.2%}) off the surface: {listed}{more}. They are in the "
        f"fit; without them the exponent of N* moves from {huber.surfaces.surface().a:.3f} to "
        f"{without.surface().a:.3f} (leave them out with --where 'loss<...')",
    )


def _curves(curves: IsoFlop, huber: SurfaceFit | NotFitted) -> Iterator[Finding]:
    edges = [budget for budget in curves.budgets if budget.optimum is None]
    if edges:
        listed = "; ".join(f"{b.flops:.3g} FLOPs: {b.verdict}" for b in edges[:4])
        yield Finding(
            "budgets_at_edge",
            f"{len(edges)} of {len(curves.budgets)} budgets have no interior best size and are not "
            f"in the isoFLOP laws ({listed}); add sizes beyond the edge",
        )
    if isinstance(curves.laws, NotFitted):
        yield Finding("no_isoflop_law", f"no isoFLOP law: {curves.laws.reason}")
        return
    yield from _bias(curves, curves.laws)
    if isinstance(huber, SurfaceFit):
        yield from _misses(curves, huber)
    exponent = curves.laws.size.exponent("C")
    yield from _unknown(exponent, huber)
    if isinstance(huber, SurfaceFit) and exponent.low is not None and exponent.high is not None:
        a = huber.surfaces.surface().a
        if not exponent.low - EXPONENTS_DIFFER < a < exponent.high + EXPONENTS_DIFFER:
            yield Finding(
                "surface_and_isoflop_disagree",
                f"the exponent of N* is {a:.3f} on the surface and {exponent.value:.3f} "
                f"({exponent.low:.3f} to {exponent.high:.3f}) from the isoFLOP minima: the surface "
                "does not have the shape of these losses. Fit the larger budgets alone (--where)",
            )


def _unknown(exponent: Estimate, huber: SurfaceFit | NotFitted) -> Iterator[Finding]:
    """A refusal where all there is are minima whose law may rise or fall."""
    if isinstance(huber, SurfaceFit) or exponent.low is None or exponent.high is None:
        return
    if exponent.high - exponent.low > EXPONENT_UNKNOWN:
        yield Finding(
            "exponent_unknown",
            f"no surface fits, and the isoFLOP minima leave the exponent of N* between "
            f"{exponent.low:.2f} and {exponent.high:.2f} (a width of {EXPONENT_UNKNOWN:.0f} is the "
            "limit): nothing is known of the best size. Add budgets further apart",
            refuses=True,
        )


def _misses(curves: IsoFlop, huber: SurfaceFit) -> Iterator[Finding]:
    surface = huber.surfaces.surface()
    misses = [(surface.loss(o.params, o.tokens) / o.loss - 1, c) for c, o in curves.optima]
    worst, flops = max(misses, key=lambda miss: abs(miss[0]))
    if abs(worst) > MISSED_LOSS:
        yield Finding(
            "surface_misses_minima",
            f"the surface is {worst:+.1%} off the best loss at {flops:.3g} FLOPs (limit "
            f"{MISSED_LOSS:.0%}): E + A N^-alpha + B D^-beta is not the shape of these losses. "
            "Leave out the smallest budgets and runs far from the best size (--where), or sweep "
            "larger ones",
        )


def _bias(curves: IsoFlop, laws: ComputeLaws) -> Iterator[Finding]:
    biases = [o.bias_ln_params for _, o in curves.optima if o.bias_ln_params is not None]
    windowed, full = laws.exponents["parabola"], laws.exponents.get("full width")
    off = max((abs(bias) for bias in biases), default=0.0)
    moved = abs(full - windowed) if full is not None else 0.0
    if off <= BIAS_LN_PARAMS and moved <= BIAS_EXPONENT and abs(laws.bias or 0) <= BIAS_EXPONENT:
        return
    beside = "" if full is None else f"; over the full width it would be {full:.3f}"
    of_slope = "" if laws.bias is None else f", by {laws.bias:+.3f} in the exponent"
    yield Finding(
        "parabola_biased",
        f"a parabola misses the minimum of the fitted surface on these very grids by up to "
        f"{off:.1%} in N*{of_slope}. The exponent within 4x of the best size is {windowed:.3f}"
        f"{beside}. Plans use the surface, which has no such bias",
    )


def _hyper(groups: Sequence[Group], hyper: HyperLaws) -> Iterator[Finding]:
    for axis, edge_of in (
        ("learning rate", lambda group: group.lr_edge),
        ("batch", lambda group: group.batch_edge),
    ):
        judged = [edge_of(group) for group in groups if edge_of(group) is not Edge.DEGENERATE]
        lower, upper = judged.count(Edge.LOWER), judged.count(Edge.UPPER)
        if lower + upper:
            yield Finding(
                "optimum_at_edge",
                f"the best {axis} lies at or beyond the edge of what was tried in {lower + upper} "
                f"of {len(judged)} groups ({upper} at the upper, {lower} at the lower edge): they "
                "bound the law but are not fitted, and their best losses are upper bounds. Extend "
                "those grids",
            )
    swept = any(group.lr_edge is not Edge.DEGENERATE for group in groups)
    if swept and isinstance(hyper.lr, NotFitted):
        yield Finding("no_lr_law", f"no law of the learning rate: {hyper.lr.reason}")
