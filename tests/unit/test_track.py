"""The event log, what goes out next, and where MLflow is: all without MLflow."""

import json
import logging
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalewright.errors import ConfigError, ScalewrightError
from scalewright.events import (
    Artifact,
    BrokenLine,
    Event,
    EventLog,
    Metrics,
    Notice,
    lines_after,
    read_events,
)
from scalewright.mlflow_store import without_password
from scalewright.progress import (
    End,
    Progress,
    Target,
    Upload,
    advance,
    as_texts,
    load_progress,
    new_texts,
    save_progress,
)
from scalewright.track import absolute_uri

PLATFORM = Path(__file__).parents[2] / "platform"
TARGET = Target(
    tracking_uri="sqlite:////x.db", experiment="e", run_name="r", params={}, tags={}, artifacts=[]
)
START = Progress(target=TARGET, key="k", started_s=1.0)
NAMES = st.sampled_from(["loss/train", "loss/validation", "perf/step_s"])


def read_all(path: Path, max_bytes: int = 1 << 20) -> list[Event]:
    events, offset = [], 0
    while True:
        more, after = read_events(path, offset, max_bytes)
        if after == offset:
            return events
        events, offset = events + more, after


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def test_a_log_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    log = EventLog(path, attempt=3)
    log.metrics(7, {"loss/train": 0.5, "grad/norm": math.inf})
    log.artifact(tmp_path / "run" / "samples" / "a.mp4", "samples", step=7)
    log.artifact(tmp_path / "elsewhere.png", "figures")
    log.event("attempt", resume_step=100, world=4, loss=-math.inf, nodes=["a", "b"])
    log.close()
    metrics, inside, outside, notice = read_all(path)
    assert isinstance(metrics, Metrics)
    assert (metrics.attempt, metrics.step) == (3, 7)
    assert metrics.values == {"loss/train": 0.5, "grad/norm": math.inf}
    assert isinstance(inside, Artifact)
    assert (inside.path, inside.folder, inside.step) == (
        path.parent / "samples/a.mp4",
        "samples",
        7,
    )
    assert isinstance(outside, Artifact)
    assert (outside.path, outside.step) == (tmp_path / "elsewhere.png", None)
    assert isinstance(notice, Notice)
    fields = {"resume_step": 100, "world": 4, "loss": -math.inf, "nodes": ["a", "b"]}
    assert (notice.kind, notice.fields) == ("attempt", fields)


def test_metrics_hold_for_the_time_that_is_told_with_them(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=1)
    before_s = time.time()
    log.metrics(1, {"loss/train": 1.0}, before_s - 5)
    log.metrics(2, {"loss/train": 1.0})
    log.close()
    told, now = read_all(tmp_path / "events.jsonl")
    assert told.time_s == before_s - 5
    assert before_s <= now.time_s <= time.time()


def test_a_run_folder_mounted_elsewhere_keeps_its_artifacts(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "here" / "events.jsonl", attempt=0)
    log.artifact(tmp_path / "here" / "a.png", "samples")
    (tmp_path / "here").rename(tmp_path / "there")
    (artifact,) = read_all(tmp_path / "there" / "events.jsonl")
    assert isinstance(artifact, Artifact)
    assert artifact.path == tmp_path / "there" / "a.png"


@given(st.dictionaries(NAMES, st.floats(width=64)), st.integers(0, 2**63 - 1))
def test_every_float_survives_strict_json(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, float], step: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    EventLog(path, attempt=0).metrics(step, values)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (event,) = read_all(path)
    assert isinstance(event, Metrics)
    assert event.step == step
    assert event.values.keys() == values.keys()
    assert all(same(event.values[name], values[name]) for name in values)


@pytest.mark.parametrize(
    "name", ["loss", "loss/", "/loss", "a//b", "mfu(%)", "a/../b", "a/b\n", "", "a/" + "b" * 249]
)
def test_metric_names_are_checked_where_they_are_written(tmp_path: Path, name: str) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=0)
    with pytest.raises(ValueError, match="expected group/name such as loss/train"):
        log.metrics(0, {name: 1.0})
    assert read_all(tmp_path / "events.jsonl") == []


def test_misuse_is_told_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=0)
    with pytest.raises(ValueError, match=r"step -1: expected 0 <= step"):
        log.metrics(-1, {"loss/train": 1.0})
    with pytest.raises(ValueError, match="has its own method"):
        log.event("metrics", values={})
    with pytest.raises(ValueError, match="time_s"):
        log.event("checkpoint", time_s=3.0)
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        log.artifact(tmp_path / "a", "../outside")


