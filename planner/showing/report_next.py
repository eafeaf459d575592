"""What to run next: grids to extend first, then the runs that tell most about the best size."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner import wording
from planner.designing.next_advice import NextAdvice, NextWish, advise_next
from planner.designing.next_runs import Per
from planner.errors import InputError
from planner.fitting.fit import Fit
from planner.fitting.hyper import Edge, Group
from planner.showing.report_tables import NONE, Table

RUNS = 5


@dataclass(frozen=True)
class Next:
    """What to run next: in words, and the runs that tell most, where there are any."""

    advice: tuple[str, ...]
    runs: Table | None


def what_next(fit: Fit, target_flops: float | None) -> Next:
    """The runs that would shrink the interval of N* most, and the grids to extend before them."""
    try:
        found = advise_next(fit, NextWish(RUNS, target_flops, None, None, Per.RUN))
    except InputError as error:
        return Next(
            (
                *_edges(fit.groups),
                wording.sentence(str(error).removeprefix(f"{fit.sweep.source}: ")),
            ),
            None,
        )
    texts = [finding.text for finding in found.findings if finding.code != "edges_first"]
    advice = (*_edges(fit.groups), *map(wording.sentence, texts), _gain(found))
    return Next(advice, _runs(found))


def _edges(groups: Sequence[Group]) -> Iterator[str]:
    for name, edge_of in (
        ("learning rate", lambda group: group.lr_edge),
        ("batch", lambda group: group.batch_edge),
    ):
        counts = Counter(edge_of(group) for group in groups)
        for edge, end, more in (
            (Edge.UPPER, "largest", "larger"),
            (Edge.LOWER, "smallest", "smaller"),
        ):
            if counts[edge]:
                yield (
                    f"Extend the grid to a {more} {name} in {wording.many(counts[edge], 'group')}: "
                    f"the {end} stable one tried was the best, so the optimum is only bounded."
                )


def _gain(found: NextAdvice) -> str:
    before, after = math.exp(found.found.half_before), math.exp(found.found.half_after)
    return (
        f"These {wording.many(len(found.settings), 'run')} up to "
        f"{wording.scientific(found.cap_flops)} FLOPs narrow N* at "
        f"{wording.scientific(found.target_flops)} FLOPs most: by the noise of the losses alone, "
        f"from {wording.factor(before)} to {wording.factor(after)} either way. `planner design` "
        "lists more, and takes other targets, caps and counts."
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
