"""Tracking in real SQLite stores of MLflow: what arrives, once, and with the true status."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from tracking import client, forwarder, history, log, runs, wait_until

from scalewright.events import Event, Metrics
from scalewright.progress import load_progress
from scalewright.track import forward, main

PLATFORM = Path(__file__).parents[2] / "platform"


def test_everything_arrives(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dir = root / "a"
    events = log(run_dir)
    (run_dir / "config.toml").write_text("steps = 3")
    (run_dir / "sample.txt").write_text("a sample")
    (run_dir / "report").mkdir()
    (run_dir / "report" / "index.html").write_text("<p>")
    shown: list[Event] = []
    params = {"model": {"width": 64}, "caption": "x" * 7000}
    with forwarder(
        run_dir,
        params=params,
        tags={"law": "abc"},
        artifacts=[run_dir / "config.toml"],
        on_events=shown.extend,
    ):
        for step in range(1200):
            events.metrics(step, {"loss/train": 1 / (step + 1), "perf/step_s": float(step)})
        events.metrics(5000, {"loss/validation": float("nan")})
        events.artifact(run_dir / "sample.txt", "samples", step=5)
        events.artifact(run_dir / "report", "report")
    (run,) = runs(root)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a"
    assert run.data.params["model.width"] == "64"
    assert len(run.data.params["caption"]) <= 6000
    assert (run.data.tags["law"], run.data.tags["attempt"]) == ("abc", "0")
    assert history(root, "loss/train") == [(step, 1 / (step + 1)) for step in range(1200)]
    assert history(root, "perf/step_s") == [(step, float(step)) for step in range(1200)]
    ((step, loss),) = history(root, "loss/validation")
    assert step == 5000
    assert loss != loss
    kept = root / "mlartifacts" / run.info.run_id / "artifacts"
    assert (kept / "config.toml").read_text() == "steps = 3"
    assert (kept / "samples" / "step-00000005" / "sample.txt").read_text() == "a sample"
    assert (kept / "report" / "index.html").read_text() == "<p>"
    assert [event.step for event in shown if isinstance(event, Metrics)] == [*range(1200), 5000]
    assert os.listdir() == []
    assert capfd.readouterr() == ("", "")


def test_a_second_driver_goes_on_with_the_same_run_and_no_step_twice(root: Path) -> None:
    run_dir = root / "a"
    with forwarder(run_dir, params={"lr": 1.0, "seed": 0}) as first:
        events = log(run_dir)
        for step in range(30):
            events.metrics(step, {"loss/train": 100.0 + step})
    shown: list[Event] = []
    with forwarder(run_dir, params={"lr": 2.0, "seed": 0}, on_events=shown.extend) as second:
        events = log(run_dir, attempt=1)
        events.event("attempt", resume_step=20)
        for step in range(20, 50):
            events.metrics(step, {"loss/train": 200.0 + step, "eval/fid": 1.0})
        wait_until(lambda: second.run_id and runs(root)[0].info.status == "RUNNING")
    assert first.run_id == second.run_id
    assert [step for step, _ in history(root, "loss/train")] == list(range(50))
    assert history(root, "loss/train")[29:31] == [(29, 129.0), (30, 230.0)]
    assert [step for step, _ in history(root, "eval/fid")] == list(range(20, 50))
    (run,) = runs(root)
    assert (run.info.status, run.data.tags["attempt"]) == ("FINISHED", "1")
    assert (run.data.params["lr"], run.data.tags["changed.lr"]) == ("1.0", "2.0")
    assert "changed.seed" not in run.data.tags
    assert len(shown) == 31


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_final_status_is_true(root: Path, error: type[BaseException], status: str) -> None:
    log(root / "a").metrics(0, {"loss/train": 1.0})
    with pytest.raises(error), forwarder(root / "a"):
        raise error
    (run,) = runs(root)
    assert run.info.status == status
    assert history(root, "loss/train") == [(0, 1.0)]


def test_lines_sent_but_not_noted_are_harmless(root: Path) -> None:
    """A driver killed between sending and keeping its progress sends the same lines again."""
    run_dir = root / "a"
    with forwarder(run_dir):
        for step in range(2000):
            log(run_dir).metrics(step, {"loss/train": float("nan") if step % 3 else 1.0})
    kept = json.loads((run_dir / "track.json").read_text())
    kept |= {"offset": 0, "highest_step": {}}
    (run_dir / "track.json").write_text(json.dumps(kept))
    assert forward(run_dir).complete
    assert [step for step, _ in history(root, "loss/train")] == list(range(2000))


DRIVER = """
import sys, threading
from pathlib import Path
from scalewright.events import EventLog
from scalewright.track import Forwarder
run_dir, steps = Path(sys.argv[1]), int(sys.argv[2])
forwarder = Forwarder(run_dir, None, "demo", run_dir.name, {"lr": 1}, {}, poll_s=0.02)
forwarder.start()
log, step = EventLog(run_dir / "events.jsonl", attempt=0), 0
while step != steps:  # for ever when steps < 0, until it is killed
    log.metrics(step, {"loss/train": float(step)})
    step += 1
    if steps < 0:
        threading.Event().wait(0.001)
