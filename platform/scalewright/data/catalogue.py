"""Which clips there are: a table that names every source seen and where its latent lies.

A clip enters when its shard is sealed, a rejected source with its reason, so the catalogue never
points at half-written bytes. One process writes at a time; any number may read. SQLite in a file of
the data folder, or any database that SQLAlchemy speaks to, by its URL (tested: PostgreSQL).
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sql

from scalewright.data.clips import COLUMNS, Clips, ClipsBuilder
from scalewright.data.sample import DataInfo, Entry
from scalewright.data.snapshot import Snapshot, snapshot_of
from scalewright.errors import DataError

SCHEMA_VERSION = 3
# Older catalogues lack these columns and rows; they are read as they are.
SINCE = {"scores": 2, "collection": 3}
REVISION = "revision"
FILE_NAME = "catalogue.sqlite"
ROWS_PER_FETCH = 50_000
IDS_PER_QUERY = 10_000  # SQLite takes at most 32766 parameters in a statement

WAY_OUT = "set their status to 'rejected' and their id to NULL, or restore it from a copy"

Split = Literal["train", "validation"]

_tables = sql.MetaData()

_info = sql.Table(
    "info",
    _tables,
    sql.Column("key", sql.Text, primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)

# `id` numbers the done clips alone: when a source is rejected must not move the ids after it.
_clips = sql.Table(
    "clips",
    _tables,
    sql.Column("source", sql.Text, primary_key=True),
    sql.Column("id", sql.BigInteger, unique=True),
    sql.Column("split", sql.Text),
    sql.Column("status", sql.Text, nullable=False),
    sql.Column("reason", sql.Text),
    sql.Column("caption", sql.Text),
    sql.Column("shard", sql.Text),
    sql.Column("offset", sql.BigInteger),
    sql.Column("bytes", sql.BigInteger),
    sql.Column("crc32c", sql.BigInteger),
    sql.Column("latent_frames", sql.Integer),
    sql.Column("height", sql.Integer),
    sql.Column("width", sql.Integer),
    sql.Column("text_tokens", sql.Integer),
    sql.Column("scores", sql.JSON),
    sql.Column("collection", sql.Text),
    sql.CheckConstraint("status IN ('done', 'rejected')"),
    sql.CheckConstraint("split IN ('train', 'validation')"),
    sql.CheckConstraint("(status = 'done') = (id IS NOT NULL)"),
    sql.Index("clips_by_split", "status", "split", "id"),
)


@dataclass(frozen=True)
class NewClip:
    """A clip whose shard is sealed; `height, width` are those of the latent.

    `source` names one clip: a file, or a part of one such as `a.mp4#12.5-17.0`. `collection`: the
    data set that it is of. `scores`: quality by name, from 0 to 1; leave out what is unknown.
    """

    source: str
    split: Split
    caption: str
    shard: str
    offset: int
    bytes: int
    crc32c: int
    latent_frames: int
    height: int
    width: int
    text_tokens: int
    collection: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.scores.items():
            if not 0 <= value <= 1:
                raise DataError(f"{self.source}: score {name} = {value}; allowed: 0 to 1")


class Catalogue:
    """The catalogue of a data folder, or that of a database; made by `create` or `open`."""

    def __init__(self, url: sql.URL, info: DataInfo, version: int) -> None:
        self.name = _name(url)
        self.info = info
        self._url = url
        self._version = version

    @classmethod
    def create(cls, place: Path | str, info: DataInfo) -> "Catalogue":
        """Make the catalogue of a folder or URL, or go on with the one there if it is of `info`.

        `DataError` names both sides when it was made with another codec or text encoder.
        """
        url = _url(place)
        if isinstance(place, Path) and not (file := place / FILE_NAME).exists():
            place.mkdir(parents=True, exist_ok=True)
            _create_file(file, info)
        elif isinstance(place, str):
            with _connect(url) as connection:
                if not sql.inspect(connection).has_table("info"):
                    _fill(connection, info)
        catalogue = cls.open(place)
        _require_same(catalogue.name, catalogue.info, info)
        return catalogue

    @classmethod
    def open(cls, place: Path | str) -> "Catalogue":
        """Open that of a folder or URL; `DataError` if it is missing, foreign or newer."""
        if isinstance(place, Path) and not (path := place / FILE_NAME).is_file():
            raise DataError(f"{path}: no catalogue here; run jobs/prepare.py to make one")
        url = _url(place)
        return cls(url, *_read_info(url))

    def add(self, clips: Sequence[NewClip]) -> None:
        """Add clips in one transaction; ids go on from the last, in the order given.

        `DataError` for scores where the catalogue is older than these.
        """
        if not clips:
            return
        self._require_room(clips)
        with _connect(self._url) as connection:
            last = connection.scalar(sql.select(sql.func.max(_clips.c.id))) or 0
            rows = [
                {"id": last + number, "status": "done", **self._cells(clip)}
                for number, clip in enumerate(clips, start=1)
            ]
            connection.execute(sql.insert(_clips), rows)
            self._bump(connection)

    def reject(self, source: str, reason: str) -> None:
        """Note that `source` gives no clip, and why."""
        row = {"source": source, "status": "rejected", "reason": reason}
        with _connect(self._url) as connection:
            connection.execute(sql.insert(_clips), [row])
            self._bump(connection)

    def sources(self) -> set[str]:
        """Every source seen, done or rejected."""
        with _connect(self._url) as connection:
            return set(connection.scalars(sql.select(_clips.c.source)))

    def rejected(self) -> list[tuple[str, str]]:
        """(source, reason) of every rejected source, ordered by source."""
        query = (
            sql.select(_clips.c.source, _clips.c.reason)
            .where(_clips.c.status == "rejected")
            .order_by(_clips.c.source)
        )
        with _connect(self._url) as connection:
            return [(row.source, row.reason) for row in connection.execute(query)]

    def entries(self, split: Split) -> list[Entry]:
        """The done clips of a split, ordered by id; of large catalogues, take a snapshot."""
        names = [each.name for each in dataclasses.fields(Entry)]
        with self._reading() as rows:
            return [
                Entry(**(dict(zip(names, values, strict=True)) | {"scores": values[-1] or {}}))
                for batch in rows([_clips.c.split, *(self._column(name) for name in names)])
                for own, *values in batch
                if own == split
            ]

    def snapshot(self) -> Snapshot:
        """Every done clip, as it is now; reads them all, a batch at a time.

        `DataError` names a clip that cannot be: without frames, or larger than its bytes.
        """
        columns = [_clips.c.split, *(self._column(name) for name in (*COLUMNS, "scores"))]
        builder, validation = ClipsBuilder(), []
        with self._reading() as rows:
            for batch in rows(columns):
                self._add(builder, [row[1:] for row in batch])
                validation.append(np.array([row[0] == "validation" for row in batch], np.bool_))
        held_out = np.concatenate([np.empty(0, np.bool_), *validation])
        clips = builder.build()
        _check_sizes(self.name, self.info, clips)
        return snapshot_of(self.info, self.revision(), clips, held_out)

    def _add(self, builder: ClipsBuilder, rows: Sequence[Sequence[Any]]) -> None:
        try:
            builder.add(rows)
        except (OverflowError, TypeError, ValueError):
            for row in rows:
                try:
                    ClipsBuilder().add([row])
                except (OverflowError, TypeError, ValueError) as error:
                    told = f"{self.name}: clip {row[0]} cannot be: {error}; {WAY_OUT}"
                    raise DataError(told) from None
            raise

    def revision(self) -> int:
        """A number that grows with every change; 0 for catalogues older than it."""
        with _connect(self._url) as connection:
            query = sql.select(_info.c.value).where(_info.c.key == REVISION)
            return int(connection.scalar(query) or 0)

    def captions(self, ids: Sequence[int]) -> dict[int, str]:
        """Caption by id; `DataError` names ids that the catalogue does not hold."""
        found: dict[int, str] = {}
        with _connect(self._url) as connection:
            for first in range(0, len(ids), IDS_PER_QUERY):
                some = ids[first : first + IDS_PER_QUERY]
                query = sql.select(_clips.c.id, _clips.c.caption).where(_clips.c.id.in_(some))
                found.update({row.id: row.caption for row in connection.execute(query)})
        if missing := sorted(set(ids) - found.keys()):
            raise DataError(
                f"{self.name}: no clip with id {missing[:5]} ({len(missing)} of {len(ids)} asked "
                "for); the ids belong to another catalogue"
            )
        return found

    @contextmanager
    def _reading(self) -> Iterator[Callable[[Sequence[Any]], Iterator[Sequence[Any]]]]:
        """Reads columns of all done clips, ordered by id, in batches."""
        with _connect(self._url) as connection:

            def rows(columns: Sequence[Any]) -> Iterator[Sequence[Any]]:
                query = sql.select(*columns).where(_clips.c.status == "done").order_by(_clips.c.id)
                found = connection.execution_options(yield_per=ROWS_PER_FETCH).execute(query)
                try:
                    yield from found.partitions()
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{self.name}: scores that are not JSON: {error}; restore it from a copy, "
                        "or delete the data folder and run jobs/prepare.py again"
                    ) from None

            yield rows

    def _column(self, name: str) -> Any:
        """A column, or its default where the catalogue is older than it."""
        if not self._has(name):
            return sql.literal("" if name == "collection" else None).label(name)
        if name == "collection":
            return sql.func.coalesce(_clips.c.collection, "").label(name)
        return _clips.c[name]

    def _has(self, column: str) -> bool:
        return self._version >= SINCE.get(column, 1)

    def _cells(self, clip: NewClip) -> dict[str, Any]:
        return {name: cell for name, cell in dataclasses.asdict(clip).items() if self._has(name)}

    def _require_room(self, clips: Sequence[NewClip]) -> None:
        for name in SINCE:
            told = [clip for clip in clips if getattr(clip, name)]
            if told and not self._has(name):
                raise DataError(
                    f"{self.name}: schema version {self._version} has no {name}, but "
                    f"{told[0].source} has; prepare into another folder"
                )

    def _bump(self, connection: sql.Connection) -> None:
        """Let the revision grow, in the transaction of the change."""
        count = sql.cast(sql.cast(_info.c.value, sql.BigInteger) + 1, sql.Text)
        grown = sql.update(_info).where(_info.c.key == REVISION).values(value=count)
        connection.execute(grown)


def _url(place: Path | str) -> sql.URL:
    if isinstance(place, Path):
        return sql.URL.create("sqlite", database=str(place / FILE_NAME))
    try:
        return sql.make_url(place)
    except sql.exc.ArgumentError:
        raise DataError(
            f"{place!r} is no URL of a database; expected one such as "
            "postgresql+psycopg://user@host/name"
        ) from None


def _name(url: sql.URL) -> str:
    """How messages call it: a file by its path, a database by its URL without the password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


