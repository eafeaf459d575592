"""Tracking while MLflow is silent, away, late or broken in part: nothing waits, nothing is lost."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking import forwarder, history, log, runs, wait_until

from scalewright.events import Event
from scalewright.track import absolute_uri, main


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def accept() -> None:
            try:
                while True:
                    connections.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


def test_a_silent_server_holds_up_nothing_and_all_is_sent_later(
    root: Path, silent_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = root / "a"
    shown: list[Event] = []
    begin_s = time.monotonic()
    tracking = forwarder(run_dir, silent_server, on_events=shown.extend)
    tracking.start()
    for step in range(10):
        log(run_dir).metrics(step, {"loss/train": float(step)})
    wait_until(lambda: len(shown) == 10)
    with caplog.at_level(logging.WARNING, logger="scalewright"):
        delivery = tracking.finish("FAILED", timeout_s=1.0)
    assert time.monotonic() - begin_s < 10  # MLflow's own settings wait for minutes
    assert tracking.run_id is None
    assert not delivery.complete
    for part in (silent_server, "10 lines", "status FAILED", f"scalewright.track {run_dir}"):
        assert part in delivery.message
    assert [record.getMessage() for record in caplog.records] == [delivery.message]
    assert main([str(run_dir), "--uri", absolute_uri(None, root)]) == 0
    assert history(root, "loss/train") == [(step, float(step)) for step in range(10)]
    assert runs(root)[0].info.status == "FAILED"


def test_a_store_that_comes_back_gets_everything(root: Path) -> None:
    (root / "mlflow.db").rename(root / "away.db")
    (root / "mlflow.db").mkdir()  # no database can be opened here
    tracking = forwarder(root / "a")
    tracking.start()
    events = log(root / "a")
    events.metrics(0, {"loss/train": 0.0})
    wait_until(lambda: tracking._pause.failures)
    (root / "mlflow.db").rmdir()
    (root / "away.db").rename(root / "mlflow.db")
    events.metrics(1, {"loss/train": 1.0})
    assert tracking.finish("FINISHED").complete
    assert history(root, "loss/train") == [(0, 0.0), (1, 1.0)]


def test_artifacts_that_fail_hold_up_neither_metrics_nor_status(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = root / "a"
    (root / "mlartifacts").write_text("a file where a folder should be")
    tracking = forwarder(run_dir)
    tracking.start()
    events = log(run_dir)
    events.artifact(run_dir / "events.jsonl", "logs")
    events.artifact(run_dir / "not-there.png", "samples")
    wait_until(lambda: tracking._upload_pause.failures)
    events.metrics(0, {"loss/train": 0.0})
    delivery = tracking.finish("FINISHED", timeout_s=2.0)
    assert not delivery.complete
    assert "events.jsonl" in delivery.message
    assert "not-there.png (no such file)" in delivery.message
    assert "lines of" not in delivery.message
    assert "status" not in delivery.message
    assert runs(root)[0].info.status == "FINISHED"
    assert history(root, "loss/train") == [(0, 0.0)]
    ended_ms = runs(root)[0].info.end_time
    (root / "mlartifacts").unlink()
    (run_dir / "not-there.png").touch()
    assert main([str(run_dir)]) == 0
    assert (root / "mlartifacts" / runs(root)[0].info.run_id / "artifacts/logs").is_dir()
    assert runs(root)[0].info.end_time == ended_ms


@pytest.mark.slow
def test_a_server_that_starts_late_gets_everything(
    tmp_path: Path, own_home: None, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    run_dir = tmp_path / "a"
    tracking = forwarder(run_dir, uri, params={"lr": 1})
    tracking.start()
    events = log(run_dir)
    events.metrics(0, {"loss/train": 0.0, "loss/validation": float("nan")})
    events.artifact(run_dir / "events.jsonl", "logs")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", absolute_uri(None, tmp_path), "--workers", "1"]
    artifacts = ["--artifacts-destination", str(tmp_path / "served")]
    wait_until(lambda: tracking._pause.failures)
    assert caplog.records == []  # one short outage is not worth a line, nor is every try
    with subprocess.Popen([*command, *store, *artifacts], start_new_session=True) as server:
        try:
            wait_until(lambda: listens(port))
            events.metrics(1, {"loss/train": 1.0})
            assert tracking.finish("FINISHED", timeout_s=100).complete
        finally:
            os.killpg(server.pid, signal.SIGTERM)
    assert history(tmp_path, "loss/train") == [(0, 0.0), (1, 1.0)]
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.params["lr"]) == ("FINISHED", "1")
    assert tracking.run_url_hint.endswith(f"/runs/{run.info.run_id}")
    assert list((tmp_path / "served").rglob("events.jsonl"))
