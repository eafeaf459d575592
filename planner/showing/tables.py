"""What a fit found, as plain text for people."""

from collections.abc import Iterator, Sequence

from planner.findings import Finding
from planner.fitting.estimators import SurfaceFit
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.fitting.hyper import Edge, Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.isoflop import ComputeLaws
from planner.fitting.laws import LEVEL, Estimate, FloorLaw, NotFitted
from planner.fitting.surface import CONSTANTS
from planner.planning.plan import Plan
from planner.reading.checks import blown_runs
from planner.reading.runs import counted
from planner.showing.results import unique

MAX_ROWS = 24
MAX_REJECTIONS = 5
VANISHED = 1e-9  # a floor that the fit has driven to zero


def summary(fit: Fit, plans: Sequence[Plan]) -> str:
    """Data, laws, forecast, warnings, plans, in that order."""
    findings = unique([*fit.findings, *(each for plan in plans for each in plan.findings)])
    sections = [
        _data(fit),
        _surface(fit),
        _isoflop(fit),
        _hyper(fit),
        _forecast(fit.forecast),
        _plans(plans),
        _findings(findings),
    ]
    return "\n\n".join(section for section in sections if section)


def _data(fit: Fit) -> str:
    sweep = fit.sweep
    name = f"{sweep.source}" + (f", group {sweep.group}" if sweep.group else "")
    stopped = [run.status for run in sweep.stopped]
    blown = len(blown_runs(sweep.runs))
    by_loss = f" ({blown} of them diverged by their loss)" if blown else ""
    counts = (
        f"  {sweep.rows} rows: {len(sweep.runs)} used{by_loss}, "
        f"{stopped.count('diverged')} diverged, {stopped.count('failed')} failed, "
        f"{len(sweep.rejections)} rejected; {counted(len(fit.points), 'pair')} of (N, D)"
    )
    lines = [f"Sweep {name}", counts]
    shown = sweep.rejections[:MAX_REJECTIONS]
    lines += [f"  rejected row {each.row}: {each.reason}" for each in shown]
    if len(sweep.rejections) > len(shown):
        lines.append(f"  and {len(sweep.rejections) - len(shown)} more, all in laws.json")
    return "\n".join(lines)


def _surface(fit: Fit) -> str:
    if not isinstance(fit.huber, SurfaceFit) or not isinstance(fit.varpro, SurfaceFit):
        return ""
    rows = [("L = E + A N^-alpha + B D^-beta", "Huber on ln L", "least squares")]
    of_huber, of_varpro = (each.surfaces.surface() for each in (fit.huber, fit.varpro))
    for name in (*CONSTANTS, "a"):
        label = "a = beta/(alpha+beta), N* ~ C^a" if name == "a" else name
        rows.append(
            (
                label,
                _with_interval(getattr(of_huber, name), fit.constants.get("huber", {}).get(name)),
                _with_interval(getattr(of_varpro, name), fit.constants.get("varpro", {}).get(name)),
            )
        )
    rows.append(("objective", f"{fit.huber.objective:.7g}", f"{fit.varpro.objective:.7g}"))
    agree = f"{fit.huber.agreeing} of {fit.huber.starts} starts agree"
    rows.append(
        ("condition number", f"{fit.huber.condition:.3g}; {agree}", f"{fit.varpro.condition:.3g}")
    )
    return f"Loss surface ({LEVEL:.0%} intervals)\n{_table(rows)}"


def _with_interval(value: float, estimate: Estimate | None) -> str:
    shown = "0" if value < VANISHED else f"{value:.5g}"
    if estimate is None or estimate.low is None or estimate.high is None or value < VANISHED:
        return shown
    return f"{shown}  ({estimate.low:.4g}..{estimate.high:.4g})"


def _isoflop(fit: Fit) -> str:
    if not fit.isoflop.budgets:
        return ""
    rows = [("budget", "sizes", "N*", "D*", "loss", "verdict")]
    for budget in fit.isoflop.budgets:
        best = budget.optimum
        rows.append(
            (
                f"{budget.flops:.3g}",
                str(len(budget.params)),
                "-" if best is None else f"{best.params:.4g}",
                "-" if best is None else f"{best.tokens:.4g}",
                "-" if best is None else f"{best.loss:.5f}",
                budget.verdict,
            )
        )
    laws = fit.isoflop.laws
    lines = [] if isinstance(laws, NotFitted) else list(_compute_lines(laws))
    return "\n".join(["isoFLOP curves", _table(rows), *lines])


def _compute_lines(laws: ComputeLaws) -> Iterator[str]:
    size, tokens = laws.size.exponent("C"), laws.tokens.exponent("C")
    others = ", ".join(f"{name} {value:.3f}" for name, value in laws.exponents.items())
    yield f"  N* ~ C^{size.value:.4f} ({_interval(size)}); by way of finding minima: {others}"
    yield f"  D* ~ C^{tokens.value:.4f} ({_interval(tokens)})"
    if isinstance(laws.loss_floor, FloorLaw):
        floor = laws.loss_floor.parameters()["floor"]
        yield (
            f"  L* = {floor.value:.4f} + {laws.loss_floor.scale:.4g} "
            f"C^-{laws.loss_floor.exponent_value:.4f}, floor {_interval(floor)}"
        )


