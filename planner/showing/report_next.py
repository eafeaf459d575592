"""What to run next: grids to extend first, then the runs that tell most about the best size."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from planner import wording
from planner.designing.next_advice import NextAdvice, NextWish, advise_next, with_grid
from planner.designing.next_runs import EdgeRun, Per, edge_runs
from planner.errors import InputError
from planner.fitting.fit import Fit
from planner.fitting.hyper import Edge
from planner.reading.records import Sweep
from planner.reading.spec import ReadOptions
from planner.showing.report_tables import NONE, Table

RUNS = 5
MORE_RUNS = 12
MOST_EDGES = 10
_AXES = {"lr": "learning rate", "batch_tokens": "batch"}


@dataclass(frozen=True)
class Next:
    """What to run next: in words, the grids to extend, and the runs that tell most."""

    advice: tuple[str, ...]
    edges: Table | None
    runs: Table | None


def what_next(fit: Fit, target_flops: float | None, reading: ReadOptions) -> Next:
    """The runs that would shrink the interval of N* most, and the grids to extend before them."""
    edges = edge_runs(fit.groups)
    table = _edge_table(edges) if edges else None
    try:
        found = advise_next(fit, NextWish(RUNS, target_flops, None, None, Per.RUN))
    except InputError as error:
        why = wording.sentence(str(error).removeprefix(f"{fit.sweep.source}: "))
        return Next((*_edges(fit, edges), why), table, None)
    texts = [finding.text for finding in found.findings if finding.code != "edges_first"]
    gain = _gain(found, design_command(fit.sweep, target_flops, reading))
    advice = (*_edges(fit, edges), *map(wording.sentence, texts), gain)
    return Next(advice, table, _runs(found))


def design_command(sweep: Sweep, target_flops: float | None, reading: ReadOptions) -> str:
    """The `planner design` that goes on from this sweep, read in the same way."""
    where = list(reading.where)
    if sweep.group is not None:
        where.append(f"{sweep.group_column}={sweep.group}")
    options = [
        *(part for text in reading.maps for part in ("--map", text)),
        *(part for text in where for part in ("--where", text)),
        *([] if reading.spec is None else ["--spec", str(reading.spec)]),
        *([] if target_flops is None else ["--target", f"{target_flops:.6g}"]),
    ]
    return shlex.join(["planner", "design", sweep.source, *options, "--next", str(MORE_RUNS)])


def _edges(fit: Fit, edges: list[EdgeRun]) -> Iterator[str]:
    """In how many groups, in which direction; the table has the settings themselves."""
    swept = len(with_grid(fit.groups))
    for name, axis in _AXES.items():
        for side, end, more in (
            (Edge.UPPER, "largest", "larger"),
            (Edge.LOWER, "smallest", "smaller"),
        ):
            at_edge = [run for run in edges if run.beyond == name and run.side is side]
            if at_edge:
                yield (
                    f"Extend the grid to a {more} {axis} in {len(at_edge)} of the "
                    f"{wording.many(swept, 'group')} that have a grid: the {end} stable one tried "
                    "was the best, so the optimum is only bounded. The next settings are below."
                )


def _edge_table(edges: list[EdgeRun]) -> Table:
    """The cheapest come first."""
    rows = [
        (
            f"{'larger' if run.side is Edge.UPPER else 'smaller'} {_AXES[run.beyond]}",
            wording.count(run.params),
            wording.count(run.tokens),
            NONE if run.lr is None else wording.scientific(run.lr),
            NONE if run.batch_tokens is None else wording.count(run.batch_tokens),
            wording.scientific(run.flops),
        )
        for run in edges[:MOST_EDGES]
    ]
    left = len(edges) - len(rows)
    if left:
        rows.append((f"and {left} more", "", "", "", "", ""))
    head = ("grids to extend", "N", "D", "learning rate", "batch (tokens)", "FLOPs")
    return Table(head, tuple(rows)).without_empty_columns()


def _gain(found: NextAdvice, command: str) -> str:
    before, after = math.exp(found.found.half_before), math.exp(found.found.half_after)
    return (
        f"These {wording.many(len(found.settings), 'run')} up to "
        f"{wording.scientific(found.cap_flops)} FLOPs narrow N* at "
        f"{wording.scientific(found.target_flops)} FLOPs most: by the noise of the losses alone, "
        f"from {wording.factor(before)} to {wording.factor(after)} either way. `{command}` lists "
        "more, and takes other targets, caps and counts."
    )


def _runs(found: NextAdvice) -> Table:
    rows = []
    for place, setting in enumerate(found.settings, 1):
        rates = (
            NONE
            if setting.lrs is None
            else ", ".join(wording.scientific(rate) for rate in setting.lrs)
        )
        batch = setting.batch_tokens
        rows.append(
            (
                str(place),
                wording.count(setting.run.params),
                "" if setting.width is None else str(setting.width),
                wording.count(setting.run.tokens),
                wording.scientific(setting.flops),
                rates,
                NONE if batch is None else wording.count(batch),
                wording.factor(setting.run.factor_after),
            )
        )
    head = ("", "N", "width", "D", "FLOPs", "learning rate", "batch (tokens)", "N* then known to")
    return Table(head, tuple(rows), frozenset()).without_empty_columns()
