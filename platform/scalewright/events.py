"""The event log of a run: what happened, one JSON line each, written at once and read as it grows.

Rank 0 appends with `EventLog`; `read_events` reads whole lines from a byte offset. The log is
the primary record of a run. Everything else (MLflow, progress lines, reports) is made from it.
"""

import json
import logging
import math
import operator
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalewright.errors import FencedError, ScalewrightError

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
METRIC_NAME_LIMIT = 250  # characters, MLflow's limit
_METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_STEP_LIMIT = 2**63  # a 64-bit column in MLflow's database
_TIME_LIMIT_S = 1e11  # the year 5138; a later time is not a time
_RESERVED = frozenset({"time_s", "attempt", "kind"})
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_READ_BYTES = 64 * 1024  # about a thousand metrics


@dataclass(frozen=True, slots=True)
class Metrics:
    """The values of some metrics at one step. `time_s` is wall time, seconds since 1970."""

    time_s: float
    attempt: int
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder worth keeping, to be shown in `folder` of the run's artifacts."""

    time_s: float
    attempt: int
    path: Path
    folder: str
    step: int | None


@dataclass(frozen=True, slots=True)
class Notice:
    """Anything else that happened: a new attempt, a checkpoint, a verdict."""

    time_s: float
    attempt: int
    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A whole line that is no event; `offset` is the byte where it starts."""

    offset: int
    reason: str


Event = Metrics | Artifact | Notice | BrokenLine


class EventLog:
    """Appends events to a file, one `write` a line, so that a kill loses at most one line.

    A full or failing disk does not stop the caller: the lines lost are counted, told once as a
    warning, and noted in the log as a `lines_lost` event when it can be written again.

    `fence` is asked before each line, such as `Fence.check`: once it raises `FencedError`, another
    attempt writes this log, and the lines of this one are dropped, which is told once.
    """

    def __init__(self, path: Path, attempt: int, fence: Callable[[], None] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._attempt = attempt
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = _ends_inside_a_line(self._file)  # a predecessor died while writing
        self._lost = 0
        self._fence = fence
        self._fenced = False
        self._lock = threading.Lock()

    def metrics(self, step: int, values: Mapping[str, float], time_s: float | None = None) -> None:
        """Log the values of metrics named `group/name`, such as `loss/train`, at `step` >= 0.

        `time_s` is the wall time for which they hold, where that is not now.
        """
        for name in values:
            check_metric_name(name)
        numbers = {name: _strict(float(value)) for name, value in values.items()}
        held = {} if time_s is None else {"time_s": time_s}
        self._append("metrics", {**held, "step": _checked_step(step), "values": numbers})

    def artifact(self, path: Path, folder: str, step: int | None = None) -> None:
        """Log that the file or folder at `path` is complete and belongs into `folder`.

        A path under the log's own folder is stored relative to it, so that it is still found
        where the folder is mounted elsewhere.
        """
        absolute, home = path.resolve(), self._path.parent.resolve()
        stored = absolute.relative_to(home) if absolute.is_relative_to(home) else absolute
        fields: dict[str, Any] = {"path": str(stored), "folder": _checked_folder(folder)}
        if step is not None:
            fields["step"] = _checked_step(step)
        self._append("artifact", fields)

    def event(self, kind: str, /, **fields: Any) -> None:
        """Log something else, with fields of plain JSON values.

        The texts "nan", "inf" and "-inf" stand for the floats, which JSON does not have.
        """
        if kind in ("metrics", "artifact"):
            raise ValueError(f"event kind {kind!r} has its own method: EventLog.{kind}")
        if taken := _RESERVED & fields.keys():
            raise ValueError(f"event {kind!r}: field names {sorted(taken)} are taken; rename them")
        self._append(kind, _strict(fields))

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, kind: str, fields: Mapping[str, Any]) -> None:
        line = self._line(kind, fields)
        with self._lock:
            if self._fenced or self._is_fenced():
                return
            if self._lost:
                line = self._line("lines_lost", {"count": self._lost}) + line
            if self._torn:
                line = b"\n" + line
            try:
                written = os.write(self._file, line)
            except OSError as error:
                self._lose(str(error))
                return
            if written < len(line):
                self._torn = True
                self._lose("the disk took only a part of a line")
            else:
                self._torn, self._lost = False, 0

    def _is_fenced(self) -> bool:
        """Only a fence that says so counts: one that cannot be read must not cost lines."""
        try:
            if self._fence is not None:
                self._fence()
        except FencedError as error:
            self._fenced = True
            logger.warning("%s: no more events are written: %s", self._path, error)
        except (OSError, ScalewrightError) as error:
            logger.warning("%s: whether this attempt is fenced is unknown: %s", self._path, error)
        return self._fenced

    def _line(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        head = {"time_s": time.time(), "attempt": self._attempt, "kind": kind}
        return json.dumps({**head, **fields}, allow_nan=False).encode() + b"\n"

    def _lose(self, reason: str) -> None:
        self._lost += 1
        if self._lost == 1:
            logger.warning("%s: events are being lost: %s; free its disk", self._path, reason)


def read_events(path: Path, offset: int, max_bytes: int = _READ_BYTES) -> tuple[list[Event], int]:
    """Read the whole lines from byte `offset` on, at most about `max_bytes` of them at a time.

    Returns the events and the offset to go on from. A last line without its end waits for the
    next call; a line that is no event comes back as `BrokenLine`. No file yet is no events.
    Raises `ValueError` when the file is shorter than `offset`: it is not the file read before.
    """
    if not path.exists() and offset == 0:
        return [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < offset:
            raise ValueError(f"{path} has {size} bytes, but {offset} were read before: it was cut")
        file.seek(offset)
        data = file.read(max_bytes)
        if len(data) == max_bytes and not data.endswith(b"\n"):
            data += file.readline()
    events: list[Event] = []
    for line in data.split(b"\n")[:-1]:
        if line.strip():
            events.append(_parse(line, offset, path.parent))
        offset += len(line) + 1
    return events, offset


def log_size(path: Path) -> int:
    """Bytes in the log; 0 when there is none yet."""
    return path.stat().st_size if path.exists() else 0


def lines_after(path: Path, offset: int) -> int:
    """How many whole lines there are from byte `offset` on."""
    if log_size(path) <= offset:
        return 0
    with path.open("rb") as file:
        file.seek(offset)
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def check_metric_name(name: str) -> None:
    """Raise `ValueError` unless `name` is `group/name` in letters, digits, `_`, `-` and `.`."""
    if len(name) > METRIC_NAME_LIMIT or not _METRIC_NAME.fullmatch(name):
        raise ValueError(
            f"metric name {name!r}: expected group/name such as loss/train, in letters, digits, "
            f"'_', '-' and '.', at most {METRIC_NAME_LIMIT} characters"
        )


def _parse(line: bytes, offset: int, folder: Path) -> Event:
    try:
        return _event(json.loads(line), folder)
    except KeyError as error:
        return BrokenLine(offset, f"field {error} is missing")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return BrokenLine(offset, str(error))


def _event(record: dict[str, Any], folder: Path) -> Event:
    time_s, attempt = float(record.pop("time_s")), operator.index(record.pop("attempt"))
    kind = record.pop("kind")
    if not 0 <= time_s < _TIME_LIMIT_S:
        raise ValueError(f"time_s {time_s} is not a time")
    if kind == "metrics":
        values = {name: float(value) for name, value in record["values"].items()}
        for name in values:
            check_metric_name(name)
        return Metrics(time_s, attempt, _checked_step(record["step"]), values)
    if kind == "artifact":
        step = None if record.get("step") is None else _checked_step(record["step"])
        place = folder / record["path"]
        return Artifact(time_s, attempt, place, _checked_folder(record["folder"]), step)
    return Notice(time_s, attempt, str(kind), _loose(record))


def _checked_step(step: int) -> int:
    number = operator.index(step)
    if not 0 <= number < _STEP_LIMIT:
        raise ValueError(f"step {step}: expected 0 <= step < 2**63")
    return number


def _checked_folder(folder: str) -> str:
    if folder.startswith("/") or ".." in folder.split("/"):
        raise ValueError(f"artifact folder {folder!r}: expected a relative one without '..'")
    return folder


def _strict(value: Any) -> Any:
    """`value` with non-finite floats as text: JSON has no NaN, and other readers refuse it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _loose(value: Any) -> Any:
    """The inverse of `_strict`."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _loose(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_loose(item) for item in value]
    return value


def _ends_inside_a_line(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