def _hyper(fit: Fit) -> str:
    judged = [group for group in fit.groups if group.lr_edge is not Edge.DEGENERATE]
    judged += [
        group
        for group in fit.groups
        if group.lr_edge is Edge.DEGENERATE and group.batch_edge is not Edge.DEGENERATE
    ]
    if not judged:
        return ""
    lines = ["Best learning rate and batch", _table(_group_rows(judged[:MAX_ROWS]))]
    if len(judged) > MAX_ROWS:
        lines.append(f"  and {len(judged) - MAX_ROWS} more groups, all in laws.json")
    lines += [
        _law_line("lr*", fit.hyper.lr),
        _law_line("batch* (tokens)", fit.hyper.batch_tokens),
    ]
    regret = fit.hyper.regret
    if regret is not None:
        lines.append(
            f"  loss lost by following the laws on this sweep: mean {regret.mean:.3%}, worst "
            f"{regret.max:.3%} over the {regret.groups} groups with two settings or more; nearest "
            f"run diverged in {regret.diverged}"
        )
    lines.append(
        "  muP transfer: "
        + (fit.transfer.reason if isinstance(fit.transfer, NotFitted) else fit.transfer.text)
    )
    return "\n".join(lines)


def _group_rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("N", "D", "runs", "lr*", "batch*", "loss", "verdict")]
    for group in groups:
        edges = f"lr {group.lr_edge.value}"
        if group.batch_edge is not Edge.DEGENERATE:
            edges += f", batch {group.batch_edge.value}"
        rows.append(
            (
                f"{group.params:.4g}",
                f"{group.tokens:.4g}",
                str(len(group.runs)),
                "-" if group.lr is None else f"{group.lr:.3g}",
                "-" if group.batch_tokens is None else f"{group.batch_tokens:.3g}",
                f"{'<=' if group.loss_is_bound else ''}{group.loss:.5f}",
                edges,
            )
        )
    return rows


def _law_line(name: str, law: HyperLaw | NotFitted) -> str:
    if isinstance(law, NotFitted):
        return f"  {name}: none: {law.reason}"
    powers, intervals = "", []
    for variable, exponent in (("N", law.params_exponent), ("D", law.tokens_exponent)):
        if exponent.value:
            powers += f" {variable}^{exponent.value:.4f}"
            intervals.append(f"{variable} {_interval(exponent)}")
    known = f"   ({', '.join(intervals)})" if intervals else ""
    return f"  {name} = {law.coefficient.value:.4g}{powers}{known}; {law.reason}"


def _forecast(found: HoldOut | NotFitted) -> str:
    if isinstance(found, NotFitted):
        return f"Largest budget held out: {found.reason}"
    others = "; ".join(f"by the {name} {error:+.2%}" for name, error in found.errors.items())
    return (
        f"Largest budget held out ({found.held_out_flops:.3g} FLOPs, {found.ratio:.3g}x the next): "
        f"loss forecast {found.predicted:.5f}, found {found.observed:.5f} ({others})"
    )


def _plans(plans: Sequence[Plan]) -> str:
    """All targets side by side, then where the first one's numbers come from."""
    planned = [plan for plan in plans if plan.numbers]
    if not planned:
        return "No plan: see what is refused below" if plans else ""
    names = dict.fromkeys(name for plan in planned for name in plan.numbers)
    rows = [("Plan", *(f"{plan.target_flops:.3g} FLOPs" for plan in planned))]
    rows.append(("beyond the largest run", *(f"{plan.extrapolation:.3g}x" for plan in planned)))
    rows += [(name, *(_number(plan, name) for plan in planned)) for name in names]
    reasons = [
        f"  {name}: {number.reason} [{number.source}]"
        for name, number in planned[0].numbers.items()
    ]
    return "\n".join([_table(rows), "Why (first target)", *reasons])


def _number(plan: Plan, name: str) -> str:
    if name not in plan.numbers:
        return "-"
    estimate = plan.numbers[name].estimate
    if estimate.low is None or estimate.high is None:
        return _value(estimate.value)
    return f"{_value(estimate.value)} ({estimate.low:.3g}..{estimate.high:.3g})"


def _value(value: float) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:.4g}"


def _findings(findings: Sequence[Finding]) -> str:
    return "\n".join(
        f"{'REFUSED' if finding.refuses else 'warning'} [{finding.code}]: {finding.text}"
        for finding in findings
    )


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"interval unknown: {estimate.unknown}"
    return f"{estimate.low:.4g}..{estimate.high:.4g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
