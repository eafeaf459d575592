"""A committed checkpoint: its manifest, and whether its files are what that says.

No torch here, so that the supervisor and the tools may look at checkpoints.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalewright.errors import CheckpointError
from scalewright.train.readback import fingerprint

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # the folder of them in that of a run
MANIFEST = "manifest.json"
_PREFIX = "step-"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds: `step` steps are done; `run` is what it takes to go on or sample.

    `time_s`: wall time of the commit. `read_back_bytes`: so many were compared before it; zero for
    one of before there was reading back.
    """

    step: int
    attempt: int
    world_size: int
    run: dict[str, Any]
    files: dict[str, dict[str, int]]
    schema_version: int = 1
    time_s: float = 0.0
    read_back_bytes: int = 0

    @property
    def verified(self) -> bool:
        return self.read_back_bytes > 0

    @property
    def size_bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())


def name_of(step: int) -> str:
    """The folder name of the checkpoint after `step` steps."""
    return f"{_PREFIX}{step:08d}"


def step_of(name: str) -> int | None:
    """The step in a checkpoint's folder name; None for what is set aside or not done."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits != name and digits.isdigit() else None


def committed(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, newest first; not verified yet."""
    steps = {path: step_of(path.name) for path in folder.glob("step-*")}
    found = {path: step for path, step in steps.items() if step is not None}
    return sorted(found, key=lambda path: (found[path], path), reverse=True)


def newest_verified(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files are what its manifest says; damaged ones are named."""
    for path in committed(folder):
        try:
            return path, verify(path)
        except CheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
    return None


def verify(path: Path) -> Manifest:
    """Read the manifest and check every file's size and checksum; `CheckpointError` says what."""
    try:
        manifest = read_manifest(path)
        check_files(path, manifest.files)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint, its files not looked at.

    `CheckpointError` where it is damaged or not there, OSError where the disk fails.
    """
    try:
        return parse_manifest((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: no readable {MANIFEST}: {error}") from None


def parse_manifest(text: bytes) -> Manifest:
    """A manifest from its text; ValueError or TypeError where it is none."""
    return Manifest(**json.loads(text))


def check_files(path: Path, files: Mapping[str, Mapping[str, int]]) -> None:
    """Check size and checksum of these files of a checkpoint.

    `CheckpointError` names one that is damaged or not there, OSError where the disk fails.
    """
    for name, expected in files.items():
        file = path / name
        try:
            found: object = fingerprint(file)
        except FileNotFoundError as error:
            found = error
        if found != expected:
            raise CheckpointError(f"{file}: damaged: expected {dict(expected)}, found {found}")
