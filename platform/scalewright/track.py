"""Tracking in MLflow, never on the training path.

The workers append to the run's event log (`events.py`). In the driver a `Forwarder` follows that
file in a thread of its own and carries it to MLflow; `track.json` beside the log remembers the
MLflow run and the byte reached. So a dead MLflow costs nothing, a restarted driver goes on with
the same MLflow run, and `python -m scalewright.track RUN_DIR` sends later what could not be sent.

Steps that a new attempt does again are sent once: of each metric only steps beyond the highest
one sent. MLflow's history cannot be overwritten, and a second value at a step draws a zigzag.
The step is a pure function of (seed, step), so the first value is as good as the second; the
event log keeps both.
"""

import argparse
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from scalewright.errors import ScalewrightError
from scalewright.events import EVENTS_FILE, Event, EventLog, log_size, read_events
from scalewright.mlflow_store import (
    HIDDEN,
    THREAD_NAME,
    OpenRun,
    Store,
    absolute_uri,
    without_password,
)
from scalewright.progress import (
    PROGRESS_FILE,
    End,
    Pause,
    Progress,
    Target,
    Upload,
    advance,
    as_texts,
    left_over,
    load_progress,
    save_progress,
)

__all__ = ["Delivery", "EventLog", "Forwarder", "absolute_uri", "forward", "read_events"]

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_FAILURES_BEFORE_WARNING = 4  # in a row: not for a database that was locked for a moment


@dataclass(frozen=True)
class Delivery:
    """What became of the events: all in MLflow, or a message on what is not and how to send it."""

    complete: bool
    message: str


