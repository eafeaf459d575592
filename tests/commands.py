"""Jobs as a user starts them: real processes, in a home of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# What `ranks.small` is, on the command line.
SMALL = (
    "model.width=32", "model.depth=2", "steps=12", "optimizer.warmup_steps=2",
    "data.pack_tokens=96", "data.packs_per_step=4", "log.every_steps=2",
    "checkpoint.every_steps=4", "checkpoint.keep=3", "log.validate_every_steps=6",
    "log.sample_every_steps=12", "log.sample_clips=2", "log.sample_steps=2",
)  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    home.mkdir(parents=True, exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return clean | {"SCALEWRIGHT_HOME": str(home)}


def start(home: Path, job: str, *arguments: str) -> subprocess.Popen[str]:
    """Start `jobs/<job>.py` in its own process group, so that a signal reaches it alone."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *arguments],
        cwd=home,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 200) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a job; a job that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def run(home: Path, job: str, *arguments: str) -> tuple[int, str, str]:
    home.mkdir(parents=True, exist_ok=True)
    return finish(start(home, job, *arguments))


def last_json(out: str) -> dict[str, Any]:
    """The summary a job prints last; Ray's own messages may stand before it."""
    return json.loads(out.splitlines()[-1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit_s: float) -> None:
    """Wait until `condition` holds while `process` lives."""
    end = time.monotonic() + limit_s
    while not condition():
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before its time:\n{out}\n{err}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"not within {limit_s} s:\n{process.communicate()}")
        time.sleep(0.1)
