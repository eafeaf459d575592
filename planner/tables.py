"""What a fit found, as plain text for people."""

from collections.abc import Iterator, Sequence

from planner.fit import Fit
from planner.hyper import LearningRateLaw
from planner.isoflop import ComputeLaws
from planner.laws import LEVEL, Estimate, FloorLaw, LogLinear, NotFitted
from planner.plan import Forecast, ForecastOnly, Outcome, Plan, Refusal
from planner.results import counts

MAX_REJECTIONS_SHOWN = 10


def summary(fit: Fit, outcomes: Sequence[Outcome]) -> str:
    """Used, rejected, concluded, planned, in that order."""
    sections = [_inputs(fit), _cells(fit), _budgets(fit), _laws(fit), *map(_outcome, outcomes)]
    if fit.warnings:
        sections.insert(4, "\n".join(f"warning: {warning}" for warning in fit.warnings))
    return "\n\n".join(sections)


def _inputs(fit: Fit) -> str:
    sweep = fit.sweep
    counted = ", ".join(f"{count} {name}" for name, count in counts(fit).items())
    lines = [
        f"Sweep {sweep.runs_path} (data {sweep.records[0].data_digest}, "
        f"schedule {sweep.records[0].schedule})",
        f"  {counted}",
    ]
    shown = sweep.rejections[:MAX_REJECTIONS_SHOWN]
    lines += [f"  rejected {sweep.runs_path}:{r.line}: {r.reason}" for r in shown]
    if len(sweep.rejections) > len(shown):
        lines.append(f"  and {len(sweep.rejections) - len(shown)} more, all in laws.json")
    return "\n".join(lines)


def _cells(fit: Fit) -> str:
    rows = [("budget", "width", "N", "D", "best lr", "within", "loss", "verdict")]
    for cell in fit.cells:
        low = "?" if cell.lr_low is None else f"{cell.lr_low:.2e}"
        high = "?" if cell.lr_high is None else f"{cell.lr_high:.2e}"
        rows.append(
            (
                f"{cell.budget_flops:.2e}",
                str(cell.width),
                f"{cell.block_params:.3g}",
                f"{cell.tokens:.3g}",
                "-" if cell.lr is None else f"{cell.lr:.3e}",
                f"{low}..{high}",
                f"{'' if cell.interior else '<='}{cell.loss:.5f}",
                cell.verdict,
            )
        )
    return "Learning rate, per budget and size\n" + _table(rows)


def _budgets(fit: Fit) -> str:
    rows = [("budget", "sizes", "N*", "D*", "loss", "verdict")]
    for budget in fit.budgets:
        best = budget.optimum
        rows.append(
            (
                f"{budget.budget_flops:.2e}",
                str(len(budget.cells)),
                "-" if best is None else f"{best.block_params:.4g}",
                "-" if best is None else f"{best.tokens:.4g}",
                "-" if best is None else f"{best.loss:.5f}",
                budget.verdict,
            )
        )
    return "Size, per budget\n" + _table(rows)


def _laws(fit: Fit) -> str:
    lines = [f"Laws ({LEVEL:.0%} intervals)"]
    lines += _compute_lines(fit.compute)
    lines += _rate_lines(fit.learning_rate)
    return "\n".join(lines)


def _compute_lines(laws: ComputeLaws | NotFitted) -> Iterator[str]:
    if isinstance(laws, NotFitted):
        yield f"  N*, D*, L*: none: {laws.reason}"
        return
    yield f"  N*(C) = {_formula(laws.size)}"
    yield f"  D*(C) = {_formula(laws.tokens)}"
    if isinstance(laws.loss_floor, FloorLaw):
        floor = laws.loss_floor.parameters()
        yield (
            f"  L*(C) = {floor['floor'].value:.4f} + {laws.loss_floor.scale:.4g} "
            f"C^-{floor['exponent'].value:.4f}   floor {_interval(floor['floor'])}, "
            f"exponent {_interval(floor['exponent'])}"
        )
    else:
        yield f"  L*(C) = {_formula(laws.loss_power)}   (no floor: {laws.loss_floor.reason})"


def _rate_lines(rate: LearningRateLaw | NotFitted) -> Iterator[str]:
    if isinstance(rate, NotFitted):
        yield f"  lr*: none: {rate.reason}"
        return
    yield f"  lr* = {_formula(rate.law)}"
    yield f"    {rate.reason}"
    if rate.regret is not None:
        yield (
            f"    loss regret of the law on the sweep: mean {rate.regret.mean:.3%}, "
            f"worst {rate.regret.worst:.3%} over {rate.regret.cells} cells; "
            f"nearest rate diverged in {rate.regret.diverged}"
        )


def _formula(law: LogLinear) -> str:
    powers = "".join(f" {name}^{law.exponent(name).value:.4f}" for name in law.variables)
    exponents = ", ".join(f"p_{name} {_interval(law.exponent(name))}" for name in law.variables)
    return f"{law.scale.value:.4g}{powers}   {exponents or _interval(law.scale)}"


def _outcome(outcome: Outcome) -> str:
    if isinstance(outcome, Refusal):
        return f"No plan for {outcome.target_flops:.3g} FLOPs: {outcome.reason}"
    if isinstance(outcome, ForecastOnly):
        return f"{_forecast(outcome.forecast)}\n  no plan: {outcome.reason}"
    return f"{_heading('Plan', outcome.forecast)}\n{_numbers(outcome)}"


def _heading(what: str, forecast: Forecast) -> str:
    return (
        f"{what} for {forecast.target_flops:.3g} FLOPs "
        f"({forecast.extrapolation:.3g}x the largest budget in the laws)"
    )


def _forecast(forecast: Forecast) -> str:
    rows = [("", "value", f"{LEVEL:.0%} interval")]
    for name, estimate in (
        ("N*", forecast.block_params),
        ("D*", forecast.tokens),
        ("L*", forecast.loss),
        ("lr*", forecast.lr_peak),
    ):
        if isinstance(estimate, NotFitted):
            rows.append((name, "-", "no law, see above"))
        else:
            rows.append((name, f"{estimate.value:.4g}", _interval(estimate)))
    return f"{_heading('Forecast', forecast)}\n{_table(rows)}"


def _numbers(plan: Plan) -> str:
    lines = []
    for name, number in plan.numbers.items():
        value = number.estimate.value
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
        lines += [
            f"  {name} = {shown} ({_interval(number.estimate)}) {number.unit}",
            f"      {number.reason} [{number.source}]",
        ]
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in plan.warnings)])


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"interval unknown: {estimate.unknown}"
    return f"{estimate.low:.4g}..{estimate.high:.4g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
