"""The tables of the plans: every number with interval, reason and source; targets; other sizes."""

from collections.abc import Callable, Sequence

from planner import wording
from planner.findings import Finding
from planner.fitting.fit import Fit
from planner.fitting.laws import Estimate
from planner.planning.plan import Plan
from planner.showing.report_tables import NONE, Row, Table

TINY = 0.01  # an hour or a dollar: less is not worth a digit


def _hours(value: float) -> str:
    return f"under {TINY}" if value < TINY else _rounded(value)


def _dollars(value: float) -> str:
    return f"under ${TINY}" if value < TINY else f"${_rounded(value)}"


def _rounded(value: float) -> str:
    """Three digits: what rests on an assumed utilisation deserves no more."""
    return wording.plain(value) if value < 1000 else wording.whole(float(f"{value:.3g}"))


def _memory(value: float) -> str:
    return (
        f"{wording.plain(value / 1e9)} GB" if value >= 1e9 else f"{wording.plain(value / 1e6)} MB"
    )


QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "params": ("Parameters N", wording.count),
    "block_params": ("Parameters in blocks", wording.count),
    "width": ("Width", wording.whole),
    "tokens": ("Tokens D", wording.count),
    "loss": ("Loss expected", wording.loss),
    "lr": ("Learning rate", wording.scientific),
    "batch_tokens": ("Batch, tokens", wording.count),
    "steps": ("Steps", wording.whole),
    "warmup_steps": ("Warm-up steps", wording.whole),
    "planned_flops": ("Training FLOPs", wording.scientific),
    "gpu_hours": ("GPU hours", _hours),
    "days": ("Days", _hours),
    "cost": ("Cost", _dollars),
    "memory_per_gpu_bytes": ("Memory per GPU", _memory),
}


def quantity(name: str) -> tuple[str, Callable[[float], str]]:
    """Label and wording of a plan's number."""
    return QUANTITIES.get(name, (name.replace("_", " "), wording.plain))


def numbers(plan: Plan) -> Table:
    """Each number of one plan."""
    rows: list[Row] = []
    for name, number in plan.numbers.items():
        label, words = quantity(name)
        estimate = number.estimate
        known = estimate.low is not None and estimate.high is not None
        interval = wording.interval(estimate, words) if known else f"none: {estimate.unknown}"
        rows.append((label, words(estimate.value), interval, number.reason, number.source))
    head = ("", "value", "90% interval", "why", "source")
    return Table(head, tuple(rows), frozenset({0, 2, 3, 4}))


def targets(plans: Sequence[Plan], verdicts: Sequence[str]) -> Table:
    """The plans side by side, each with its verdict."""
    names = list(dict.fromkeys(name for plan in plans for name in plan.numbers))
    rows: list[Row] = [("times the largest run", *(wording.plain(p.extrapolation) for p in plans))]
    for name in names:
        label, words = quantity(name)
        rows.append((label, *(_value(plan, name, words) for plan in plans)))
    rows.append(("verdict", *verdicts))
    head = ("training FLOPs", *(wording.scientific(plan.target_flops) for plan in plans))
    return Table(head, tuple(rows))


def _value(plan: Plan, name: str, words: Callable[[float], str]) -> str:
    if name not in plan.numbers:
        return NONE
    estimate = plan.numbers[name].estimate
    if estimate.low is None:
        return words(estimate.value)
    return f"{words(estimate.value)} ({wording.interval(estimate, words)})"


def other_sizes(plan: Plan) -> Table:
    """What a smaller or larger model costs and saves."""
    head = (
        "N", "width", "times the size", "tokens", "loss", "extra loss", "90% interval",
        "training to equal loss", "inference cost", "pays off after",
    )  # fmt: skip
    rows: list[Row] = []
    for each in plan.tradeoff:
        rows.append(
            (
                wording.count(each.params),
                "" if each.width is None else str(each.width),
                wording.factor(each.ratio),
                wording.count(each.tokens),
                wording.loss(each.loss),
                wording.percent(each.loss_given_up.value / each.loss, signed=True),
                _share_interval(each.loss_given_up, each.loss),
                _training(plan, each.equal_loss_flops),
                wording.factor(each.inference_ratio),
                _pays_off(each.break_even_tokens),
            )
        )
    return Table(head, tuple(rows), frozenset()).without_empty_columns()


def _share_interval(estimate: Estimate, unit: float) -> str:
    if estimate.low is None or estimate.high is None:
        return wording.UNKNOWN
    low, high = (wording.percent(end / unit, signed=True) for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def _training(plan: Plan, flops: Estimate | None) -> str:
    if flops is None:
        return "never reached"
    planned = plan.numbers.get("planned_flops")
    unit = plan.target_flops if planned is None else planned.estimate.value
    return wording.factor(flops.value / unit)


def _pays_off(tokens: Estimate | None) -> str:
    return NONE if tokens is None else f"{wording.count(tokens.value)} tokens"


def warnings(fit: Fit, plans: Sequence[Plan]) -> list[tuple[Finding, str]]:
    """Every finding once, those that refuse first; and for which targets it holds, if not all."""
    seen: dict[Finding, list[float]] = {finding: [] for finding in fit.findings}
    for plan in plans:
        for finding in plan.findings:
            if finding not in fit.findings:
                seen.setdefault(finding, []).append(plan.target_flops)
    told = [(finding, _at(targets, len(plans))) for finding, targets in seen.items()]
    return sorted(told, key=lambda pair: not pair[0].refuses)


def _at(targets: Sequence[float], plans: int) -> str:
    if not targets or len(targets) == plans:
        return ""
    return f"at {', '.join(map(wording.scientific, targets))} FLOPs"
