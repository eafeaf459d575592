"""What the tests of tracking share: short forms, and what MLflow has in the end."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from scalewright.events import EventLog
from scalewright.track import Forwarder, absolute_uri


def forwarder(run_dir: Path, uri: str | None = None, **changes: Any) -> Forwarder:
    settings: dict[str, Any] = {"experiment": "demo", "run_name": run_dir.name, "params": {}}
    settings |= {"tags": {}, "poll_s": 0.02} | changes
    return Forwarder(run_dir, uri, **settings)


def log(run_dir: Path, attempt: int = 0) -> EventLog:
    return EventLog(run_dir / "events.jsonl", attempt)


def client(root: Path) -> MlflowClient:
    return MlflowClient(absolute_uri(None, root))


def runs(root: Path) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client(root).search_experiments()]
    return list(client(root).search_runs(experiments))


def history(root: Path, name: str) -> list[tuple[int, float]]:
    (run,) = runs(root)
    points = client(root).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def wait_until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "waited a minute in vain"
        threading.Event().wait(0.01)
