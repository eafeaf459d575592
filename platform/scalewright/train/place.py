"""Where a run lives, and the names of what lies in its folder. Needs no torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUMMARY = "summary.json"
ONLY_TRUSTED = "only-trusted"  # exists while only confirmed checkpoints may be gone on from
SNAPSHOT = "snapshot.arrow"
NULL_TEXT = "null_text.safetensors"


@dataclass(frozen=True)
class RunPlace:
    """Where a run lives: its own folder, the data folder, and which attempt this is.

    `codec_weights` is the folder of a codec that needs weights; None for the embedded one.
    `inception_weights` is the file that FID of the samples takes; None measures none.
    `only_trusted`: go on from no checkpoint after the last step that was confirmed.
    """

    folder: Path
    data: str | Path
    attempt: int
    codec_weights: Path | None = None
    inception_weights: Path | None = None
    only_trusted: bool = False


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one piece, also over a loss of power: readers see the old file or the new."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
