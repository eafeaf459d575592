"""A table of runs -> validated sweeps: one, or one for each value of --group.

A row that cannot be used is rejected with its place and the reason; the rest goes on. What would
silently bend every law (mixed data, mixed schedules, nothing left) is an `InputError`; what may is
a finding (checks.py).

Of the platform's own records with one run key the first finished one (done or diverged) is kept: a
failed run may be tried again, and what later runs were decided on stays.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.findings import Finding
from planner.reading.checks import check
from planner.reading.expressions import (
    Condition,
    Expression,
    as_text,
    column_or_canonical,
    number_of,
    parse_condition,
)
from planner.reading.rows import SIZES, Reading, build
from planner.reading.runs import Accounting, Rejection, Run, Stopped, counted, rows_in_words
from planner.reading.size_checks import REFUSED_SHARE, contradicting, contradiction_finding
from planner.reading.sources import Row, Table, read_table
from planner.reading.spec import ReadOptions, Spec, accounting_of, is_native, read_spec, resolve

__all__ = ["Accounting", "Rejection", "Run", "Stopped", "Sweep", "read_sweeps"]

_LISTED = 8  # values that a message names
_UNIFORM = {
    "data_digest": "losses on different data cannot be compared",
    "schedule": "a loss under one learning-rate schedule says nothing of another (nor does one "
    "mid-decay)",
}


@dataclass(frozen=True, slots=True)
class Sweep:
    """The validated table of one sweep, or of one group of it.

    `group` is a value of `group_column`. `sha256` is that of the whole source; `rows` counts those
    read, after --where and before rejection. `noise` is the relative standard deviation of the loss
    between seeds, where stated. `settings` is the whole of `sweep.toml` or --spec, None without
    one. `schedule` is the one learning-rate schedule of all runs, where the table has such a
    column.
    """

    source: str
    folder: Path | None
    group: str | None
    sha256: str
    rows: int
    runs: tuple[Run, ...]
    stopped: tuple[Stopped, ...]
    rejections: tuple[Rejection, ...]
    accounting: Accounting
    noise: float | None
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any] | None
    schedule: str | None = None
    group_column: str | None = None


def read_sweeps(source: str, options: ReadOptions) -> list[Sweep]:
    """The sweep at `source`, or one for each value of --group in order of first appearance.

    `InputError` where the source, the options or the spec cannot be used as they are, and where a
    sweep or group has no run a law could rest on.
    """
    table = read_table(source)
    spec = read_spec(table.folder, options)
    columns = resolve(spec, table.columns, table.place)
    conditions = [parse_condition(text, table.columns, columns) for text in spec.where]
    rows = _kept(table, conditions)
    accounting, reading = _reading(table, spec, columns)
    if spec.group is None:
        return [_sweep(table, spec, accounting, reading, rows, table.faults, None)]
    by = column_or_canonical(spec.group, table.columns, columns, "--group")
    groups, ungrouped = _split(rows, by, spec.group)
    faults = (*table.faults, *ungrouped)
    return [
        _sweep(table, spec, accounting, reading, part, faults, group)
        for group, part in groups.items()
    ]


def _kept(table: Table, conditions: Sequence[Condition]) -> Sequence[Row]:
    """The rows for which every condition holds; `InputError` for one that leaves none."""
    rows: Sequence[Row] = table.rows
    for condition in conditions:
        left = [row for row in rows if condition.holds(row.cells)]
        if rows and not left:
            raise InputError(
                f"{table.place}: --where {condition.text!r} keeps none of {len(rows)} rows; "
                f"there {_values(condition.expression, rows)}"
            )
        rows = left
    return rows


def _values(expression: Expression, rows: Sequence[Row]) -> str:
    values = Counter(as_text(expression.value(row.cells)) for row in rows)
    numbers = [number for text in values if (number := number_of(text)) is not None]
    if len(values) > _LISTED and len(numbers) == len(values):
        return f"the values go from {min(numbers):.6g} to {max(numbers):.6g}"
    listed = [f"{text or 'no value'} ({count})" for text, count in values.most_common(_LISTED)]
    more = f" and {len(values) - _LISTED} more" if len(values) > _LISTED else ""
    return f"the values are {', '.join(listed)}{more}"


def _split(
    rows: Iterable[Row], by: Expression, name: str
) -> tuple[dict[str, list[Row]], list[Rejection]]:
    """Rows by the group's value; those without one belong to none and are named in each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(as_text(by.value(row.cells)), []).append(row)
    without = groups.pop("", [])
    if not groups:
        raise InputError(f"--group {name!r}: no row has a value there")
    return groups, [Rejection(row.number, f"no value of --group {name!r}") for row in without]