def test_a_torn_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path, 0) == ([], 0)
    EventLog(path, attempt=0).metrics(0, {"loss/train": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    events, offset = read_events(path, 0)
    assert (len(events), offset) == (1, len(whole))
    assert read_events(path, offset) == ([], offset)
    assert lines_after(path, offset) == 0
    path.write_bytes(whole + whole)
    assert lines_after(path, offset) == 1
    events, offset = read_events(path, offset)
    assert (len(events), offset) == (1, 2 * len(whole))


def test_a_new_attempt_does_not_write_into_the_torn_line_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time_s": 1.0, "atte')
    EventLog(path, attempt=1).event("attempt", resume_step=0)
    broken, notice = read_all(path)
    assert isinstance(broken, BrokenLine)
    assert broken.offset == 0
    assert isinstance(notice, Notice)


def test_a_log_that_was_cut_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n" * 10)
    with pytest.raises(ValueError, match="has 10 bytes, but 11 were read before"):
        read_events(path, 11)


GARBAGE = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"?")),
    st.sampled_from(
        [
            b"null",
            b"[1]",
            b"[" * 5000,
            b"{}",
            b'{"time_s": 1e300, "attempt": 0, "kind": "x"}',
            b'{"time_s": 1, "attempt": 0, "kind": "metrics", "step": 1, "values": {"bad": 1}}',
            b'{"time_s": 1, "attempt": 0, "kind": "metrics", "step": 1.5, "values": {}}',
            b'{"time_s": 1, "attempt": 0, "kind": "metrics", "step": 1, "values": [1]}',
            b'{"time_s": 1, "attempt": 0, "kind": "metrics", "step": 1, "values": {"a/b": "x"}}',
            b'{"time_s": 1, "attempt": 0, "kind": "artifact", "path": "a", "folder": "/etc"}',
        ]
    ),
)


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(0, 99), GARBAGE), max_size=20), st.integers(1, 300))
def test_broken_lines_are_counted_and_cost_no_other_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int | bytes], max_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    log = EventLog(path, attempt=0)
    broken_at = []
    for line in lines:
        if isinstance(line, int):
            log.metrics(line, {"loss/train": float(line)})
            continue
        if line.strip():
            broken_at.append(path.stat().st_size)
        with path.open("ab") as file:
            file.write(line + b"\n")
    events = read_all(path, max_bytes)
    assert events == read_all(path)
    steps = [event.step for event in events if isinstance(event, Metrics)]
    assert steps == [line for line in lines if isinstance(line, int)]
    assert [event.offset for event in events if isinstance(event, BrokenLine)] == broken_at


def test_a_full_disk_costs_lines_but_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=0)
    log.metrics(0, {"loss/train": 0.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            for step in (1, 2, 3):
                log.metrics(step, {"loss/train": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.records) == 1
    log.metrics(4, {"loss/train": 4.0})
    first, torn, notice, last = read_all(path)
    assert isinstance(torn, BrokenLine)
    assert isinstance(notice, Notice)
    assert (notice.kind, notice.fields) == ("lines_lost", {"count": 3})
    assert isinstance(first, Metrics)
    assert isinstance(last, Metrics)
    assert (first.step, last.step) == (0, 4)


ATTEMPTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6)


@given(ATTEMPTS, st.sets(st.integers(0, 200)))
def test_steps_done_again_are_sent_once_and_the_first_value_stays(
    attempts: list[tuple[int, int]], cuts: set[int]
) -> None:
    """Attempt after attempt resumes at some step it has reached, and runs on for a while."""
    events: list[Event] = []
    first: dict[tuple[str, int], float] = {}
    reached = 0
    for attempt, (back, steps) in enumerate(attempts):
        begin = max(0, reached - back)
        for step in range(begin, begin + steps):
            values = {"loss/train": float(attempt)}
            if step % 5 == 0:
                values["loss/validation"] = float(-attempt)
            events.append(Metrics(1.0, attempt, step, values))
            for name, value in values.items():
                first.setdefault((name, step), value)
        reached = max(reached, begin + steps)
    progress, sent = START, []
    edges = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    for begin, end in pairwise(edges):
        points, progress = advance(progress, events[begin:end], offset=end)
        sent += [((point.name, point.step), point.value) for point in points]
    assert dict(sent) == first
    assert len(sent) == len(first)
    assert progress.offset == len(events)


def test_artifacts_wait_each_once_in_a_folder_of_their_step() -> None:
    events: list[Event] = [
        Artifact(1.0, 0, Path("/a.mp4"), "samples", 20),
        Artifact(1.0, 2, Path("/a.mp4"), "samples", 20),
        Artifact(1.0, 1, Path("/report.html"), "", None),
        BrokenLine(17, "not JSON"),
    ]
    points, progress = advance(START, events, offset=99)
    assert points == []
    assert progress.uploads == (
        Upload("/a.mp4", "samples/step-00000020"),
        Upload("/report.html", ""),
    )
    assert (progress.attempt, progress.broken_lines) == (2, 1)
    assert progress.first_broken == "byte 17: not JSON"


def test_progress_reads_back_as_it_was_kept(tmp_path: Path) -> None:
    progress = replace(START, run_id="abc", offset=12, highest_step={"loss/train": 3})
    progress = replace(progress.with_uploads([Upload("/a", "b")]), end=End("FAILED", 2.5))
    assert load_progress(tmp_path) is None
    for kept in (START, progress):
        save_progress(tmp_path, kept)
        assert load_progress(tmp_path) == kept
    assert os.listdir(tmp_path) == ["track.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"target": {}, "uploads": [], "end": null}']
)
def test_a_progress_that_cannot_be_used_names_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "track.json").write_text(text)
    with pytest.raises(ScalewrightError, match="remove it to send the whole event log again"):
        load_progress(tmp_path)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["1", "2"])), max_size=6))
