"""A sweep on disk -> one validated table: `runs.jsonl`, one record a run, and `sweep.toml`.

A line that cannot be used is rejected with its place and the reason; the rest goes on. What would
silently bend every law (mixed data, mixed schedules, nothing left) is an error.

Of records with one run key the first finished one (done or diverged) is kept: a failed run may be
tried again, and what later runs were decided on stays.
"""

import hashlib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

RECORDS_FILE = "runs.jsonl"
SWEEP_FILE = "sweep.toml"
SCHEMA_VERSION = 1
OFF_BUDGET_LIMIT = 0.10

_STATUSES = ("done", "diverged", "failed")
_TEXTS = ("run",)
_POSITIVE = ("width", "depth", "block_params", "budget_flops", "lr_peak")
_DONE_TEXTS = ("schedule", "data_digest")
_DONE_POSITIVE = ("flops", "tokens", "steps", "batch_tokens", "loss")
_WHOLE = ("width", "depth", "block_params", "steps", "seed")


@dataclass(frozen=True, slots=True)
class Record:
    """A run that reached its budget. `tokens` are visual; `block_params` is N (model/shape.py)."""

    run: str
    line: int
    width: int
    depth: int
    block_params: int
    budget_flops: float
    flops: float
    tokens: float
    steps: int
    batch_tokens: float
    lr_peak: float
    seed: int
    schedule: str
    data_digest: str
    loss: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that diverged or failed: no loss, but divergence bounds the learning rate."""

    run: str
    line: int
    status: str
    width: int
    block_params: int
    budget_flops: float
    lr_peak: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line that was not used, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Sweep:
    """The validated table of one sweep.

    `settings` is the whole of `sweep.toml`, None where there is none (a sweep of another platform).
    """

    runs_path: Path
    runs_sha256: str
    records: tuple[Record, ...]
    stopped: tuple[Stopped, ...]
    rejections: tuple[Rejection, ...]
    settings: Mapping[str, Any] | None

    @property
    def folder(self) -> Path:
        return self.runs_path.parent

    @property
    def largest_budget_flops(self) -> float:
        return max(record.budget_flops for record in self.records)

    def stopped_as(self, status: str) -> tuple[Stopped, ...]:
        return tuple(run for run in self.stopped if run.status == status)


def locate(path: Path) -> Path:
    """The records file of the one sweep at `path`: a file, a folder, or a folder's sub-folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give a sweep folder or a {RECORDS_FILE}")
    if (path / RECORDS_FILE).is_file():
        return path / RECORDS_FILE
    found = sorted(path.glob(f"*/{RECORDS_FILE}"))
    if not found:
        raise InputError(
            f"{path}: no {RECORDS_FILE} here or one folder below; run jobs/sweep.py to make a sweep"
        )
    if len(found) > 1:
        listed = ", ".join(str(file.parent) for file in found)
        raise InputError(f"{path}: holds {len(found)} sweeps; name one of them: {listed}")
    return found[0]


def read_sweep(path: Path) -> Sweep:
    """Read and validate the sweep at `path`; `InputError` where no law could be trusted to it."""
    runs_path = locate(path)
    content = runs_path.read_bytes()
    records: list[Record] = []
    stopped: list[Stopped] = []
    rejections: list[Rejection] = []
    for parsed in _first_finished(_parse_lines(content)):
        if isinstance(parsed, Record):
            records.append(parsed)
        elif isinstance(parsed, Stopped):
            stopped.append(parsed)
        else:
            rejections.append(parsed)
    _check_usable(runs_path, records, stopped, rejections)
    _check_uniform(runs_path, records, "data_digest", "losses on different data cannot be compared")
    _check_uniform(
        runs_path,
        records,
        "schedule",
        "a loss under one learning-rate schedule says nothing of another (nor does one mid-decay)",
    )
    return Sweep(
        runs_path=runs_path,
        runs_sha256=hashlib.sha256(content).hexdigest(),
        records=tuple(records),
        stopped=tuple(stopped),
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.line)),
        settings=_read_settings(runs_path.parent / SWEEP_FILE),
    )


def _parse_lines(content: bytes) -> Iterator[Record | Stopped | Rejection]:
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            yield Rejection(number, f"not valid JSON: {error}")
            continue
        reason = _fault(fields)
        yield _build(fields, number) if reason is None else Rejection(number, reason)


