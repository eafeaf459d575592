"""One page that tells a newcomer what to train, how sure that is, and what to run next.

`report.html` needs nothing but itself: figures, style and script are inside, and its policy forbids
the browser any request. The figures lie beside it as PNG and SVG.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import wording
from planner.files import write_bytes
from planner.fitting.fit import Fit
from planner.fitting.grid import BATCH, LR
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import LEVEL, NotFitted
from planner.planning.plan import Plan
from planner.reading.checks import blown_runs
from planner.reading.runs import counted
from planner.reading.spec import ReadOptions
from planner.showing import report_next, report_plan, report_tables, report_verdict
from planner.showing.drawing import Rendered, clean, short
from planner.showing.figures import render_all, write_figures
from planner.showing.figures_hyper import on_maps, swept
from planner.showing.report_files import REPORT_FILE, remove_figures
from planner.showing.report_next import Next
from planner.showing.report_plan import Finding
from planner.showing.report_tables import Table
from planner.showing.report_verdict import Verdict
from planner.showing.results import versions

LONG_SOURCE = 32
AS_IT_IS = ReadOptions()
TEMPLATE, STYLE_FILE, SCRIPT_FILE = "report.html.j2", "report.css", "report.js"
_STANDS = {"good": "planned", "fair": "planned", "low": "planned, confidence low"}
ACCOUNTING = {
    "exact": "as the table gives them, stated to be exact",
    "6nd": "C = 6ND (attention, embeddings and head cost nothing)",
    None: "not stated",
}


@dataclass(frozen=True)
class Part:
    """What the page shows of one fit; `slug` starts its anchors and the names of its figures."""

    slug: str
    name: str
    fit: Fit
    plans: Sequence[Plan]
    verdicts: Sequence[Verdict]
    next: Next
    warnings: Sequence[tuple[Finding, str]]
    facts: Sequence[tuple[str, str]]
    tables: Mapping[str, Table]
    texts: Mapping[str, str]
    figures: Mapping[str, Rendered]


def write_report(
    fits: Sequence[tuple[Fit, Sequence[Plan]]],
    folder: Path,
    command: str,
    date: str | None = None,
    reading: ReadOptions = AS_IT_IS,
) -> list[Path]:
    """Write `report.html` and every figure into `folder`; returns the paths.

    One part for each fit. `date` is shown where it is given: without one, equal input gives equal
    bytes. `reading` is how the table was read, for the command that goes on from it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_part(fits, place, reading) for place in range(len(fits))]
    page = folder / REPORT_FILE
    write_bytes(page, render_page(parts, command, date).encode())
    written = [page]
    for part in parts:
        prefix = f"{part.slug}-" if len(parts) > 1 else ""
        written += write_figures(dict(part.figures), folder, prefix)
    remove_figures(folder, written)
    return written


def render_page(parts: Sequence[Part], command: str, date: str | None) -> str:
    """The HTML; everything that comes from the user is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("planner.showing", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sentence": wording.sentence, "prose": _prose, "code": _code}
    own = Path(__file__).parent
    return environment.get_template(TEMPLATE).render(
        parts=parts,
        source=parts[0].fit.sweep.source,
        title=_title(parts[0].fit.sweep.source),
        overview=_overview(parts),
        command=command,
        date=date,
        versions=versions(),
        level=f"{LEVEL:.0%}",
        style=(own / STYLE_FILE).read_text(encoding="utf-8"),
        script=(own / SCRIPT_FILE).read_text(encoding="utf-8"),
    )


def _readable(value: Any) -> Any:
    """Of all that goes into the page: names may hold what a page must not."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else clean(value)


def _title(source: str) -> str:
    """Of a long path its last part."""
    return source if len(source) <= LONG_SOURCE else Path(source).name or source


def _prose(text: str) -> Any:
    """A sentence as `_code` has it."""
    return _code(wording.sentence(text))


def _code(text: str) -> Any:
    """Text, escaped, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(clean(text)))))


def _part(fits: Sequence[tuple[Fit, Sequence[Plan]]], place: int, reading: ReadOptions) -> Part:
    fit, plans = fits[place]
    slug = f"group{place + 1:02d}-{_slug(fit.sweep.group)}" if len(fits) > 1 else "fit"
    target = plans[0].target_flops if plans else None
    verdicts = [report_verdict.verdict(fit, plan) for plan in plans]
    return Part(
        slug=slug,
        name=short(fit.sweep.group or fit.sweep.source),
        fit=fit,
        plans=plans,
        verdicts=verdicts or [report_verdict.no_plan(fit)],
        next=report_next.what_next(fit, target, reading),
        warnings=report_plan.warnings(fit, plans),
        facts=_facts(fit),
        tables=_tables(fit, plans, [each.kind for each in verdicts]),
        texts=_texts(fit),
        figures=render_all(fit, plans, f"{slug}-"),
    )


def _slug(name: str | None) -> str:
    """For a file's name: whatever is neither letter nor digit, and anything long, goes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name or "all").strip("-")[:40] or "unnamed"