def _reading(
    table: Table, spec: Spec, columns: Mapping[str, Expression]
) -> tuple[Accounting, Reading]:
    """The accounting with what had to be assumed, and how each row is to be read."""
    accounting = accounting_of(spec, table.columns)
    derived = next((name for name in SIZES if name not in columns), None)
    if derived and accounting.flops == "exact":
        raise InputError(
            f"{table.place}: [accounting] flops is 'exact', but no column gives {derived}, and "
            f'only C = 6ND could; map {derived}, or state flops = "6nd"'
        )
    if derived:
        accounting = replace(accounting, flops="6nd")
    return accounting, Reading(columns, derived, spec.loss_in_bits, is_native(table.columns))


def _sweep(
    table: Table,
    spec: Spec,
    accounting: Accounting,
    reading: Reading,
    rows: Sequence[Row],
    faults: Sequence[Rejection],
    group: str | None,
) -> Sweep:
    built = [build(row, reading) for row in rows]
    if reading.native:
        built = _first_finished(built)
    distinct = _without_copies(built)
    off = _contradicting(distinct, reading, accounting)
    kept = [_without_contradiction(item, off) for item in distinct]
    runs = tuple(item for item in kept if isinstance(item, Run))
    stopped = tuple(item for item in kept if isinstance(item, Stopped))
    rejected = [*faults, *(item for item in kept if isinstance(item, Rejection))]
    place = table.place if group is None else f"{table.place} [{spec.group}={group}]"
    way_out = "" if group is None else f"; leave the group out with --where {spec.group}!={group}"
    _check_usable(place, runs, stopped, rejected, way_out)
    cells = {row.number: row.cells for row in rows}
    used = [cells[run.row] for run in runs]
    for column, why in _UNIFORM.items():
        _check_uniform(place, used, column, why)
    schedules = [as_text(row["schedule"]) for row in used if row.get("schedule") is not None]
    return Sweep(
        source=table.source,
        folder=table.folder,
        group=group,
        sha256=table.sha256,
        rows=len(rows) + len(faults),
        runs=runs,
        stopped=stopped,
        rejections=tuple(sorted(rejected, key=lambda rejection: rejection.row)),
        accounting=accounting,
        noise=spec.noise,
        findings=(
            *_read_findings(spec, reading, rows),
            *_copies_finding(built, distinct),
            *contradiction_finding(off, len(runs) + len(off), accounting),
            *check(runs, stopped, accounting, left_out=len(off)),
        ),
        settings=spec.settings,
        schedule=schedules[0] if schedules else None,
        group_column=spec.group,
    )


Built = Run | Stopped | Rejection


def _first_finished(built: Sequence[Built]) -> list[Built]:
    """Keep one record a run key; the others become rejections that name the one kept."""
    kept: dict[str, Run | Stopped] = {}
    for item in built:
        if isinstance(item, Rejection):
            continue
        earlier = kept.get(item.run)
        if earlier is None or (_failed(earlier) and not _failed(item)):
            kept[item.run] = item
    return [
        item
        if isinstance(item, Rejection) or kept[item.run] is item
        else Rejection(
            item.row, f"run {item.run!r} is also in row {kept[item.run].row}, which is kept"
        )
        for item in built
    ]


def _failed(item: Run | Stopped) -> bool:
    return isinstance(item, Stopped) and item.status == "failed"


