"""The runs of an MLflow experiment as a table: tags, params and last metrics, one row a run."""

import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from planner.errors import InputError
from planner.reading.runs import Rejection
from planner.reading.sources import MLFLOW, Row, Table, cell, columns_of, make_table

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun

ENDED = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed"}
_RUNS_A_PAGE = 1000
_ENVIRONMENT = {  # MLflow's settings in this process, unless the user has set them
    "MLFLOW_ALLOW_FILE_STORE": "true",  # only read here
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 hold one call for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def read_experiment(text: str) -> Table:
    """The runs of `EXPERIMENT` or `EXPERIMENT@TRACKING_URI` in order of their start.

    Without a URI it is MLflow's own: MLFLOW_TRACKING_URI or its default. A run that has not ended
    is a fault. Of one name a metric wins over a param, a param over a tag; `run` is the run's name,
    and `status` MLflow's unless the run ended well and logged a status itself. `sha256` is that of
    the rows as canonical JSON.
    """
    name, _, uri = text.partition("@")
    place = _without_password(f"{MLFLOW}{text}")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        tracked = _runs(_client(uri, place), name, place)
    except InputError:
        raise
    except Exception as error:  # each of MLflow's stores raises errors of its own libraries
        said = _without_password(str(error)).strip().partition("\n")[0]
        raise InputError(f"{place}: cannot be read: {type(error).__name__}: {said}") from None
    parsed = [_row(run, number) for number, run in enumerate(tracked, start=1)]
    listed = [item.cells if isinstance(item, Row) else item.reason for item in parsed]
    sha256 = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    return make_table(place, place, None, sha256, columns_of(parsed), parsed)


def _client(uri: str, place: str) -> "MlflowClient":
    import mlflow

    uri = uri or mlflow.get_tracking_uri()
    _check_exists(uri, place)
    return mlflow.MlflowClient(uri)


def _check_exists(uri: str, place: str) -> None:
    """MLflow makes a store that is not there; a reader must not."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        # sqlite:///a is relative, sqlite:////a is absolute.
        store = Path(unquote(parts.path).removeprefix("/"))
        _check_database(store, place)
    elif parts.scheme in ("", "file"):
        store = Path(unquote(parts.path))
    else:
        return
    if uri != "databricks" and not store.exists():
        raise _no_store(store, place)


def _check_database(path: Path, place: str) -> None:
    """MLflow would try for minutes, or make its tables in a database of something else."""
    if not path.is_file():
        raise _no_store(path, place)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT experiment_id FROM experiments LIMIT 1")
    except sqlite3.Error as error:
        raise InputError(f"{place}: {path} is no database of MLflow: {error}") from None


def _no_store(path: Path, place: str) -> InputError:
    return InputError(
        f"{place}: MLflow has no store at {path}; name it as {MLFLOW}EXPERIMENT@TRACKING_URI "
        "or set MLFLOW_TRACKING_URI"
    )


def _runs(client: "MlflowClient", name: str, place: str) -> list["TrackedRun"]:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        there = ", ".join(sorted(found.name for found in client.search_experiments()))
        raise InputError(f"{place}: no experiment {name!r}; there are: {there or 'none'}")
    runs: list[TrackedRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            max_results=_RUNS_A_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _row(run: "TrackedRun", number: int) -> Row | Rejection:
    if run.info.status not in ENDED:
        return Rejection(number, f"run {run.info.run_name!r} is {run.info.status}: not ended")
    tags = {key: tag for key, tag in run.data.tags.items() if not key.startswith("mlflow.")}
    logged: dict[str, Any] = {**tags, **run.data.params, **run.data.metrics}
    cells = {key.strip(): cell(value) for key, value in logged.items()}
    cells["run"] = run.info.run_name
    if run.info.status != "FINISHED" or cells.get("status") is None:
        cells["status"] = ENDED[run.info.status]
    return Row(number, cells)


def _without_password(text: str) -> str:
    return re.sub(r"(://[^:/@\s]*):[^/@\s]+@", r"\1:***@", text)