def _fault(fields: Any) -> str | None:
    """Why a line is no usable record, None if it is one."""
    if not isinstance(fields, dict):
        return f"a {type(fields).__name__}, not an object with fields"
    if fields.get("schema_version") != SCHEMA_VERSION:
        return f"schema_version is {fields.get('schema_version')!r}; this planner reads 1"
    if fields.get("status") not in _STATUSES:
        return f"status is {fields.get('status')!r}; allowed: {', '.join(_STATUSES)}"
    done = fields["status"] == "done"
    texts = _TEXTS + (_DONE_TEXTS if done else ())
    positive = _POSITIVE + (_DONE_POSITIVE if done else ())
    checks: list[tuple[tuple[str, ...], Callable[[str, Any], str | None]]] = [
        (texts, _text_fault),
        (positive, _positive_fault),
        (("seed",), _whole_fault),
        (tuple(name for name in _WHOLE if name in positive), _whole_fault),
    ]
    for names, check in checks:
        for name in names:
            fault = check(name, fields[name]) if name in fields else f"field {name!r} is missing"
            if fault is not None:
                return fault
    return _off_budget(fields) if done else None


def _text_fault(name: str, value: Any) -> str | None:
    return None if isinstance(value, str) and value else f"{name} is {value!r}; expected text"


def _positive_fault(name: str, value: Any) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return f"{name} is {value!r}; expected a number"
    if not math.isfinite(value):
        return f"{name} is {value}; expected a finite number (diverged runs have status diverged)"
    return None if value > 0 else f"{name} is {value}; it must be above 0"


def _whole_fault(name: str, value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole else f"{name} is {value!r}; expected a whole number"


def _off_budget(fields: Mapping[str, Any]) -> str | None:
    off = fields["flops"] / fields["budget_flops"] - 1
    if abs(off) <= OFF_BUDGET_LIMIT:
        return None
    return (
        f"flops {fields['flops']:.3g} is {off:+.0%} off budget_flops {fields['budget_flops']:.3g} "
        f"(limit {OFF_BUDGET_LIMIT:.0%}): not on its isoFLOP curve"
    )


def _build(fields: Mapping[str, Any], line: int) -> Record | Stopped:
    kind = Record if fields["status"] == "done" else Stopped
    names = [name for name in kind.__dataclass_fields__ if name != "line"]
    return kind(line=line, **{name: fields[name] for name in names})


def _first_finished(
    parsed: Iterator[Record | Stopped | Rejection],
) -> Iterator[Record | Stopped | Rejection]:
    """Keep one record per run key; the others become rejections that name the one kept."""
    kept: dict[str, Record | Stopped] = {}
    for item in parsed:
        if isinstance(item, Rejection):
            yield item
            continue
        earlier = kept.get(item.run)
        if earlier is None or (_failed(earlier) and not _failed(item)):
            kept[item.run] = item
        dropped, holder = (earlier, item) if kept[item.run] is item else (item, earlier)
        if dropped is not None and holder is not None:
            reason = f"run {item.run!r} is also on line {holder.line}, which is kept"
            yield Rejection(dropped.line, reason)
    yield from kept.values()


def _failed(item: Record | Stopped) -> bool:
    return isinstance(item, Stopped) and item.status == "failed"


def _check_usable(
    path: Path, records: list[Record], stopped: list[Stopped], rejections: list[Rejection]
) -> None:
    if records:
        return
    if not stopped and not rejections:
        raise InputError(f"{path}: holds no records; run jobs/sweep.py to make some")
    counted = Counter(run.status for run in stopped)
    parts = [f"{count} {status}" for status, count in sorted(counted.items())]
    if rejections:
        first = rejections[0]
        parts.append(f"{len(rejections)} rejected, the first: {path}:{first.line}: {first.reason}")
    raise InputError(f"{path}: no finished run with a loss ({'; '.join(parts)})")


def _check_uniform(path: Path, records: list[Record], field: str, why: str) -> None:
    values = Counter(str(getattr(record, field)) for record in records)
    if len(values) > 1:
        listed = ", ".join(f"{value} ({count} runs)" for value, count in values.most_common())
        raise InputError(
            f"{path}: mixed {field}: {listed}; {why}. Split the file by {field} and fit each part"
        )


def _read_settings(path: Path) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