def _tables(fit: Fit, plans: Sequence[Plan], kinds: Sequence[str]) -> dict[str, Table]:
    tables = {
        "groups": report_tables.groups(fit),
        "runs": report_tables.runs(fit),
        "left_out": report_tables.left_out(fit),
        "constants": report_tables.constants(fit),
        "budgets": report_tables.budgets(fit),
        "exponents": report_tables.exponents(fit),
        "hyper_laws": report_tables.hyper_laws(fit),
        "forecasts": report_tables.forecasts(fit),
        "targets": report_plan.targets(plans, [_STANDS.get(kind, kind) for kind in kinds]),
    }
    for place, plan in enumerate(plans):
        tables[f"numbers{place}"] = report_plan.numbers(plan)
        tables[f"other_sizes{place}"] = report_plan.other_sizes(plan)
    return tables


def _facts(fit: Fit) -> list[tuple[str, str]]:
    """What the data are, and what N, D and FLOPs mean in them."""
    sweep = fit.sweep
    stopped = [run.status for run in sweep.stopped]
    points = fit.points
    ratio = points.tokens / points.params
    return [
        ("rows", f"{sweep.rows:,} read, {len(sweep.runs):,} used, {len(sweep.rejections):,} "
                 f"rejected, {stopped.count('diverged'):,} diverged, {stopped.count('failed'):,} "
                 f"failed{_blown(fit)}"),
        ("points", f"{counted(len(points), 'pair')} of (N, D), each at the best settings tried"),
        ("N", sweep.accounting.params or "parameters, as the table has them; whether with "
              "embeddings is not stated"),
        ("D", "tokens seen in training"),
        ("FLOPs", f"{ACCOUNTING[sweep.accounting.flops]}; plans count by {fit.frontier.source}"),
        ("range", f"N {_range(points.params, wording.count)}; D "
                  f"{_range(points.tokens, wording.count)}; FLOPs "
                  f"{_range(points.flops, wording.scientific)}; tokens per parameter "
                  f"{_range(ratio, wording.plain)}"),
        ("noise", _noise(fit)),
    ]  # fmt: skip


def _blown(fit: Fit) -> str:
    blown = len(blown_runs(fit.sweep.runs))
    return f"; {blown:,} of the used ones diverged by their loss" if blown else ""


def _noise(fit: Fit) -> str:
    if not fit.noise:
        return "not known: state it as `noise` under `[accounting]` in a sweep.toml"
    where = "as stated" if fit.sweep.noise == fit.noise else "the scatter about the surface"
    return f"{wording.percent(fit.noise)} of the loss, one standard deviation: {where}"


def _range(values: Any, words: Any) -> str:
    return f"{words(float(values.min()))} to {words(float(values.max()))}"


def _texts(fit: Fit) -> dict[str, str]:
    """What the sections say where a figure cannot."""
    return {
        "surface": fit.huber.reason if isinstance(fit.huber, NotFitted) else "",
        "isoflop": fit.isoflop.laws.reason if isinstance(fit.isoflop.laws, NotFitted) else "",
        "transfer": fit.transfer.reason
        if isinstance(fit.transfer, NotFitted)
        else fit.transfer.text,
        "regret": _regret(fit),
        "maps": _maps_left_out(fit),
        "forecast": report_verdict.of_forecast(fit),
    }


def _regret(fit: Fit) -> str:
    regret = fit.hyper.regret
    if regret is None:
        return ""
    bounds = [
        f"{law.violated} of {law.bounds} bounds by groups at an edge contradict the law of {name}"
        for name, law in (("learning rate", fit.hyper.lr), ("batch", fit.hyper.batch_tokens))
        if isinstance(law, HyperLaw) and law.bounds
    ]
    diverged = f"; in {regret.diverged} the nearest one diverged" if regret.diverged else ""
    return (
        f"Taking the setting nearest to the laws, of those tried, costs "
        f"{wording.percent(regret.mean)} of loss on average over the {regret.groups} groups with "
        "two settings or more and "
        f"{wording.percent(regret.max)} at worst (N {wording.count(regret.worst.params)}, D "
        f"{wording.count(regret.worst.tokens)}){diverged}. "
        + " ".join(map(wording.sentence, bounds))
    )


def _maps_left_out(fit: Fit) -> str:
    both = [group for group in fit.groups if swept(group, LR) and swept(group, BATCH)]
    left_out = len(both) - len(on_maps(fit))
    return f"{wording.many(left_out, 'smaller group')} left out of the maps." if left_out else ""


def _overview(parts: Sequence[Part]) -> Table:
    """One line for each group."""
    rows = []
    for part in parts:
        known = part.fit.constants.get("huber", {}).get("a")
        plan = part.plans[0] if part.plans else None
        numbers = {} if plan is None else plan.numbers
        rows.append(
            (
                part.name,
                f"{len(part.fit.sweep.runs):,}",
                "–" if known is None else f"{known.value:.3f}",
                "–" if known is None else wording.interval(known, lambda value: f"{value:.3f}"),
                "–" if plan is None else wording.scientific(plan.target_flops),
                *(_planned(numbers, name) for name in ("params", "tokens", "loss")),
                part.verdicts[0].kind,
            )
        )
    head = ("group", "runs", "a", "90% interval", "target", "N*", "D*", "loss", "confidence")
    return Table(head, tuple(rows))


def _planned(numbers: Mapping[str, Any], name: str) -> str:
    _, words = report_plan.quantity(name)
    return words(numbers[name].estimate.value) if name in numbers else "–"
