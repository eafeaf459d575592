"""A plan in plain words: what to train, how sure that is, or why nothing can be said."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner import wording
from planner.findings import Finding
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.fitting.laws import LEVEL, Estimate, NotFitted
from planner.planning.draft import SWEEP
from planner.planning.plan import Plan
from planner.planning.tradeoff import Smaller
from planner.showing.report_plan import quantity

# Hold-out error and spread of N* up to which a plan is a good or a fair one.
GOOD, FAIR = (0.005, 1.5), (0.02, 3.0)
TOLD = 1.5  # times the next budget: nearer than that, a held-out one is no test
FAR = 30.0  # times the largest run: nothing that far is sure
STILL_SAID = 3
SURE = ((1.15, "well known"), (1.5, "fairly well known"), (3.0, "roughly known"))
HARDLY = "hardly known"
CAUSES = {
    "resampling": "which runs the sweep happens to hold",
    "estimators": "the two estimators of the surface disagree",
    "budgets left out": "it moves when a budget is left out",
    "isoFLOP minima": "the isoFLOP minima say otherwise",
    "noise": "noise of a single run",
    "law": "scatter of the optima about their law",
    "best size": "the size is uncertain itself",
    "largest budget held out": "the largest budget was forecast wrong from the others",
    "misfit at the minima": "the surface misses the best losses of the budgets",
}
ASSUMED = {"gpu_hours": "utilisation assumed", "cost": "price assumed"}
SHOWN_FIRST = ("width", "tokens", "loss", "lr", "batch_tokens", "steps", "gpu_hours", "cost")


@dataclass(frozen=True)
class Tile:
    """One number of a plan, big; `note` is its interval or says that there is none."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """`kind` is how much to trust it: "good", "fair", "low", "forced" or "refused".

    `sure` explains the intervals, `said` what holds even where there is no plan.
    """

    kind: str
    title: str
    lead: str
    trust: str
    tiles: tuple[Tile, ...]
    refusals: tuple[str, ...]
    sure: tuple[tuple[str, str], ...]
    said: tuple[str, ...]


def verdict(fit: Fit, plan: Plan) -> Verdict:
    """For one target; what refuses the data themselves refuses every plan."""
    budget = f"{wording.scientific(plan.target_flops)} FLOPs"
    refusals = _refusals([*fit.findings, *plan.findings])
    if not plan.numbers or (refusals and not plan.forced):
        lead = "The sweep does not carry a plan for this budget."
        if plan.numbers:
            lead += " What it does say is below; it is not to be relied on as it stands."
        return _refused(fit, f"No run can be planned for {budget}", lead, refusals, plan)
    kind, trust = confidence(fit, plan)
    return Verdict(
        kind="forced" if refusals else kind,
        title=f"For {budget}: {_what(plan)}",
        lead=_lead(plan, refusals),
        trust=trust,
        tiles=tuple(_tiles(plan)),
        refusals=refusals,
        sure=tuple(_sure(fit, plan)),
        said=(),
    )


def no_plan(fit: Fit) -> Verdict:
    """Where the sweep says nothing of size, so that no run was planned at all."""
    lead = "The sweep has no law of size or tokens."
    if isinstance(fit.huber, NotFitted):
        lead += f" {wording.sentence(f'no surface: {fit.huber.reason}')}"
    return _refused(fit, "No run can be planned from this sweep", lead, _refusals(fit.findings))


def _refused(
    fit: Fit, title: str, lead: str, refusals: tuple[str, ...], plan: Plan | None = None
) -> Verdict:
    return Verdict(
        kind="refused",
        title=title,
        lead=lead,
        trust="",
        tiles=() if plan is None else tuple(_tiles(plan)),
        refusals=refusals,
        sure=tuple(_sure(fit, plan)),
        said=tuple(_still_said(fit)),
    )


def _refusals(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(finding.text for finding in findings if finding.refuses))


def confidence(fit: Fit, plan: Plan) -> tuple[str, str]:
    """How far to trust a plan that stands, "good", "fair" or "low"; and why, in words."""
    spread = spread_of(plan.numbers["params"].estimate)
    kind = "low"
    if isinstance(fit.forecast, HoldOut) and spread is not None:
        error = abs(fit.forecast.relative_error)
        if error <= FAIR[0] and spread <= FAIR[1]:
            kind = "fair"
        near = plan.extrapolation <= FAR and fit.forecast.ratio >= TOLD
        if error <= GOOD[0] and spread <= GOOD[1] and near:
            kind = "good"
    size = "the best size has no interval"
    if spread is not None:
        size = f"the best size is {_how_sure(spread)} ({wording.factor(spread)} either way)"
    test = "no budget could be held out to test it"
    if isinstance(fit.forecast, HoldOut):
        test = (
            f"held out, the largest budget, {wording.plain(fit.forecast.ratio)} times the next, is "
            f"forecast {wording.percent(abs(fit.forecast.relative_error))} off"
        )
    far = f"the target is {wording.factor(plan.extrapolation)} the largest run"
    return kind, f"Confidence: {kind}. {wording.sentence(f'{size}; {test}; {far}')}"


def spread_of(estimate: Estimate) -> float | None:
    """The factor that an interval reaches either way, None where there is none."""
    if estimate.low is None or estimate.high is None or estimate.low <= 0:
        return None
    return math.sqrt(estimate.high / estimate.low)


def _still_said(fit: Fit) -> Iterator[str]:
    """Optima of settings that stand on their own; the largest groups first."""
    largest = sorted(fit.groups, key=lambda group: -group.flops)
    for group in [group for group in largest if len(group.grid.points) > 1][:STILL_SAID]:
        where = f"N {wording.count(group.params)}, D {wording.count(group.tokens)}"
        best = []
        if group.lr is not None:
            best.append(f"best learning rate {wording.scientific(group.lr)}")
        if group.batch_tokens is not None:
            best.append(f"best batch {wording.count(group.batch_tokens)} tokens")
        if best:
            yield f"{where}: {', '.join(best)}, loss {wording.loss(group.loss)} there."
        else:
            yield f"{where}: {group.reason}."


def _what(plan: Plan) -> str:
    size = wording.count(_size(plan).value)
    tokens = wording.count(plan.numbers["tokens"].estimate.value)
    return f"train {size} parameters on {tokens} tokens"


def _size(plan: Plan) -> Estimate:
    return plan.numbers.get("block_params", plan.numbers["params"]).estimate


def _lead(plan: Plan, refusals: Sequence[str]) -> str:
    parts = []
    if refusals:
        parts.append("This was refused, and forced all the same: see why below.")
    if "params" in plan.numbers and "block_params" in plan.numbers:
        best = wording.count(plan.numbers["params"].estimate.value)
        parts.append(f"The best size N* itself is {best}; this is the nearest model that exists.")
    return " ".join(parts)


def _tiles(plan: Plan) -> Iterator[Tile]:
    size = "block_params" if "block_params" in plan.numbers else "params"
    for name in (size, *SHOWN_FIRST):
        if name in plan.numbers:
            label, words = quantity(name)
            estimate = plan.numbers[name].estimate
            note = wording.interval(estimate, words)
            if estimate.low is None:
                note = ASSUMED.get(name, "no interval")
                note = "as in the sweep" if plan.numbers[name].source == SWEEP else note
            yield Tile(label, words(estimate.value), note)


def _sure(fit: Fit, plan: Plan | None) -> Iterator[tuple[str, str]]:
    """What the intervals come from, and what was tried to prove them wrong; title and text."""
    if plan is not None and "params" in plan.numbers:
        yield "The size", _of_size(plan.numbers["params"].estimate)
    if plan is not None and "loss" in plan.numbers:
        yield "The loss", _of_loss(plan.numbers["loss"].estimate)
    other_sizes = "" if plan is None else _of_other_sizes(plan)
    if other_sizes:
        yield "If the size is wrong", other_sizes
    regret = fit.hyper.regret
    if regret is not None and regret.groups > 1:
        yield (
            "The settings",
            "Following the laws of learning rate and batch on the sweep's own grids costs "
            f"{wording.percent(regret.mean)} of loss on average and {wording.percent(regret.max)} "
            f"at worst, over the {regret.groups} groups with two settings or more.",
        )
    yield "The test", of_forecast(fit)


def _of_size(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"No interval: {estimate.unknown or 'it is not known'}."
    spread = spread_of(estimate) or math.inf
    return (
        f"N* is {_how_sure(spread)}: {wording.interval(estimate, wording.count)} "
        f"({LEVEL:.0%} interval, {wording.factor(spread)} either way). {_causes(estimate)}"
    )


def _how_sure(spread: float) -> str:
    return next((words for limit, words in SURE if spread <= limit), HARDLY)


def _of_loss(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"No interval: {estimate.unknown or 'it is not known'}."
    down, up = (
        wording.percent(e / estimate.value - 1, True) for e in (estimate.low, estimate.high)
    )
    return (
        f"One run at the best settings ends at {wording.interval(estimate, wording.loss)} "
        f"({LEVEL:.0%} interval, {down} to {up}). {_causes(estimate)}"
    )


def _causes(estimate: Estimate) -> str:
    """Where a width comes from, as shares of its square; what adds little is left out."""
    square = sum(part**2 for part in estimate.parts.values())
    if not square:
        return ""
    shares = {name: part**2 / square for name, part in estimate.parts.items()}
    listed = [
        f"{CAUSES.get(name, name)} ({share:.0%})"
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
        if share >= 0.01
    ]
    return f"The width comes from: {', '.join(listed)}."


def _of_other_sizes(plan: Plan) -> str:
    half, double = (_nearest(plan.tradeoff, ratio) for ratio in (0.5, 2.0))
    parts = []
    for other in (half, double):
        if other is not None:
            cost = wording.percent(other.loss_given_up.value / other.loss, signed=True)
            parts.append(f"{cost} with {wording.plain(other.ratio, 2)} times the size")
    return f"Extra loss for the same training: {', '.join(parts)}." if parts else ""


def _nearest(tradeoff: Sequence[Smaller], ratio: float) -> Smaller | None:
    found = [each for each in tradeoff if abs(math.log(each.ratio / ratio)) < 0.3]
    return min(found, key=lambda each: abs(math.log(each.ratio / ratio)), default=None)


def of_forecast(fit: Fit) -> str:
    """Whether the sweep would have told the truth about its own largest budget."""
    found = fit.forecast
    if not isinstance(found, HoldOut):
        return f"The largest budget could not be forecast from the smaller ones: {found.reason}."
    return (
        f"Fitted without its largest budget ({wording.scientific(found.held_out_flops)} FLOPs, "
        f"{wording.plain(found.ratio)} times the next), the sweep forecasts the best loss there as "
        f"{wording.loss(found.predicted)}; it was {wording.loss(found.observed)}: "
        f"{wording.percent(found.relative_error, signed=True)} off."
    )