forwarder.finish("FINISHED", timeout_s=200)
if "mlflow" not in sys.modules:
    sys.exit("the forwarder did not use MLflow")
from mlflow.telemetry.utils import is_telemetry_disabled
if not is_telemetry_disabled():
    sys.exit("MLflow sends telemetry")
"""


def driver(run_dir: Path, steps: int) -> subprocess.Popen[str]:
    """A driver in a process of its own, whose environment tells nothing of tests or CI."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(run_dir), str(steps)],
        env={**environment, "PYTHONPATH": str(PLATFORM)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_driver_is_taken_over(root: Path) -> None:
    run_dir = root / "a"
    process = driver(run_dir, steps=-1)
    wait_until(lambda: (kept := load_progress(run_dir)) and kept.offset > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (dead,) = runs(root)
    assert dead.info.status == "RUNNING"
    with forwarder(run_dir) as successor:
        for step in range(100_000, 100_010):
            log(run_dir, attempt=1).metrics(step, {"loss/train": float(step)})
    assert successor.run_id == dead.info.run_id
    assert runs(root)[0].info.status == "FINISHED"
    written = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [step for step, _ in history(root, "loss/train")] == [line["step"] for line in written]


@pytest.mark.slow
def test_the_database_is_created_once_and_whole(tmp_path: Path, own_home: None) -> None:
    """Although its first creator is killed over it, and then two others start together."""
    runs_root = tmp_path / "fresh"
    first = driver(runs_root / "run-0", steps=5)
    wait_until(lambda: list(runs_root.glob("mlflow.db.part/mlflow.db")))
    first.kill()
    first.communicate()
    assert not (runs_root / "mlflow.db").exists()
    drivers = [driver(runs_root / f"run-{index}", steps=5) for index in range(2)]
    told = [process.communicate()[0] for process in drivers]
    assert told == ["", ""]
    assert [process.returncode for process in drivers] == [0, 0]
    assert sorted(run.info.run_name for run in runs(runs_root)) == ["run-0", "run-1"]
    assert [run.info.status for run in runs(runs_root)] == ["FINISHED"] * 2
    assert not (runs_root / "mlflow.db.part").exists()


def test_the_database_is_not_touched_while_another_process_creates_it(root: Path) -> None:
    tracking = forwarder(root / "a")
    with (root / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tracking.start()
        assert not tracking.finish("FINISHED", timeout_s=0.5).complete
        assert tracking.run_id is None
    assert forward(root / "a").complete


def test_a_request_that_timed_out_does_not_leave_a_second_run(root: Path) -> None:
    """The server made the run twice, and neither answer arrived."""
    run_dir = root / "a"
    tracking = forwarder(run_dir)
    experiment = client(root).create_experiment("demo", str(root / "mlartifacts"))
    for _ in range(2):
        client(root).create_run(experiment, tags={"scalewright.run_key": tracking._progress.key})
    with tracking:
        log(run_dir).metrics(0, {"loss/train": 0.0})
    assert history(root, "loss/train") == [(0, 0.0)]
    assert runs(root)[0].info.status == "FINISHED"
    assert len(client(root).search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)) == 1


def test_a_run_deleted_in_mlflow_is_told_with_the_way_out(root: Path) -> None:
    with forwarder(root / "a") as first:
        log(root / "a").metrics(0, {"loss/train": 0.0})
    client(root).delete_run(str(first.run_id))
    second = forwarder(root / "a")
    second.start()
    delivery = second.finish("FINISHED", timeout_s=1.0)
    assert "was deleted; restore it, or remove" in delivery.message
    (root / "a" / "track.json").unlink()
    with forwarder(root / "a"):
        pass
    assert history(root, "loss/train") == [(0, 0.0)]


def test_broken_lines_are_told(root: Path) -> None:
    tracking = forwarder(root / "a")
    tracking.start()
    events = log(root / "a")
    events.metrics(0, {"loss/train": 0.0})
    with (root / "a" / "events.jsonl").open("a") as file:
        file.write("{broken}\n")
    events.metrics(1, {"loss/train": 1.0})
    delivery = tracking.finish("FINISHED")
    assert delivery.complete
    assert "1 unreadable lines, the first at byte" in delivery.message
    assert history(root, "loss/train") == [(0, 0.0), (1, 1.0)]


def test_on_events_that_raises_stops_neither_itself_nor_the_tracking(root: Path) -> None:
    shown: list[int] = []

    def show(events: Any) -> None:
        shown.extend(event.step for event in events)
        if shown == [0]:
            raise RuntimeError("the terminal is gone")

    with forwarder(root / "a", on_events=show):
        events = log(root / "a")
        events.metrics(0, {"loss/train": 0.0})
        wait_until(lambda: shown)
        events.metrics(1, {"loss/train": 1.0})
    assert shown == [0, 1]
    assert [step for step, _ in history(root, "loss/train")] == [0, 1]


def test_a_folder_that_was_never_tracked_cannot_be_forwarded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no track.json here; give the folder of a run" in capsys.readouterr().err
