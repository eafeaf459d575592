"""A design for people: what to run, what it tells, and why."""

from collections.abc import Iterator, Sequence

from planner.designing.advice import Advice, assumptions, words_of_factor
from planner.designing.design import Design
from planner.designing.design_runs import Setting
from planner.designing.next_advice import NextAdvice
from planner.designing.next_runs import EdgeRun, Per
from planner.designing.simulation import Simulation
from planner.findings import Finding
from planner.planning.distrust import MAX_EXTRAPOLATION
from planner.wording import count, loss, many, percent, plain, scientific, scientific_enough

MAX_EDGES = 10


def design_text(advice: Advice, commands: Sequence[str] | None) -> str:
    """The design, what it reaches, its runs, the runners-up, what it rests on."""
    sections = [
        "\n".join(_head(advice)),
        f"Runs\n{_runs(advice)}",
        f"Best few (predicted, simulated 90% interval of N*)\n{_tried(advice)}",
        _commands(commands),
        "Rests on\n" + "\n".join(f"  {line}" for line in assumptions(advice)),
        _findings(advice.findings),
    ]
    return "\n\n".join(section for section in sections if section)


def next_text(advice: NextAdvice) -> str:
    """Grids to extend, then the runs in order with the interval before and after each."""
    found = advice.found
    aim = found.aim
    total = sum(each.flops for each in advice.settings)
    head = (
        f"Next {many(len(advice.settings), 'run')} for {scientific(aim.flops)} FLOPs "
        f"(N* {count(aim.params)}, D* {count(aim.tokens)}, loss {loss(aim.loss)})\n"
        f"  N* known to {words_of_factor(found.half_before)} now, to "
        f"{words_of_factor(found.half_after)} after them, for {scientific(total)} FLOPs "
        f"(delta method, 90%, noise {percent(advice.noise)})\n"
        f"  runs up to {scientific(advice.cap_flops)} FLOPs; chosen by what a "
        f"{'FLOP' if advice.per is Per.FLOPS else 'run'} tells; condition number of the sweep "
        f"{plain(found.condition)}"
    )
    findings = [*advice.fit.findings, *advice.findings]
    sections = [head, _edges(advice.edges), _next(advice), _findings(findings)]
    return "\n\n".join(section for section in sections if section)


def _head(advice: Advice) -> Iterator[str]:
    wish, chosen, aim = advice.wish, advice.chosen, advice.problem.aim
    shape = chosen.shape
    runs = round(chosen.runs.sum())
    smallest = float(chosen.budgets_flops.min())
    yield (
        f"Design for {scientific(wish.target_flops)} FLOPs "
        f"(by the prior N* {count(aim.params)}, D* {count(aim.tokens)}, loss {loss(aim.loss)})"
    )
    yield (
        f"  {many(shape.budgets, 'budget')} from {scientific(smallest)} to "
        f"{scientific(chosen.largest_flops)} FLOPs, up to {shape.sizes} sizes each within "
        f"x/÷{shape.width:g} of the best: {many(len(chosen.params), 'point')} of (N, D), "
        f"{many(runs, 'run')}, {scientific(chosen.cost_flops)} of "
        f"{scientific(wish.cost_flops)} FLOPs"
    )
    yield (
        f"  N* to {words_of_factor(advice.simulated.half_params)} in "
        f"{advice.simulated.sweeps} simulated sweeps (predicted "
        f"{words_of_factor(chosen.half_params)}), loss to "
        f"{percent(advice.simulated.half_loss)}; 90% intervals"
    )
    yield f"  {_verdict(advice)}"


def _verdict(advice: Advice) -> str:
    wanted = f"the wanted x/÷{advice.wish.precision:g}"
    needed = advice.needed_flops
    cost = "no design below the target" if needed is None else f"{scientific_enough(needed)} FLOPs"
    if advice.reached and needed is not None and needed < advice.chosen.cost_flops:
        return f"{wanted} is reached; the cheapest design that reaches it costs {cost}"
    if advice.reached:
        return f"{wanted} is reached"
    if advice.extrapolation > MAX_EXTRAPOLATION:
        return (
            f"{wanted} is not reached where a fit may be trusted, {MAX_EXTRAPOLATION:.0f}x beyond "
            f"the largest budget; what reaches it: {cost}"
        )
    return f"{wanted} is not reached; what reaches it: {cost}"


