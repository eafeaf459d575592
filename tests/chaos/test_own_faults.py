"""Faults of the run's own: they cost no machine, and are not repeated for ever."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, environment
from storm import sabotaged

from scalewright.cluster.ledger import Ledger
from scalewright.cluster.policy import DO_NOT_REQUEUE
from scalewright.events import EVENTS_FILE, Notice, read_events

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow]


@pytest.mark.parametrize(
    ("do", "cause", "said"),
    [("raise", "exception", "a bug of the user's"), ("memory", "oom", "MemoryError")],
)
def test_the_same_error_twice_at_the_same_place_ends_the_run(
    data_folder: Path, tmp_path: Path, do: str, cause: str, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *SMALL, "name=own",
         f"data.path={data_folder}", "parallel.workers=1"],
        cwd=tmp_path,
        env=environment(tmp_path) | sabotaged(tmp_path, rank=0, do=do, always=True, step=7),
        capture_output=True,
        text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == DO_NOT_REQUEUE, done.stderr[-4000:]
    assert said in done.stderr
    events, _ = read_events(tmp_path / "runs" / "own" / EVENTS_FILE, 0, max_bytes=1 << 24)
    failed = [e for e in events if isinstance(e, Notice) and e.kind == "attempt_failed"]
    assert [event.fields["cause"] for event in failed] == [cause, cause]
    assert not Ledger(tmp_path / "ledger.db").standings()