@contextmanager
def _connect(url: sql.URL) -> Iterator[sql.Connection]:
    """A connection in one transaction; what the database refuses becomes a `DataError` of it."""
    name, where = _name(url), "restore this file from a copy, or delete the data folder and run"
    try:
        engine = sql.create_engine(url, poolclass=sql.NullPool)
        with engine.begin() as connection:
            yield connection
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name}: the driver {error.name} is not installed; for PostgreSQL, install "
            'Scalewright as ".[postgresql]"'
        ) from None
    except sql.exc.IntegrityError as error:
        raise DataError(
            f"{name}: refused a row: {error.orig}; a source may be added or rejected only once, "
            "by one process at a time (skip Catalogue.sources())"
        ) from error
    except sql.exc.OperationalError as error:
        raise DataError(
            f"{name}: {error.orig}; see that it can be read and written, that its disk is not full "
            "and that no other process is preparing into it"
        ) from error
    except sql.exc.DatabaseError as error:
        raise DataError(f"{name}: {error.orig}; {where} jobs/prepare.py again") from error


def _create_file(path: Path, info: DataInfo) -> None:
    """Write an empty catalogue under another name first, so that a crash leaves none behind."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with _connect(sql.URL.create("sqlite", database=str(part))) as connection:
        _fill(connection, info)
    os.replace(part, path)


def _fill(connection: sql.Connection, info: DataInfo) -> None:
    values = {"schema_version": SCHEMA_VERSION, REVISION: 0, **dataclasses.asdict(info)}
    _tables.create_all(connection)
    rows = [{"key": key, "value": str(value)} for key, value in values.items()]
    connection.execute(sql.insert(_info), rows)


def _read_info(url: sql.URL) -> tuple[DataInfo, int]:
    """What made the data, and the schema version of the catalogue."""
    name = _name(url)
    with _connect(url) as connection:
        missing = {"info", "clips"} - set(sql.inspect(connection).get_table_names())
        if missing:
            raise DataError(
                f"{name}: not a catalogue: table {', '.join(sorted(missing))} is missing; give "
                "the folder that jobs/prepare.py wrote"
            )
        values = {row.key: row.value for row in connection.execute(sql.select(_info))}
    try:
        version = int(values["schema_version"])
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{name}: schema version {version} is newer than {SCHEMA_VERSION}, the newest "
                "this Scalewright reads; use the version that made it, or prepare again"
            )
        info = DataInfo(
            codec=values["codec"],
            latent_channels=int(values["latent_channels"]),
            text_encoder=values["text_encoder"],
            text_dim=int(values["text_dim"]),
        )
        return info, version
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{name}: table info is damaged ({error!r}); restore it from a copy, or delete the "
            "data folder and run jobs/prepare.py again"
        ) from None


def _require_same(name: str, found: DataInfo, wanted: DataInfo) -> None:
    for key in (each.name for each in dataclasses.fields(DataInfo)):
        holds, asked = getattr(found, key), getattr(wanted, key)
        if holds != asked:
            raise DataError(
                f"{name}: made with {key} = {holds!r}, not {asked!r}; prepare into another "
                "folder, or delete this one first"
            )


def _check_sizes(name: str, info: DataInfo, clips: Clips) -> None:
    sizes = (clips.latent_frames, clips.height, clips.width)
    least = np.minimum.reduce([*sizes, clips.text_tokens])
    positions = np.prod([size.astype(np.float64) for size in sizes], axis=0)
    bytes_needed = 2 * (positions * info.latent_channels + clips.text_tokens * float(info.text_dim))
    wrong = np.flatnonzero((least < 1) | (bytes_needed > clips.bytes) | (clips.offset < 0))
    if len(wrong):
        entry = clips.entry(int(wrong[0]))
        raise DataError(
            f"{name}: clip {entry.id} cannot be: a latent of {entry.latent_frames} x "
            f"{entry.height} x {entry.width} with {entry.text_tokens} text tokens in "
            f"{entry.bytes} bytes at {entry.offset} of {entry.shard} ({len(wrong)} such clips); "
            f"{WAY_OUT}"
        )