def _without_copies(built: Sequence[Built]) -> list[Built]:
    """Rows equal in every canonical value count once; the later ones become rejections."""
    first: dict[Run | Stopped, int] = {}
    distinct: list[Built] = []
    for item in built:
        if isinstance(item, Rejection):
            distinct.append(item)
            continue
        unnamed = item.run == f"row {item.row}"
        row = first.setdefault(replace(item, row=0, run="" if unnamed else item.run), item.row)
        copy = Rejection(item.row, f"a copy of row {row}: every canonical value is equal")
        distinct.append(item if row == item.row else copy)
    return distinct


def _contradicting(
    built: Sequence[Built], reading: Reading, accounting: Accounting
) -> dict[int, float]:
    """Rows whose FLOPs cannot be those of their N and D, where the table gives all three."""
    runs = [item for item in built if isinstance(item, Run)]
    return contradicting(runs, accounting) if runs and reading.derived is None else {}


def _without_contradiction(item: Built, off: Mapping[int, float]) -> Built:
    if not isinstance(item, Run) or item.row not in off:
        return item
    return Rejection(
        item.row,
        f"flops {item.flops:.3g} are x{off[item.row]:.3g} what params {item.params:.4g} and tokens "
        f"{item.tokens:.4g} say in rows of like size: one of the three is wrong",
    )


def _copies_finding(built: Sequence[Built], distinct: Sequence[Built]) -> list[Finding]:
    copies = [b.row for b, d in zip(built, distinct, strict=True) if b is not d]
    if not copies:
        return []
    return [
        Finding(
            "duplicate_rows",
            f"{counted(len(copies), 'row')} equal to an earlier one in every canonical value "
            f"({rows_in_words(copies)}): left out. If they are runs of other seeds, give the "
            "table a seed column",
        )
    ]


def _read_findings(spec: Spec, reading: Reading, rows: Sequence[Row]) -> list[Finding]:
    """What the reading itself had to assume or change."""
    found: list[Finding] = []
    if reading.derived and spec.accounting.flops is None:
        found.append(
            Finding(
                "flops_assumed_6nd",
                f"no column gives {reading.derived}, so it is taken from C = 6ND (attention and "
                'head not counted); map it, or state [accounting] flops = "6nd" in sweep.toml',
            )
        )
    if reading.loss_in_bits:
        found.append(
            Finding("loss_in_bits", "losses are in bits as stated; all are converted to nats")
        )
    negative = [row.number for row in rows if (_loss(row, reading) or 0) < 0]
    if negative:
        found.append(
            Finding(
                "negative_loss",
                f"{counted(len(negative), 'row')} with a loss below 0 "
                f"({rows_in_words(negative)}): left out. If the loss was shifted or is a "
                "log-likelihood, map the column of the loss itself",
                refuses=len(negative) > REFUSED_SHARE * len(rows),
            )
        )
    labels = {as_text(row.cells.get("group")) for row in rows}
    if len(labels) > 1:
        found.append(
            Finding(
                "groups_together",
                f"the table has a column 'group' with {len(labels)} values, which are fitted "
                "together; --group group fits each alone",
            )
        )
    return found


def _loss(row: Row, reading: Reading) -> float | None:
    return number_of(reading.columns["loss"].value(row.cells))


def _check_usable(
    place: str,
    runs: Sequence[Run],
    stopped: Sequence[Stopped],
    rejected: Sequence[Rejection],
    way_out: str,
) -> None:
    if runs:
        return
    statuses = Counter(run.status for run in stopped)
    parts = [f"{count} {status}" for status, count in sorted(statuses.items())]
    if rejected:
        first = rejected[0]
        parts.append(f"{len(rejected)} rejected, the first: row {first.row}: {first.reason}")
    raise InputError(f"{place}: no finished run with a loss ({', '.join(parts)}){way_out}")


def _check_uniform(place: str, used: Sequence[Mapping[str, Any]], column: str, why: str) -> None:
    values = Counter(as_text(row[column]) for row in used if row.get(column) is not None)
    if len(values) > 1:
        listed = ", ".join(f"{value} ({count} runs)" for value, count in values.most_common())
        raise InputError(
            f"{place}: mixed {column}: {listed}; {why}. "
            f"Take one with --where {column}=VALUE, or fit each with --group {column}"
        )
