"""The order to the ranks of a node to save after a step and to end: a file beside their beats.

It is written before any rank gets there, and every rank looks after each of its steps. Where all
ranks were there before, another order replaces it.
"""

import os
from pathlib import Path

_NAME = "stop-after"


def order_stop(beats: Path, step: int) -> None:
    """Have the ranks that beat in this folder stop when so many steps are done."""
    beats.mkdir(parents=True, exist_ok=True)
    part = beats / f"{_NAME}.part"
    part.write_text(str(step))
    os.replace(part, beats / _NAME)


class StopOrder:
    """What one rank looks at."""

    def __init__(self, beats: Path) -> None:
        self._path = str(beats / _NAME)
        self._step: int | None = None

    def due(self, done: int) -> bool:
        """Whether to save and end now that so many steps are done."""
        passed = self._step is None or self._step < done  # another may come
        if passed and os.path.exists(self._path):
            self._step = int(Path(self._path).read_text())
        return self._step == done
