import csv
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from unit.planner.tables import ladder, write_csv, write_jsonl

from planner.errors import InputError
from planner.reading.sources import NO_VALUE, read_table

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


def test_csv_rows_are_numbered_by_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfnote,loss \r\n"two\nlines",1\n\n,\n"3,5", 2 \nx\n')
    table = read_table(str(path))
    assert table.columns == ("note", "loss")
    assert [(row.number, dict(row.cells)) for row in table.rows] == [
        (2, {"note": "two\nlines", "loss": "1"}),
        (6, {"note": "3,5", "loss": "2"}),
    ]
    assert [(f.row, f.reason) for f in table.faults] == [
        (7, "1 cell where the header has 2 columns")
    ]


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=6))
def test_csv_gives_back_what_was_written_and_where(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    """Whatever the cells hold: each row's place is the line the writer began it on."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["a", "b"])
    begun = []
    for row in rows:
        begun.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text(text.getvalue(), newline="", encoding="utf-8")
    wanted = [
        (line, [None if v.strip().lower() in NO_VALUE else v.strip() for v in row])
        for line, row in zip(begun, rows, strict=True)
        if any(v.strip() for v in row)
    ]
    if not wanted:
        with pytest.raises(InputError, match="holds no rows"):
            read_table(str(path))
        return
    got = read_table(str(path))
    assert [(row.number, list(row.cells.values())) for row in got.rows] == wanted


def test_jsonl_reads_what_python_writes_and_names_the_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson"
    path.write_text('{"a": NaN}\n\n{"a": -Infinity, "b": " x "}\n{"a": \n[1]\n{"b": "None"}\n')
    table = read_table(str(path))
    assert table.columns == ("a", "b")
    assert [row.number for row in table.rows] == [1, 3, 6]
    assert str(table.rows[0].cells["a"]) == "nan"
    assert table.rows[1].cells == {"a": float("-inf"), "b": "x"}
    assert table.rows[2].cells == {"b": None}
    assert [f.row for f in table.faults] == [4, 5]
    assert "not valid JSON" in table.faults[0].reason
    assert table.faults[1].reason == "a list, not an object with fields"


def test_parquet_keeps_types_and_counts_rows_from_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"loss": [1.5, None], "width": [64, 128], "run": ["a", "null"]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(str(path))
    assert [(row.number, dict(row.cells)) for row in table.rows] == [
        (1, {"loss": 1.5, "width": 64, "run": "a"}),
        (2, {"loss": None, "width": 128, "run": None}),
    ]


def test_a_packed_table_reads_the_same_and_its_hash_is_of_the_file(tmp_path: Path) -> None:
    plain = write_csv(tmp_path / "t.csv", ladder())
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_table(str(packed)).rows == read_table(str(plain)).rows
    assert read_table(str(packed)).sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b"a,b\n", "holds no rows"),
        ("t.csv", b"a,b,a\n1,2,3\n", "names a twice"),
        ("t.csv", b"a\n\xff\n", "not UTF-8"),
        ("t.csv.gz", gzip.compress(b"a\n1\n", mtime=0)[:-4], "not a whole gzip file"),
        ("t.csv.gz", b"a\n1\n", "not a whole gzip file"),
        ("t.jsonl", b"\n \n", "holds no rows"),
        ("t.parquet", b"PAR1", "not a Parquet table"),
        ("t.xlsx", b"PK", "does not know this kind of file"),
    ],
)
def test_what_cannot_be_read_is_an_input_error(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        read_table(str(path))
    assert str(path) in str(error.value)


def test_a_folder_stands_for_its_one_table(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "runs.jsonl", ladder())
    (tmp_path / ".hidden.csv").write_text("a\n1\n")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "fit").mkdir()
    write_csv(tmp_path / "fit" / "tables.csv", ladder())
    read = read_table(str(tmp_path))
    assert read.place == str(table)
    assert read.folder == tmp_path


def test_a_folder_of_folders_stands_for_the_one_that_holds_a_table(tmp_path: Path) -> None:
    for name in ("demo", "fit", ".old", "plots"):
        (tmp_path / name).mkdir()
    for name in ("fit", ".old"):
        write_csv(tmp_path / name / "t.csv", ladder())
    with pytest.raises(InputError, match=r"no table .* here or one folder below"):
        read_table(str(tmp_path))
    table = write_csv(tmp_path / "demo" / "t.csv", ladder())
    assert read_table(str(tmp_path)).place == str(table)


def test_a_folder_with_several_tables_asks_for_the_file(tmp_path: Path) -> None:
    files = [write_csv(tmp_path / name, ladder()) for name in ("a.csv", "b.csv")]
    with pytest.raises(InputError, match="holds 2 tables; name the file") as error:
        read_table(str(tmp_path))
    assert all(str(file) in str(error.value) for file in files)
    with pytest.raises(InputError, match="no such file or folder"):
        read_table(str(tmp_path / "c.csv"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's files with an experiment of runs in every state."""
    uri = str(tmp_path_factory.mktemp("mlflow") / "store")
    with mock.patch.dict(os.environ, {"MLFLOW_ALLOW_FILE_STORE": "true"}):
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = client.create_experiment("scaling")
        for place, state in enumerate(("FINISHED", "FAILED", "KILLED", None, "FINISHED")):
            tags = {"mlflow.note": "x", "params": "tag", "host": "h"}
            run = client.create_run(experiment, place + 1, tags, f"run {place}").info.run_id
            for name, value in {"params": 10**6 * (place + 1), "loss": "param"}.items():
                client.log_param(run, name, value)
            client.log_metric(run, "loss", 9.0, step=1)
            client.log_metric(run, "loss", 3.0 - 0.1 * place, step=2)
            if place in (1, 4):
                client.set_tag(run, "status", "diverged")
            if state:
                client.set_terminated(run, state)
        yield uri


def test_mlflow_runs_are_rows_in_order_of_their_start(store: str) -> None:
    table = read_table(f"mlflow:scaling@{store}")
    assert [row.number for row in table.rows] == [1, 2, 3, 5]
    assert table.rows[0].cells == {
        "run": "run 0",
        "status": "finished",
        "params": "1000000",
        "loss": 3.0,
        "host": "h",
    }
    assert [r.cells["status"] for r in table.rows] == ["finished", "failed", "failed", "diverged"]
    assert [(f.row, f.reason) for f in table.faults] == [(4, "run 'run 3' is RUNNING: not ended")]
    assert table.folder is None
    assert table.sha256 == read_table(f"mlflow:scaling@{store}").sha256


def test_the_hash_of_mlflow_runs_is_of_what_they_say(store: str, tmp_path: Path) -> None:
    before = read_table(f"mlflow:scaling@{store}").sha256
    changed = tmp_path / "store"
    shutil.copytree(store, changed)
    (metric,) = [path for path in changed.glob("*/*/metrics/loss") if "3.0 2" in path.read_text()]
    metric.write_text(metric.read_text().replace("3.0 2", "3.01 2"))
    assert read_table(f"mlflow:scaling@{changed}").sha256 != before


def test_mlflow_faults_say_what_there_is_and_make_nothing(store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no experiment 'x'; there are: Default, scaling"):
        read_table(f"mlflow:x@{store}")
    for uri in (tmp_path / "none", f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(InputError, match="MLflow has no store at"):
            read_table(f"mlflow:x@{uri}")
    other = tmp_path / "other.db"
    other.write_bytes(b"")
    with pytest.raises(InputError, match="no database of MLflow: no such table"):
        read_table(f"mlflow:x@sqlite:///{other}")
    assert other.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [other]


def test_a_password_in_a_tracking_uri_is_never_shown() -> None:
    with pytest.raises(InputError) as error:
        read_table("mlflow:x@nothing://me:secret@host/x")
    assert "secret" not in str(error.value)
    assert "mlflow:x@nothing://me:***@host/x" in str(error.value)


def test_json_and_csv_of_one_table_hold_the_same(tmp_path: Path) -> None:
    as_json = read_table(str(write_jsonl(tmp_path / "t.jsonl", ladder())))
    as_csv = read_table(str(write_csv(tmp_path / "t.csv", ladder())))
    assert as_json.columns == as_csv.columns
    numbers = [{name: json.loads(v) for name, v in row.cells.items()} for row in as_csv.rows]
    assert numbers == [dict(row.cells) for row in as_json.rows]


@pytest.mark.parametrize(
    ("separator", "word"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a bar")]
)
def test_a_table_with_other_separators_is_named_as_such(
    tmp_path: Path, separator: str, word: str
) -> None:
    lines = ["params,tokens,loss", "1e8,1e9,3.0"]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines).replace(",", separator))
    with pytest.raises(InputError, match=rf"runs.csv:1: the cells are parted by {word}, not"):
        read_table(str(path))


def test_where_no_line_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"params":1,\n[1,2]\n"a"\n')
    with pytest.raises(
        InputError, match=r"none of 3 rows can be read; the first, row 1: not valid JSON: .*column"
    ):
        read_table(str(path))
