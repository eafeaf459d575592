"""The last words of ranks: how each ended, when, and the traceback, in the run's folder.

Ray tells neither the time nor the order of errors, and only those of workers that are alive.
"""

import json
import logging
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from scalewright.cluster.classify import RankError
from scalewright.errors import CorruptionError, ScalewrightError
from scalewright.health.machine import identify
from scalewright.train.place import RunPlace, write_json

logger = logging.getLogger(__name__)

WORDS = "words"


def leave_word(place: RunPlace, rank: int, error: Exception) -> None:
    """Write down how this rank ended and when: Ray tells neither the time nor the order."""
    record = asdict(_as_error(rank, error)) | {"traceback": traceback.format_exc()}
    folder = _words(place.folder, place.attempt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"rank-{rank:05d}.json", record)
    except OSError as disk:
        logger.warning("%s: the last word is lost: %s", folder, disk)


def last_words(folder: Path, attempt: int) -> list[RankError]:
    """What the ranks of an attempt left behind, as far as the storage tells."""
    found = []
    try:
        for path in sorted(_words(folder, attempt).glob("rank-*.json")):
            record = json.loads(path.read_text())
            record.pop("traceback")
            found.append(RankError(**record | {"kinds": tuple(record["kinds"])}))
    except OSError as error:
        logger.warning("last words cannot be read: %s", error)
    return found


def _words(folder: Path, attempt: int) -> Path:
    return folder / WORDS / f"attempt-{attempt:05d}"


def _as_error(rank: int, error: BaseException) -> RankError:
    return RankError(
        rank,
        tuple(kind.__name__ for kind in type(error).__mro__[:-1]),
        str(error),
        time.time(),
        machine=identify().serial,
        exit_code=error.exit_code if isinstance(error, ScalewrightError) else None,
        culprit=error.culprit if isinstance(error, CorruptionError) else None,
        confidence=error.confidence if isinstance(error, CorruptionError) else 1.0,
    )


class LastWords:
    """What the ranks of an attempt left behind; storage that hangs holds nobody up."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._found: list[RankError] = []
        self._reader: threading.Thread | None = None

    def look(self, within_s: float) -> list[RankError]:
        """The words that are there now; those of the last look if that takes longer."""
        if self._reader is None or not self._reader.is_alive():
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        self._reader.join(within_s)
        return self._found

    def _read(self) -> None:
        self._found = last_words(self._folder, self._attempt)
