"""A node's GPUs as a test wants them: NVML's stand-in, and the file that says what it answers."""

import atexit
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


@cache
def library() -> Path:
    """The folder that holds the stand-in as libnvidia-ml.so.1; skips the test without a compiler.

    Give it to a process as SCALEWRIGHT_NVML: the health checks' children load it, nobody else.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc or gcc): NVML's stand-in cannot be built")
    folder = Path(mkdtemp(prefix="scalewright-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / "libnvidia-ml.so.1"
    options = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run([compiler, *options, "-o", str(target), str(SOURCE)], check=True)
    return folder


class StandIn:
    """The GPUs of one node; each change is seen by the next call of NVML."""

    def __init__(self, state: Path, gpus: int = 2) -> None:
        self.state = state
        self._values: dict[str, object] = {"gpus": gpus}
        self._events: list[str] = []
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to see these GPUs."""
        return {"SCALEWRIGHT_NVML": str(library()), "FAKE_NVML_STATE": str(self.state)}

    def set(self, gpu: int | None = None, **values: object) -> None:
        """Change what is told of one GPU, or of all; None takes a change back."""
        for name, value in values.items():
            key = name if gpu is None else f"{gpu}.{name}"
            self._values[key] = value
            if value is None:
                del self._values[key]
        self._write()

    def xid(self, gpu: int, number: int) -> None:
        """Let a GPU raise an XID now."""
        self._events.append(f"event={len(self._events) + 1} {gpu} {number}")
        self._write()

    def uuid(self, gpu: int) -> str:
        return str(self._values.get(f"{gpu}.uuid", f"GPU-00000000-0000-0000-0000-00000000000{gpu}"))

    def _write(self) -> None:
        """Replace the file at once, so that no call reads half of it."""
        lines = [f"{key}={value}" for key, value in self._values.items()] + self._events
        new = self.state.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        os.replace(new, self.state)
