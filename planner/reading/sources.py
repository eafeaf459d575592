"""A source as the user names it -> its raw rows: a file, a folder that holds one, or MLflow's runs.

Nothing is interpreted here, besides that text which says "no value" is None. A row that cannot be
read becomes a fault with its place; a source that cannot be read is an `InputError`.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.reading.runs import Rejection, counted

MLFLOW = "mlflow:"
SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
FIT_FOLDER = "fit"  # what the planner writes into, and so never reads
SEPARATORS = {";": "a semicolon", "\t": "a tab", "|": "a bar"}  # of tables that are no CSV
NO_VALUE = frozenset({"", "na", "n/a", "null", "none"})


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row: its 1-based place and its cells by column; None is a missing value."""

    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A source as read: `source` and `place` are for messages, `sha256` is of the whole content.

    `columns` are in order of first appearance; `folder` is None where no file was read.
    """

    source: str
    place: str
    folder: Path | None
    sha256: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    faults: tuple[Rejection, ...]


def read_table(source: str) -> Table:
    """Read a file, the one table of a folder, or `mlflow:EXPERIMENT[@TRACKING_URI]`."""
    if source.startswith(MLFLOW):
        from planner.reading.tracked import read_experiment

        return read_experiment(source.removeprefix(MLFLOW))
    try:
        path = locate(Path(source))
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
    columns, parsed = _parser(path)(_unpacked(path, content), path)
    return make_table(
        source, str(path), path.parent, hashlib.sha256(content).hexdigest(), columns, parsed
    )


def make_table(
    source: str,
    place: str,
    folder: Path | None,
    sha256: str,
    columns: tuple[str, ...],
    parsed: list[Row | Rejection],
) -> Table:
    """A table of parsed rows; an `InputError` if there are none, or none that can be read."""
    if not parsed:
        raise InputError(f"{place}: holds no rows; name a table with one run a row")
    rows = tuple(item for item in parsed if isinstance(item, Row))
    faults = tuple(item for item in parsed if isinstance(item, Rejection))
    if not rows:
        first = faults[0]
        raise InputError(
            f"{place}: none of {counted(len(faults), 'row')} can be read; the first, row "
            f"{first.row}: {first.reason}"
        )
    return Table(source, place, folder, sha256, columns, rows, faults)


def columns_of(rows: list[Row | Rejection]) -> tuple[str, ...]:
    """Every column of the rows, in order of first appearance."""
    return tuple(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.cells))


def cell(value: Any) -> Any:
    """The value of a cell: text is stripped, and text that says "no value" is None."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return None if text.lower() in NO_VALUE else text


def locate(path: Path) -> Path:
    """The one table at `path`: a file, a folder's, or that of the folder's one sub-folder with one.

    Hidden files, and folders called "fit" inside the one named, are passed over.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file or folder; give a table ({', '.join(SUFFIXES)}), "
            f"a folder that holds one, or {MLFLOW}EXPERIMENT"
        )
    found = _tables_in(path) or [
        file
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder.name != FIT_FOLDER and not folder.name.startswith(".")
        for file in _tables_in(folder)
    ]
    if not found:
        raise InputError(
            f"{path}: no table ({', '.join(SUFFIXES)}) here or one folder below; "
            "run jobs/sweep.py to make a sweep, or name a file"
        )
    if len(found) > 1:
        listed = ", ".join(str(file) for file in found)
        raise InputError(f"{path}: holds {len(found)} tables; name the file of one: {listed}")
    return found[0]


def _tables_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(SUFFIXES)
    )


def _unpacked(path: Path, content: bytes) -> bytes:
    if not path.name.lower().endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file: {error}; copy it again") from None


Parsed = tuple[tuple[str, ...], list[Row | Rejection]]


def _parser(path: Path) -> Callable[[bytes, Path], Parsed]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return _parse_jsonl
    if name.endswith(".csv"):
        return _parse_csv
    if name.endswith(".parquet"):
        return _parse_parquet
    raise InputError(
        f"{path}: the planner does not know this kind of file; it reads {', '.join(SUFFIXES)}"
    )


def _parse_jsonl(content: bytes, path: Path) -> Parsed:
    lines = enumerate(content.split(b"\n"), start=1)
    parsed = [_json_row(raw, number) for number, raw in lines if raw.strip()]
    return columns_of(parsed), parsed


def _json_row(raw: bytes, number: int) -> Row | Rejection:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Rejection(number, f"not valid JSON: {error}")
    if not isinstance(fields, dict):
        return Rejection(number, f"a {type(fields).__name__}, not an object with fields")
    return Row(number, {name.strip(): cell(value) for name, value in fields.items()})


def _parse_csv(content: bytes, path: Path) -> Parsed:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}; save it as UTF-8") from None
    lines = _csv_lines(text, path)
    _, names = next(lines, (1, []))
    header = [name.strip() for name in names]
    _check_commas(names, path)
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InputError(f"{path}:1: the header names {', '.join(twice)} twice; rename one of each")
    return tuple(header), [_csv_row(header, cells, number) for number, cells in lines]


def _check_commas(names: list[str], path: Path) -> None:
    """A header of one cell that holds other separators is a table of several columns."""
    found = [word for sign, word in SEPARATORS.items() if len(names) == 1 and sign in names[0]]
    if found:
        raise InputError(
            f"{path}:1: the cells are parted by {found[0]}, not by a comma; save the table with "
            "commas"
        )


def _csv_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on: a quoted cell may hold line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""))
    begins = 1
    try:
        for cells in reader:
            if any(value.strip() for value in cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{begins}: not valid CSV: {error}") from None


def _csv_row(header: list[str], cells: list[str], number: int) -> Row | Rejection:
    if len(cells) != len(header):
        wanted = counted(len(header), "column")
        return Rejection(number, f"{counted(len(cells), 'cell')} where the header has {wanted}")
    return Row(number, {name: cell(value) for name, value in zip(header, cells, strict=True)})


def _parse_parquet(content: bytes, path: Path) -> Parsed:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet table: {error}") from None
    parsed: list[Row | Rejection] = [
        Row(number, {name: cell(value) for name, value in fields.items()})
        for number, fields in enumerate(rows, start=1)
    ]
    return tuple(table.column_names), parsed
