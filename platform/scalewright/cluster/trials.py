"""A sweep on Ray: many small runs, one record each, nothing run twice."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from scalewright.config import merge, to_dict
from scalewright.errors import DataError
from scalewright.train.run import RunConfig
from scalewright.train.trial import Trial, run_trial

RECORDS = "runs.jsonl"


@dataclass(frozen=True)
class SweepResult:
    """How many trials were there before, were run now, and what went wrong by key."""

    already: int
    ran: int
    failed: dict[str, str]


def run_trials(
    base: RunConfig,
    trials: Sequence[Trial],
    data: Path,
    folder: Path,
    progress: Callable[[str], None],
) -> SweepResult:
    """Run the trials without a record, longest first, and append each record as it comes.

    A trial that fails for a reason outside itself leaves no record, so that the next call runs it
    again; one that diverges is a result and is recorded.
    """
    path = folder / RECORDS
    there = recorded(path)
    todo = [trial for trial in trials if trial.key not in there]
    todo.sort(key=lambda trial: -trial.budget_flops)
    failed: dict[str, str] = {}
    begin_s = time.monotonic()
    total_flops, done_flops = sum(trial.budget_flops for trial in todo), 0.0
    waiting = list(todo)
    running: dict[ray.ObjectRef, Trial] = {}
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < slots:
            trial = waiting.pop(0)
            running[_remote_trial.remote(to_dict(base), trial, data)] = trial
        (ready,), _ = ray.wait(list(running), num_returns=1)
        trial = running.pop(ready)
        done_flops += trial.budget_flops
        outcome = _collect(ready, trial, path, failed)
        left_s = (time.monotonic() - begin_s) * (total_flops / done_flops - 1)
        progress(
            f"{len(todo) - len(waiting) - len(running)}/{len(todo)} {trial.key}: {outcome}; "
            f"{done_flops / total_flops:.0%} of {total_flops:.3g} FLOPs, about {left_s:.0f} s left"
        )
    return SweepResult(len(trials) - len(todo), len(todo) - len(failed), failed)


def _collect(ready: ray.ObjectRef, trial: Trial, path: Path, failed: dict[str, str]) -> str:
    try:
        record: dict[str, Any] = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        failed[trial.key] = str(error.cause)
        return f"failed: {error.cause}"
    except ray.exceptions.RayError as error:
        failed[trial.key] = str(error)
        return f"failed: {error}"
    append_record(path, record)
    if record["status"] == "done":
        return f"loss {record['loss']:.4f} in {record['wall_s']:.0f} s"
    return f"{record['status']} at {record['reason']}"


@ray.remote(num_cpus=1, max_retries=0)
def _remote_trial(base: dict[str, Any], trial: Trial, data: Path) -> dict[str, Any]:
    return run_trial(merge(RunConfig(), base, where="sweep"), trial, data)


def recorded(path: Path) -> set[str]:
    """Keys of the trials that have a record; a line that is cut off is taken out and named."""
    if not path.exists():
        return set()
    text = path.read_text()
    if text and not text.endswith("\n"):
        whole, _, torn = text.rpartition("\n")
        os.truncate(path, len(whole.encode()) + (1 if whole else 0))
        print(f"{path}: took out a line cut off by a crash: {torn[:60]}...", flush=True)
        text = path.read_text()
    try:
        return {json.loads(line)["run"] for line in text.splitlines()}
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a file of sweep records ({error}); move it away or choose another --name"
        ) from None


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one record in one write and bring it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((json.dumps(record) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
