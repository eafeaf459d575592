"""Why the laws are not to be trusted at a target, in words: each reason with its way out."""

from collections.abc import Iterator

from planner.findings import Finding
from planner.isoflop import ComputeLaws
from planner.laws import Estimate, NotFitted
from planner.target import BestSize, Evidence

MAX_EXTRAPOLATION = 300.0
WIDE = 10.0  # N* within a factor of this either way: beyond it the plan says next to nothing


def doubts_of_laws(
    fit: Evidence, best: BestSize | NotFitted, target_flops: float
) -> Iterator[Finding]:
    """What makes every number of a plan doubtful; those that refuse leave no number standing."""
    if isinstance(best, NotFitted):
        yield Finding("no_law", f"no plan: {best.reason}", refuses=True)
        return
    yield from _extrapolation(fit, best, target_flops)
    if isinstance(fit.isoflop.laws, ComputeLaws):
        yield from _falling(fit.isoflop.laws, alone=best.surface is None)
    if best.surface is None:
        yield Finding(
            "no_surface",
            "no loss surface could be fitted, so the plan rests on the isoFLOP minima alone: no "
            "over-training trade-off, and the loss is that of the best size, not of the rung",
        )
    yield from _wide(best.params)


def doubts_of_size(fit: Evidence, best: BestSize) -> Iterator[Finding]:
    """Whether there is a best size at all among those that can be chosen."""
    if best.inside:
        return
    smallest, largest = fit.frontier.smallest_params, fit.frontier.largest_params
    if fit.base is None:
        yield Finding(
            "no_best_size",
            f"the fitted loss has no minimum between {smallest:.3g} and {largest:.3g} parameters "
            "at this target: one of its terms has all but vanished. Sweep sizes on both sides of "
            "the best one",
            refuses=True,
        )
        return
    widths = fit.base.ladder[0].model.width, fit.base.ladder[-1].model.width
    yield Finding(
        "off_ladder",
        f"the best size N* = {best.params.value:.3g} is at the end of or off the ladder of sizes "
        f"at depth {fit.base.model.depth} ({smallest:.3g} at width {widths[0]} to {largest:.3g} at "
        f"width {widths[1]}); change --target, or sweep at another depth",
        refuses=True,
    )


def _extrapolation(fit: Evidence, best: BestSize, target_flops: float) -> Iterator[Finding]:
    laws = fit.isoflop.laws
    reach = fit.largest_flops
    if best.surface is None and isinstance(laws, ComputeLaws):
        reach = laws.largest_flops
    ratio = target_flops / reach
    if ratio > MAX_EXTRAPOLATION:
        yield Finding(
            "extrapolation",
            f"{target_flops:.3g} FLOPs is {ratio:.4g}x the largest budget fitted ({reach:.3g}); "
            f"the limit is {MAX_EXTRAPOLATION:.0f}x. Sweep larger budgets, lower the target, or "
            "pass --force",
            refuses=True,
        )


def _falling(laws: ComputeLaws, alone: bool) -> Iterator[Finding]:
    """Minima that fall with compute: no loss of the surface's form has such."""
    for name, law in (("size N*", laws.size), ("token count D*", laws.tokens)):
        exponent = law.exponent("C")
        if exponent.value > 0:
            continue
        surely = exponent.high is not None and exponent.high < 0
        yield Finding(
            "minima_are_noise",
            f"the best {name} of the budgets falls with compute (exponent "
            f"{_with_interval(exponent)}): the minima are noise; add budgets further apart, or "
            "more sizes to each",
            refuses=alone or surely,
        )


def _wide(params: Estimate) -> Iterator[Finding]:
    if params.low is None or params.high is None:
        return
    factor = max(params.high / params.value, params.value / params.low)
    if factor > WIDE:
        yield Finding(
            "interval_too_wide",
            f"the interval of N* reaches a factor of {factor:.3g} from {params.value:.3g} "
            f"({params.low:.3g} to {params.high:.3g}, limit {WIDE:.0f}): the sweep hardly says "
            "which size is best. Add budgets further apart; `planner design` says which runs help",
        )


def _with_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g}, {estimate.low:.3g} to {estimate.high:.3g}"
