"""How far a run's event log has been carried to MLflow, and what goes out next. No MLflow here.

`Progress` is kept in `track.json` beside the log. `advance` is the pure decision: from the events
read it picks what to send, and says how far the log will then have been carried.
"""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from scalewright.errors import ConfigError, ScalewrightError
from scalewright.events import Artifact, BrokenLine, Event, Metrics, lines_after

PROGRESS_FILE = "track.json"
_VALUE_CHARACTERS = 6000  # MLflow's limit for the value of a param
_LONGEST_PAUSE_S = 60.0
_NAMED_UPLOADS = 3  # in a message
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. /-]{0,199}")


class Point(NamedTuple):
    """One value of one metric; `time_ms` is wall time, milliseconds since 1970."""

    name: str
    value: float
    time_ms: int
    step: int


class Upload(NamedTuple):
    """A local file or folder, and the folder it gets among the run's artifacts."""

    path: str
    folder: str


class End(NamedTuple):
    """The run's final status, and the wall time it was reached."""

    status: str
    time_s: float


@dataclass(frozen=True)
class Pause:
    """How long not to try again: twice as long after every failure in a row."""

    failures: int = 0
    until_s: float = 0.0  # monotonic
    reason: str = ""

    def is_over(self) -> bool:
        return time.monotonic() >= self.until_s

    def longer(self, error: Exception) -> "Pause":
        """The pause after one more failure: 1, 2, 4 ... 60 seconds."""
        pause_s = min(_LONGEST_PAUSE_S, 2.0 ** min(self.failures, 10))
        reason = f"{type(error).__name__}: {error}"
        return Pause(self.failures + 1, time.monotonic() + pause_s, reason)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the events go and under which name; `tracking_uri` without its password."""

    tracking_uri: str
    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]
    artifacts: list[str]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What MLflow has been sent: everything before byte `offset`, except `uploads`.

    `key` is ours, made before the MLflow run: by its tag a run is found whose id never arrived.
    `end` is None while training goes on.
    """

    target: Target
    key: str
    started_s: float
    run_id: str | None = None
    offset: int = 0
    attempt: int = -1
    highest_step: dict[str, int] = field(default_factory=dict)
    uploads: tuple[Upload, ...] = ()
    broken_lines: int = 0
    first_broken: str | None = None
    end: End | None = None

    def with_uploads(self, uploads: Sequence[Upload]) -> "Progress":
        """The progress with `uploads` waiting too, each once."""
        return replace(self, uploads=tuple(dict.fromkeys((*self.uploads, *uploads))))


def advance(
    progress: Progress, events: Sequence[Event], offset: int
) -> tuple[list[Point], Progress]:
    """Pick the points to send from `events`, which end at byte `offset`, and the progress after.

    A metric's points go out in growing order of steps; a step not beyond its highest was sent by
    an attempt before this one (or twice by this one) and is left out.
    """
    points: list[Point] = []
    highest = dict(progress.highest_step)
    for event in events:
        if isinstance(event, Metrics):
            for name, value in event.values.items():
                if event.step > highest.get(name, -1):
                    highest[name] = event.step
                    points.append(Point(name, value, int(event.time_s * 1000), event.step))
    broken = [event for event in events if isinstance(event, BrokenLine)]
    first = f"byte {broken[0].offset}: {broken[0].reason}" if broken else None
    attempts = [event.attempt for event in events if not isinstance(event, BrokenLine)]
    after = replace(
        progress,
        offset=offset,
        attempt=max([progress.attempt, *attempts]),
        highest_step=highest,
        broken_lines=progress.broken_lines + len(broken),
        first_broken=progress.first_broken or first,
    )
    return points, after.with_uploads([_upload(e) for e in events if isinstance(e, Artifact)])


def left_over(progress: Progress, log: Path, ended: bool) -> list[str]:
    """In words what MLflow has not got: lines of the log, artifacts, and the end unless `ended`."""
    left = []
    try:
        if lines := lines_after(log, progress.offset):
            left.append(f"{lines} lines of {log} from byte {progress.offset} on")
    except OSError as error:
        left.append(f"{log}, which cannot be read ({error})")
    for path, _ in progress.uploads[:_NAMED_UPLOADS]:
        left.append(path if os.path.exists(path) else f"{path} (no such file)")
    if (more := len(progress.uploads) - _NAMED_UPLOADS) > 0:
        left.append(f"{more} more artifacts")
    if progress.end and not ended:
        left.append(f"the final status {progress.end.status}")
    return left


def new_texts(
    wanted: Mapping[str, str], params: Mapping[str, str], tags: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Split the `wanted` params into those to log and, as params are immutable, tags for changes.

    `params` and `tags` are what the MLflow run has. A param that differs becomes a tag
    `changed.<name>`, which later changes overwrite, also a change back.
    """
    now = {name: tags.get(f"changed.{name}", value) for name, value in params.items()}
    fresh = {name: value for name, value in wanted.items() if name not in now}
    changed = {
        f"changed.{name}": value
        for name, value in wanted.items()
        if name in now and now[name] != value
    }
    return fresh, changed


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as `outer.inner` -> text that MLflow takes; `ConfigError` for a bad name.

    A text over MLflow's limit is cut, and ends with its length and a digest.
    """
    texts = {name: _fitted(str(value)) for name, value in _flat(values, "")}
    for name in texts:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"param or tag name {name!r}: expected at most 200 letters, digits, "
                "'_', '-', '.', '/' and spaces"
            )
    return texts


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _fitted(text: str) -> str:
    if len(text) <= _VALUE_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text[: _VALUE_CHARACTERS - 60]}... ({len(text)} characters, sha256 {digest})"


def load_progress(run_dir: Path) -> Progress | None:
    """Read `track.json`; None when there is none, `ScalewrightError` when it cannot be used."""
    path = run_dir / PROGRESS_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        uploads = tuple(Upload(*upload) for upload in record.pop("uploads"))
        ended = record.pop("end")
        end = End(*ended) if ended else None
        target = Target(**record.pop("target"))
        return Progress(target=target, uploads=uploads, end=end, **record)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ScalewrightError(
            f"{path}: not a record of what was sent to MLflow ({error!r}); "
            "remove it to send the whole event log again, as a new MLflow run"
        ) from None


def save_progress(run_dir: Path, progress: Progress) -> None:
    """Write `track.json` atomically."""
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / f"{PROGRESS_FILE}.{os.getpid()}.part"
    part.write_text(json.dumps(dataclasses.asdict(progress), indent=1), encoding="utf-8")
    os.replace(part, run_dir / PROGRESS_FILE)


def _upload(artifact: Artifact) -> Upload:
    parts = [artifact.folder] if artifact.folder else []
    if artifact.step is not None:
        parts.append(f"step-{artifact.step:08d}")
    return Upload(str(artifact.path), "/".join(parts))
