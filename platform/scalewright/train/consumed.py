"""Which clips each step really trained on: an audit of a run, by clip id."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scalewright.data.loader import StepData
from scalewright.data.sample import Missing

FOLDER = "consumed"


class ConsumedLog:
    """Appends the steps of one rank to `consumed/rank-00003.jsonl` of the run's folder.

    A line is a step: attempt, step, `packs` of clip ids, and the ids of those `left_out` because
    they could not be read. Lines are held until `flush`.
    """

    def __init__(self, folder: Path, rank: int, attempt: int) -> None:
        self._path = folder / FOLDER / f"rank-{rank:05d}.jsonl"
        self._attempt = attempt
        self._lines: list[str] = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _end_with_a_line(self._path)

    def add(self, data: StepData) -> None:
        """Note a step that was taken."""
        parts = [[part for part in pack if not isinstance(part, Missing)] for pack in data.packs]
        missing = [part for pack in data.packs for part in pack if isinstance(part, Missing)]
        line = {
            "attempt": self._attempt,
            "step": data.step,
            "packs": [[sample.id for sample in pack] for pack in parts],
            "left_out": [each.entry.id for each in missing],
        }
        self._lines.append(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Bring all lines to the disk; done before a checkpoint, so that its steps have theirs."""
        with self._path.open("a") as file:
            file.writelines(self._lines)
            file.flush()
            os.fsync(file.fileno())
        self._lines.clear()


@dataclass(frozen=True)
class Consumed:
    """What all ranks together trained on in a step: packs of clip ids, and ids left out."""

    packs: list[list[int]]
    left_out: list[int]


def read_consumed(folder: Path) -> dict[int, Consumed]:
    """The steps of a run that count, from its folder.

    A step that was taken again, after a failure or a rewind, counts as it was taken last.
    """
    last: dict[tuple[int, str], dict[str, Any]] = {}
    attempts: dict[int, int] = {}
    for path in sorted((folder / FOLDER).glob("rank-*.jsonl")):
        for text in path.read_text().splitlines(keepends=True):
            if text.endswith("\n"):  # else it is still being written
                line = json.loads(text)
                last[line["step"], path.name] = line
                attempts[line["step"]] = max(line["attempt"], attempts.get(line["step"], 0))
    steps = {step: Consumed([], []) for step in sorted(attempts)}
    for (step, _), line in last.items():
        if line["attempt"] == attempts[step]:
            steps[step].packs.extend(line["packs"])
            steps[step].left_out.extend(line["left_out"])
    return steps


def _end_with_a_line(path: Path) -> None:
    """Cut off the part of a line that a killed attempt left; no checkpoint counts on it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end and _byte(file, end - 1) != b"\n":
            end -= 1
        file.truncate(end)


def _byte(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(1)