def test_params_are_logged_once_and_their_last_value_can_be_told(starts: list[dict]) -> None:
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    wanted: dict[str, str] = {}
    for texts in starts:
        fresh, changed = new_texts(texts, params, tags)
        assert not fresh.keys() & params.keys()
        params |= fresh
        tags |= changed
        wanted |= texts
        assert new_texts(texts, params, tags) == ({}, {})
    assert {name: tags.get(f"changed.{name}", params[name]) for name in params} == wanted


def test_params_may_be_nested_and_long() -> None:
    texts = as_texts({"model": {"width": 64, "mup": {"base": 32}}, "ratios": (1, 2), "note": None})
    assert texts == {
        "model.width": "64",
        "model.mup.base": "32",
        "ratios": "(1, 2)",
        "note": "None",
    }
    one, other = as_texts({"a": "x" * 9000 + "1", "b": "x" * 9000 + "2"}).values()
    assert len(one) <= 6000
    assert "(9001 characters, sha256 " in one
    assert one != other
    with pytest.raises(ConfigError, match=r"param or tag name 'mfu\(%\)'"):
        as_texts({"mfu(%)": 1})


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        (None, "sqlite:////runs/mlflow.db"),
        ("", "sqlite:////runs/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:////runs/mlflow.db"),
        ("sqlite:///./a b/../m.db?timeout=5", "sqlite:////runs/a b/../m.db?timeout=5"),
        ("sqlite+pysqlite:///m.db", "sqlite+pysqlite:////runs/m.db"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("mlruns", "file:///runs/mlruns"),
        ("file:mlruns", "file:///runs/mlruns"),
        ("file:///data/ml%20runs", "file:///data/ml%20runs"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://u:p@host/mlflow", "https://u:p@host/mlflow"),
        ("postgresql://u:p@host/mlflow", "postgresql://u:p@host/mlflow"),
        ("databricks", "databricks"),
    ],
)
def test_tracking_uris_do_not_depend_on_the_current_folder(uri: str | None, absolute: str) -> None:
    assert absolute_uri(uri, Path("/runs")) == absolute
    assert absolute_uri(absolute, Path("/other")) == absolute


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite://mlflow.db"])
def test_a_database_without_a_file_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="names no file; give sqlite"):
        absolute_uri(uri, Path("/runs"))


def test_a_server_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean http://localhost:5000"):
        absolute_uri("localhost:5000", Path("/runs"))


def test_passwords_are_not_told() -> None:
    text = "API request to https://me:s3cr:et@host:80/api failed"
    assert without_password(text) == "API request to https://me:***@host:80/api failed"
    assert without_password("http://host:5000/a@b") == "http://host:5000/a@b"


def test_importing_the_tracking_does_not_import_mlflow() -> None:
    code = "import sys, scalewright.track; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PLATFORM)
