"""Which attempt of a run may write: the newest, as `run.json` in the run's folder says.

    {"attempt": 3, "kept": {"1": ["step-00000400"], "2": ["step-00000400", "step-00000800"]}}

The supervisor writes it before it begins an attempt. An attempt that was frozen or cut off may wake
up at any time; it reads here that it is over. Between a look and the rename that follows it may be
frozen again, so `kept` lists for every attempt what was committed when it was fenced:
of an older attempt nothing else counts.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scalewright.errors import CheckpointError, FencedError

RUN_STATE = "run.json"


@dataclass(frozen=True)
class RunState:
    """The newest attempt, and by fenced attempt the names of the checkpoints that count."""

    attempt: int = 0
    kept: Mapping[int, frozenset[str]] = field(default_factory=dict)


class Fence:
    """What one attempt may still do in the folder of its run; safe to share between threads."""

    def __init__(self, run_folder: Path, attempt: int) -> None:
        self._path, self.attempt = run_folder / RUN_STATE, attempt
        self._read: tuple[tuple[int, int, int], RunState] | None = None

    def check(self) -> None:
        """Raise `FencedError` when a newer attempt has begun.

        No `run.json` fences nobody. One that cannot be read raises OSError or `CheckpointError`.
        """
        newest = self._state().attempt
        if newest > self.attempt:
            raise FencedError(
                f"attempt {self.attempt} was replaced by {newest} ({self._path}); what it did "
                "since then does not count"
            )

    def admits(self, attempt: int, name: str) -> bool:
        """Whether the checkpoint `name`, saved by `attempt`, counts.

        All of an attempt do that was fenced without a list, and all of this one.
        """
        kept = self._state().kept.get(attempt)
        return attempt >= self.attempt or kept is None or name in kept

    def _state(self) -> RunState:
        try:
            file = os.open(self._path, os.O_RDONLY)  # a bare stat may be a minute old on NFS
        except FileNotFoundError:
            return RunState()
        try:
            stat = os.fstat(file)
            key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            known = self._read
            if known is None or known[0] != key:
                known = self._read = key, self._parsed(os.read(file, max(1, stat.st_size)))
            return known[1]
        finally:
            os.close(file)

    def _parsed(self, text: bytes) -> RunState:
        try:
            record = json.loads(text)
            kept = {int(a): frozenset(names) for a, names in record.get("kept", {}).items()}
            return RunState(int(record["attempt"]), kept)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f'{self._path}: expected {{"attempt": N, "kept": {{...}}}}: {error!r}'
            ) from None
