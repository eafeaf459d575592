"""What lies in a run's folder beside its checkpoints: its newest attempt, and who drives it."""

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scalewright.command import REQUEUE
from scalewright.errors import ScalewrightError
from scalewright.events import EVENTS_FILE, BrokenLine, read_events
from scalewright.train.fence import RUN_STATE
from scalewright.train.manifest import CHECKPOINTS, committed
from scalewright.train.place import ONLY_TRUSTED, SUMMARY, write_json
from scalewright.train.run import RunConfig

logger = logging.getLogger(__name__)


class RunStoppedError(ScalewrightError):
    """The run ended before its last step; the message says why, `exit_code` whether to retry."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def finished(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has taken all its steps."""
    path = folder / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else None
    return summary if summary and summary["steps"] == config.steps else None


def checkpoint_step(folder: Path) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    names = [path.name for path in committed(folder / CHECKPOINTS)]
    return int(names[0].removeprefix("step-")) if names else 0


def doubt(folder: Path) -> None:
    """Have attempts go on from trusted checkpoints only, until one of them takes steps."""
    (folder / ONLY_TRUSTED).touch()


def in_doubt(folder: Path) -> bool:
    return (folder / ONLY_TRUSTED).exists()


def believe(folder: Path) -> None:
    """What is saved from now on follows from what was trusted."""
    (folder / ONLY_TRUSTED).unlink(missing_ok=True)


def next_attempt(folder: Path, *, after: int = 0) -> int:
    """Count attempts over the whole life of the run, and fence those before: see train/fence.py.

    `after`: the last one that the caller counted. Where there were others since, another driver
    has taken the run over: two that fence each other in turn would both get nowhere.
    """
    path = folder / RUN_STATE
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"attempt": 0, "kept": {}}
    try:
        record |= json.loads(path.read_text())
    except FileNotFoundError:
        pass
    except ValueError as error:
        record["attempt"] = _last_attempt(folder)
        logger.warning(
            "%s is damaged (%s); attempts are counted on from %d, the last in %s", path, error,
            record["attempt"], EVENTS_FILE,
        )  # fmt: skip
    before: int = record["attempt"]
    if after and before > after:
        raise RunStoppedError(
            f"{folder}: another driver has begun attempt {before} since this one began {after}, "
            "and drives the run now; run the same command again where that one has ended",
            REQUEUE,
        )
    record["kept"][str(before)] = [each.name for each in committed(folder / CHECKPOINTS)]
    write_json(path, {"attempt": before + 1, "kept": record["kept"]})
    return before + 1


def _last_attempt(folder: Path) -> int:
    offset, last = 0, 0
    while True:
        events, after = read_events(folder / EVENTS_FILE, offset)
        if after == offset:
            return last
        offset = after
        last = max([last, *(e.attempt for e in events if not isinstance(e, BrokenLine))])


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Two drivers on one run would write the same files; the second one is refused.

    The lock lies beside the run's folder, so that it holds also while the folder is moved.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStoppedError(
                f"{folder} is being trained by another driver on this machine; wait for it, or "
                "choose another name=...",
                2,
            ) from None
        yield
