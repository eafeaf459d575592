"""Clips that could not be read: each is listed, and too many of them end the run."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scalewright.data.loader import Skip
from scalewright.errors import DataError

FOLDER = "skipped"
ALWAYS_ALLOWED = 10  # however few were read


class SkipList:
    """Called with every skip of one rank, from any thread; raises once they are beyond the budget.

    `skipped/rank-00003.jsonl` of the run's folder has a line each: step, clip, shard, reason.
    `clips_read` tells how many were read beside.
    """

    def __init__(self, folder: Path, rank: int, attempt: int, share: float) -> None:
        self.count = 0
        self.clips_read: Callable[[], int] = lambda: 0
        self._path = folder / FOLDER / f"rank-{rank:05d}.jsonl"
        self._attempt, self._share = attempt, share
        self._lock = threading.Lock()

    def __call__(self, skip: Skip) -> None:
        line = {
            "attempt": self._attempt,
            "step": skip.step,
            "clip": skip.entry.id,
            "shard": skip.entry.shard,
            "reason": skip.reason,
        }
        with self._lock:
            self._append(line)
            self.count += 1
            read = self.clips_read()
            if self.count > max(ALWAYS_ALLOWED if self._share else 0, self._share * read):
                raise DataError(
                    f"{self.count} of {read + self.count} clips could not be read, more than "
                    f"data.max_skip_share = {self._share:g} allows; {self._path} lists them. The "
                    f"last: {skip.reason}"
                )

    def _append(self, line: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