def _runs(advice: Advice) -> str:
    tuning = advice.problem.tuning
    rows = [("budget", "N", "D", "learning rates", "batches (tokens)", "runs", "FLOPs")]
    for each in advice.settings:
        rows.append(
            (
                scientific(each.budget_flops),
                count(each.params),
                count(each.tokens),
                _rates(each, tuning.lrs),
                _batches(each, tuning.batches, advice.base is not None),
                f"{each.runs}",
                scientific(each.flops),
            )
        )
    return _table(rows)


def _rates(setting: Setting, number: int) -> str:
    if setting.lrs is not None:
        return " ".join(scientific(rate) for rate in setting.lrs)
    return f"{number}, x2 apart, yours" if setting.tuned else "the best of the tuned sizes"


def _batches(setting: Setting, number: int, platform: bool) -> str:
    if platform:
        return "the config's"
    if setting.batches is not None:
        return " ".join(count(batch) for batch in setting.batches)
    return f"{number}, x2 apart, yours" if setting.tuned else "as the tuned sizes"


def _tried(advice: Advice) -> str:
    head = ("budgets", "decades", "sizes", "width", "largest", "runs", "cost", "N*", "simulated")
    return _table([head, *(_row(design, seen) for design, seen in advice.tried)])


def _row(design: Design, seen: Simulation | None) -> tuple[str, ...]:
    shape = design.shape
    return (
        f"{shape.budgets}",
        f"{shape.decades:g}",
        f"{shape.sizes}",
        f"x/÷{shape.width:g}",
        scientific(design.largest_flops),
        f"{design.runs.sum():.0f}",
        scientific(design.cost_flops),
        words_of_factor(design.half_params),
        "" if seen is None else words_of_factor(seen.half_params),
    )


def _commands(commands: Sequence[str] | None) -> str:
    if commands is None:
        return ""
    lines = "\n".join(f"  {line}" for line in commands)
    return f"On this platform (add the --recipe and KEY=VALUE of that sweep.toml)\n{lines}"


def _edges(edges: Sequence[EdgeRun]) -> str:
    if not edges:
        return ""
    rows = [("N", "D", "beyond", "lr", "batch (tokens)", "FLOPs")]
    for run in edges[:MAX_EDGES]:
        name = "learning rate" if run.beyond == "lr" else "batch"
        rows.append(
            (
                count(run.params),
                count(run.tokens),
                f"{run.side.value} edge of the {name}",
                "" if run.lr is None else scientific(run.lr),
                "" if run.batch_tokens is None else count(run.batch_tokens),
                scientific(run.flops),
            )
        )
    more = len(edges) - MAX_EDGES
    rest = f"\n  and {more} more, all in --json" if more > 0 else ""
    return f"First: grids whose best is at an edge\n{_table(_without_empty(rows))}{rest}"


def _next(advice: NextAdvice) -> str:
    rows = [("", "N", "width", "D", "lr", "batch (tokens)", "FLOPs", "N* before", "after")]
    for number, each in enumerate(advice.settings, start=1):
        run = each.run
        rows.append(
            (
                f"{number}",
                count(run.params),
                "" if each.width is None else f"{each.width}",
                count(run.tokens),
                " ".join(map(scientific, each.lrs)) if each.lrs else "",
                "" if each.batch_tokens is None else count(each.batch_tokens),
                scientific(each.flops),
                words_of_factor(run.half_before),
                words_of_factor(run.half_after),
            )
        )
    return f"Then\n{_table(_without_empty(rows))}"


def _without_empty(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Without the columns that say nothing in any row but the head."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return list(zip(*columns, strict=True))


def _findings(findings: Sequence[Finding]) -> str:
    return "\n".join(
        f"{'REFUSED' if finding.refuses else 'note'} [{finding.code}]: {finding.text}"
        for finding in findings
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
