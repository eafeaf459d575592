"""MLflow: where it is, and the calls to it.

Nothing else imports MLflow, and this file only inside functions: it takes two seconds.
"""

import fcntl
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from scalewright.errors import ConfigError, ScalewrightError
from scalewright.progress import PROGRESS_FILE, End, Point, Progress, Upload, new_texts

if TYPE_CHECKING:
    from mlflow.entities import Run

HIDDEN = "***"
THREAD_NAME = "mlflow-forwarder"
_METRICS_A_BATCH = 1000  # MLflow's limits, here and in the next line
_TEXTS_A_BATCH = 100
_RUN_KEY = "scalewright.run_key"
_ENVIRONMENT = {  # MLflow's settings in this process, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold one call for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def absolute_uri(uri: str | None, root: Path) -> str:
    """The tracking URI, independent of the current folder: relative paths start at `root`.

    None is the database `root/mlflow.db`; servers (`http://` and other) stay as they are.
    Raises `ConfigError` for a database in memory and for what is no URI.
    """
    root = root.resolve()
    if not uri:
        return f"sqlite:///{root / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme.partition("+")[0] == "sqlite":
        path = _sqlite_path(uri)
        if path.name in ("", ":memory:"):
            raise ConfigError(f"tracking URI {uri!r} names no file; give sqlite:///path/mlflow.db")
        _, mark, options = uri.partition("?")
        return f"{scheme}:///{root / path}{mark}{options}"
    if scheme == "file":
        return (root / unquote(urlsplit(uri).path)).as_uri()
    if not scheme and uri != "databricks":
        return (root / uri).as_uri()
    if scheme and "://" not in uri:
        raise ConfigError(f"tracking URI {uri!r} has no scheme; did you mean http://{uri}?")
    return uri


def without_password(text: str) -> str:
    """`text` with the passwords of the URIs in it hidden."""
    return re.sub(r"(://[^:/@\s]*):[^/@\s]+@", rf"\1:{HIDDEN}@", text)


class OpenRun(NamedTuple):
    """An MLflow run that takes metrics."""

    run_id: str
    experiment_id: str


class Store:
    """The calls to MLflow, each of which may fail, or wait for long."""

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("urllib3.connectionpool").addFilter(_is_not_ours)
        if urlsplit(uri).scheme.startswith("sqlite"):
            _ready_database(_sqlite_path(uri))
        self._uri = uri
        self._client = MlflowClient(uri)

    def open_run(self, progress: Progress, run_dir: Path) -> OpenRun:
        """The MLflow run of this progress, made or found, with its params and tags."""
        if progress.run_id is None:
            run = self._make_run(progress, run_dir)
        else:
            run = self._find_run(progress.run_id, run_dir)
            if progress.end is None:
                self._client.update_run(progress.run_id, status="RUNNING")
        params, changed = new_texts(progress.target.params, run.data.params, run.data.tags)
        self._describe(run.info.run_id, params, {**progress.target.tags, **changed})
        return OpenRun(run.info.run_id, str(run.info.experiment_id))

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(points), _METRICS_A_BATCH):
            batch = points[start : start + _METRICS_A_BATCH]
            metrics = [Metric(*point) for point in batch]
            self._client.log_batch(run_id, metrics, synchronous=True)

    def tag(self, run_id: str, name: str, value: str) -> None:
        self._client.set_tag(run_id, name, value, synchronous=True)

    def upload(self, run_id: str, upload: Upload) -> None:
        is_folder = Path(upload.path).is_dir()
        send = self._client.log_artifacts if is_folder else self._client.log_artifact
        send(run_id, upload.path, upload.folder or None)

    def end(self, run_id: str, end: End) -> None:
        self._client.set_terminated(run_id, end.status, end_time=int(end.time_s * 1000))

    def _find_run(self, run_id: str, run_dir: Path) -> "Run":
        from mlflow.exceptions import MlflowException

        way_out = f"remove {run_dir / PROGRESS_FILE} to send everything as a new run"
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ScalewrightError(f"run {run_id} is not there; {way_out}") from error
        if run.info.lifecycle_stage == "deleted":
            raise ScalewrightError(f"run {run_id} was deleted; restore it, or {way_out}")
        return run

    def _make_run(self, progress: Progress, run_dir: Path) -> "Run":
        """Make the run once: a request that timed out may have made it all the same."""
        experiment_id = self._experiment(progress.target.experiment, run_dir)
        with_key = f"tags.`{_RUN_KEY}` = '{progress.key}'"
        found = list(self._client.search_runs([experiment_id], with_key))
        if not found:
            made = self._client.create_run(
                experiment_id,
                start_time=int(progress.started_s * 1000),
                tags={_RUN_KEY: progress.key},
                run_name=progress.target.run_name,
            )
            found = list(self._client.search_runs([experiment_id], with_key)) or [made]
        for twin in found[1:]:
            self._client.delete_run(twin.info.run_id)
        return found[0]

    def _experiment(self, name: str, run_dir: Path) -> str:
        if experiment := self._client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        return self._client.create_experiment(name, _artifact_root(self._uri, run_dir))

    def _describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        all_params = [Param(*item) for item in params.items()]
        all_tags = [RunTag(*item) for item in tags.items()]
        for start in range(0, max(len(all_params), len(all_tags)), _TEXTS_A_BATCH):
            part = slice(start, start + _TEXTS_A_BATCH)
            self._client.log_batch(run_id, (), all_params[part], all_tags[part], synchronous=True)


def _artifact_root(uri: str, run_dir: Path) -> str | None:
    """Where a new experiment keeps artifacts; None leaves it to the server.

    Without a server MLflow would take `./mlruns`, and the current folder may be a throw-away one.
    """
    dialect = urlsplit(uri).scheme.partition("+")[0]
    if dialect == "sqlite":
        return str(_sqlite_path(uri).parent / "mlartifacts")
    if dialect in ("postgresql", "mysql", "mssql"):
        return str(run_dir.parent / "mlartifacts")
    return None


def _ready_database(path: Path) -> None:
    """Create MLflow's SQLite tables once and whole, or not at all.

    MLflow's own way breaks the file for good when two processes create it at the same time, or
    when one is killed meanwhile. Raises `sqlite3.Error` at once for a file that is no database;
    MLflow would try it for 100 seconds.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA schema_version")
            return
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        MlflowClient(f"sqlite:///{part / path.name}")
        os.replace(part / path.name, path)
        part.rmdir()


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is another thread's: we tell an outage once, not at every try."""
    return record.threadName != THREAD_NAME


def _sqlite_path(uri: str) -> Path:
    return Path(uri.partition(":///")[2].partition("?")[0])