class Forwarder:
    """Carries `run_dir/events.jsonl` to MLflow from a thread, and shows it to `on_events`.

    `params` may be nested; they are logged once (MLflow's are immutable) and what changes in a
    later start becomes a tag `changed.<name>`. `artifacts` are uploaded as soon as they exist.
    `on_events` gets every event written after the start, in order, from a second thread that
    does not wait for MLflow. Leaving the `with` block sets the true status: FINISHED, FAILED
    after an exception, KILLED after an interrupt or exit.
    """

    def __init__(
        self,
        run_dir: Path,
        tracking_uri: str | None,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Sequence[Path] = (),
        poll_s: float = 1.0,
        on_events: Callable[[Sequence[Event]], None] | None = None,
    ) -> None:
        self._run_dir = run_dir.resolve()
        self._log = self._run_dir / EVENTS_FILE
        self._uri = absolute_uri(tracking_uri, self._run_dir.parent)
        self._target = Target(
            tracking_uri=without_password(self._uri),
            experiment=experiment,
            run_name=run_name,
            params=as_texts(params),
            tags=as_texts(tags),
            artifacts=[str(path.resolve()) for path in artifacts],
        )
        self._poll_s = poll_s
        self._on_events = on_events
        self._progress = Progress(target=self._target, key=uuid.uuid4().hex, started_s=time.time())
        self._lock = threading.Lock()  # of the progress: finish() writes its end
        self._store: Store | None = None
        self._run: OpenRun | None = None
        self._pause, self._upload_pause = Pause(), Pause()
        self._threads: list[threading.Thread] = []
        self._stopping, self._given_up = threading.Event(), threading.Event()
        self._ended = False
        self._delivery: Delivery | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until MLflow has answered."""
        return self._progress.run_id

    @property
    def run_url_hint(self) -> str:
        """Where to look at the run: a URL, or the command that shows the database."""
        uri = self._target.tracking_uri
        if not uri.startswith("http"):
            return f"mlflow ui --backend-store-uri '{uri}'"
        if self._run is None:
            return uri
        return f"{uri}/#/experiments/{self._run.experiment_id}/runs/{self._run.run_id}"

    def start(self) -> None:
        """Begin in the background; never waits for MLflow.

        Goes on where an earlier driver of `run_dir` stopped, if it used the same tracking URI.
        Raises `ScalewrightError` when `track.json` cannot be used.
        """
        self._start(replace(self._stored_progress(), end=None))

    def finish(self, status: Status, timeout_s: float = 30.0) -> Delivery:
        """Send what is left, set the run's final status, and end within `timeout_s` seconds.

        What could not be sent is told in the returned `Delivery`, and once as a warning.
        """
        return self._finish(End(status, time.time()), timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _stored_progress(self) -> Progress:
        stored = load_progress(self._run_dir)
        if stored is None or stored.target.tracking_uri != self._target.tracking_uri:
            return self._progress
        return replace(stored, target=self._target)

    def _start(self, progress: Progress) -> None:
        self._progress = progress.with_uploads([Upload(p, "") for p in self._target.artifacts])
        save_progress(self._run_dir, self._progress)
        self._threads = [threading.Thread(target=self._send, name=THREAD_NAME, daemon=True)]
        if self._on_events is not None:
            show = partial(self._show, self._on_events, log_size(self._log))
            self._threads.append(threading.Thread(target=show, name="show-events", daemon=True))
        for thread in self._threads:
            thread.start()

    def _finish(self, end: End | None, timeout_s: float) -> Delivery:
        if not self._threads:
            raise RuntimeError("Forwarder.finish before Forwarder.start")
        if self._delivery is None:
            deadline_s = time.monotonic() + timeout_s
            self._record_end(end)
            self._pause = Pause(reason=self._pause.reason)
            self._upload_pause = Pause(reason=self._upload_pause.reason)
            self._stopping.set()
            for thread in self._threads:
                thread.join(max(0.0, deadline_s - time.monotonic()))
            self._given_up.set()
            self._delivery = self._judged()
            if self._delivery.message:
                logger.warning("%s", self._delivery.message)
        return self._delivery

    def _judged(self) -> Delivery:
        unsent, messages = left_over(self._progress, self._log, self._ended), []
        if unsent:
            reason = self._pause.reason or self._upload_pause.reason or "it did not answer in time"
            messages.append(
                f"Not sent to MLflow at {self._target.tracking_uri}: {', '.join(unsent)} "
                f"({without_password(reason)}). Nothing is lost, send it later with: "
                f"python -m scalewright.track {self._run_dir}"
            )
        if self._progress.broken_lines:
            count, first = self._progress.broken_lines, self._progress.first_broken
            messages.append(f"{self._log}: {count} unreadable lines, the first at {first}")
        return Delivery(complete=not unsent, message="\n".join(messages))

    def _send(self) -> None:
        """The body of the sending thread."""
        while not self._given_up.is_set():
            stopping = self._stopping.is_set()  # before the log is read: then its end is the end
            if self._pause.is_over():
                try:
                    if self._send_all(stopping):
                        return
                    self._pause = Pause()
                except Exception as error:
                    self._pause = self._pause.longer(error)
                    self._warn_once_an_outage()
            (self._given_up if stopping else self._stopping).wait(self._poll_s)

    def _send_all(self, stopping: bool) -> bool:
        """Send what there is; True when the run has ended and nothing is left to send."""
        store, run_id = self._opened()
        while not self._given_up.is_set() and self._send_some(store, run_id):
            pass
        if self._given_up.is_set():
            return False
        if stopping and self._progress.end and not self._ended:
            store.end(run_id, self._progress.end)
            self._ended = True
        return self._upload_pause.is_over() and self._upload(store, run_id) and stopping

    def _opened(self) -> tuple[Store, str]:
        if self._store is None:
            self._store = Store(self._uri)
        if self._run is None:
            self._run = self._store.open_run(self._progress, self._run_dir)
            self._record(replace(self._progress, run_id=self._run.run_id))
        return self._store, self._run.run_id

    def _send_some(self, store: Store, run_id: str) -> bool:
        events, offset = read_events(self._log, self._progress.offset)
        if offset == self._progress.offset:
            return False
        points, after = advance(self._progress, events, offset)
        store.log(run_id, points)
        if after.attempt > self._progress.attempt:
            store.tag(run_id, "attempt", str(after.attempt))
        self._record(after)
        return True

    def _upload(self, store: Store, run_id: str) -> bool:
        """Upload what waits; True when all is done but files that are not there (yet)."""
        for upload in self._progress.uploads:
            if self._given_up.is_set():
                return False
            if not os.path.exists(upload.path):
                continue
            others = tuple(other for other in self._progress.uploads if other != upload)
            try:
                store.upload(run_id, upload)
            except Exception as error:  # an artifact store may fail where metrics pass
                self._upload_pause = self._upload_pause.longer(error)
                self._record(replace(self._progress, uploads=(*others, upload)))
                return False
            self._record(replace(self._progress, uploads=others))
        self._upload_pause = Pause()
        return True

    def _record(self, progress: Progress) -> None:
        """Keep the progress, which only the sending thread makes, but for the end."""
        with self._lock:
            self._progress = replace(progress, end=self._progress.end)
            save_progress(self._run_dir, self._progress)

    def _record_end(self, end: End | None) -> None:
        with self._lock:
            self._progress = replace(self._progress, end=end)
            try:
                save_progress(self._run_dir, self._progress)
            except OSError as error:  # the end of training does not depend on it
                logger.warning("%s: the final status is not kept: %s", self._run_dir, error)

    def _warn_once_an_outage(self) -> None:
        if self._pause.failures == _FAILURES_BEFORE_WARNING:
            uri, reason = self._target.tracking_uri, without_password(self._pause.reason)
            logger.warning("MLflow at %s: %s. Training goes on; sent when it is back", uri, reason)

    def _show(self, on_events: Callable[[Sequence[Event]], None], offset: int) -> None:
        """The body of the thread that gives the events from byte `offset` on to `on_events`."""
        told = False
        while not self._given_up.is_set():
            stopping = self._stopping.is_set()
            events: list[Event] = []
            try:
                events, offset = read_events(self._log, offset)
                if events:
                    on_events(events)
            except Exception:  # the driver goes on without its progress lines
                if not told:
                    logger.exception("%s: events up to byte %d are not shown", self._log, offset)
                told = True
            if not events:
                if stopping:
                    return
                self._stopping.wait(self._poll_s)


def forward(run_dir: Path, tracking_uri: str | None = None, timeout_s: float = 600.0) -> Delivery:
    """Send what a driver could not send; to the MLflow it used, or as a new run to another one.

    Raises `ScalewrightError` when `run_dir` was never tracked.
    """
    stored = load_progress(run_dir)
    if stored is None:
        raise ScalewrightError(f"{run_dir}: no {PROGRESS_FILE} here; give the folder of a run")
    target = stored.target
    if tracking_uri is None and HIDDEN in target.tracking_uri:
        raise ScalewrightError(f"{target.tracking_uri}: give it with its password, as --uri")
    forwarder = Forwarder(
        run_dir,
        tracking_uri or target.tracking_uri,
        target.experiment,
        target.run_name,
        target.params,
        target.tags,
        [Path(path) for path in target.artifacts],
    )
    forwarder._start(replace(forwarder._stored_progress(), end=stored.end))
    return forwarder._finish(stored.end, timeout_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m scalewright.track RUN_DIR`: send what is not yet in MLflow."""
    parser = argparse.ArgumentParser(prog="python -m scalewright.track", description=main.__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--uri", help="another MLflow than the run's own")
    parser.add_argument("--timeout-s", type=float, default=600.0)
    options = parser.parse_args(arguments)
    try:
        uri = options.uri and absolute_uri(options.uri, Path.cwd())
        delivery = forward(options.run_dir, uri, options.timeout_s)
    except ScalewrightError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if delivery.complete:
        print(f"{options.run_dir}: everything is in MLflow")
    return 0 if delivery.complete else 1


if __name__ == "__main__":
    sys.exit(main())
