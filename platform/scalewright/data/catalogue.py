"""Which clips there are: one SQLite file that names every source seen and where its latent lies.

A clip enters when its shard is sealed, a rejected source with its reason, so the catalogue never
points at half-written bytes. One process writes at a time; any number may read.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sql

from scalewright.data.query import ClipQuery
from scalewright.data.sample import Entry
from scalewright.errors import DataError

SCHEMA_VERSION = 2
SCORES_SINCE = 2  # older catalogues have no such column; they are read as they are
FILE_NAME = "catalogue.sqlite"
IDS_PER_QUERY = 10_000  # SQLite takes at most 32766 parameters in a statement

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
    sql.Column("id", sql.Integer, unique=True),
    sql.Column("split", sql.Text),
    sql.Column("status", sql.Text, nullable=False),
    sql.Column("reason", sql.Text),
    sql.Column("caption", sql.Text),
    sql.Column("shard", sql.Text),
    sql.Column("offset", sql.Integer),
    sql.Column("bytes", sql.Integer),
    sql.Column("crc32c", sql.Integer),
    sql.Column("latent_frames", sql.Integer),
    sql.Column("height", sql.Integer),
    sql.Column("width", sql.Integer),
    sql.Column("text_tokens", sql.Integer),
    sql.Column("scores", sql.JSON),
    sql.CheckConstraint("status IN ('done', 'rejected')"),
    sql.CheckConstraint("split IN ('train', 'validation')"),
    sql.CheckConstraint("(status = 'done') = (id IS NOT NULL)"),
    sql.Index("clips_by_split", "status", "split", "id"),
)


@dataclass(frozen=True)
class DataInfo:
    """What made the latents and the text embeddings: fingerprints of codec and text encoder."""

    codec: str
    latent_channels: int
    text_encoder: str
    text_dim: int


@dataclass(frozen=True)
class NewClip:
    """A clip whose shard is sealed; `height, width` are those of the latent.

    `source` names one clip: a file, or a part of one such as `a.mp4#12.5-17.0`. `scores`: quality
    by name, from 0 to 1; leave out what is unknown.
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
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.scores.items():
            if not 0 <= value <= 1:
                raise DataError(f"{self.source}: score {name} = {value}; allowed: 0 to 1")


class Catalogue:
    """The catalogue of a data folder; made by `create` or `open`."""

    def __init__(self, path: Path, info: DataInfo, version: int) -> None:
        self.path = path
        self.info = info
        self._version = version

    @classmethod
    def create(cls, folder: Path, info: DataInfo) -> "Catalogue":
        """Make the folder's catalogue, or go on with the one there if it holds the same `info`.

        `DataError` names both sides when it was made with another codec or text encoder.
        """
        path = folder / FILE_NAME
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _create_file(path, info)
        catalogue = cls.open(folder)
        _require_same(path, catalogue.info, info)
        return catalogue

    @classmethod
    def open(cls, folder: Path) -> "Catalogue":
        """Open the folder's catalogue; `DataError` if it is missing, foreign or newer than this."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise DataError(f"{path}: no catalogue here; run jobs/prepare.py to make one")
        return cls(path, *_read_info(path))

    def add(self, clips: Sequence[NewClip]) -> None:
        """Add clips in one transaction; ids go on from the last, in the order given.

        `DataError` for scores where the catalogue is older than these.
        """
        if not clips:
            return
        self._require_room_for_scores(clips)
        with _connect(self.path) as connection:
            last = connection.scalar(sql.select(sql.func.max(_clips.c.id))) or 0
            rows = [
                {"id": last + number, "status": "done", **self._cells(clip)}
                for number, clip in enumerate(clips, start=1)
            ]
            connection.execute(sql.insert(_clips), rows)

    def reject(self, source: str, reason: str) -> None:
        """Note that `source` gives no clip, and why."""
        row = {"source": source, "status": "rejected", "reason": reason}
        with _connect(self.path) as connection:
            connection.execute(sql.insert(_clips), [row])

    def sources(self) -> set[str]:
        """Every source seen, done or rejected."""
        with _connect(self.path) as connection:
            return set(connection.scalars(sql.select(_clips.c.source)))

    def rejected(self) -> list[tuple[str, str]]:
        """(source, reason) of every rejected source, ordered by source."""
        query = (
            sql.select(_clips.c.source, _clips.c.reason)
            .where(_clips.c.status == "rejected")
            .order_by(_clips.c.source)
        )
        with _connect(self.path) as connection:
            return [(row.source, row.reason) for row in connection.execute(query)]

    def entries(self, split: Split, query: ClipQuery | None = None) -> list[Entry]:
        """The done clips of a split that `query` means, or all of them, ordered by id."""
        names = [each.name for each in dataclasses.fields(Entry)]
        chosen = (
            sql.select(*(_clips.c[name] for name in names if self._has(name)))
            .where(_clips.c.status == "done", _clips.c.split == split)
            .where(*_conditions(query or ClipQuery()))
            .order_by(_clips.c.id)
        )
        try:
            with _connect(self.path) as connection:
                return [Entry(*row) for row in connection.execute(chosen)]
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}: scores that are not JSON: {error}; restore this file from a copy, "
                "or delete the data folder and run jobs/prepare.py again"
            ) from None

    def captions(self, ids: Sequence[int]) -> dict[int, str]:
        """Caption by id; `DataError` names ids that the catalogue does not hold."""
        found: dict[int, str] = {}
        with _connect(self.path) as connection:
            for first in range(0, len(ids), IDS_PER_QUERY):
                some = ids[first : first + IDS_PER_QUERY]
                query = sql.select(_clips.c.id, _clips.c.caption).where(_clips.c.id.in_(some))
                found.update({row.id: row.caption for row in connection.execute(query)})
        if missing := sorted(set(ids) - found.keys()):
            raise DataError(
                f"{self.path}: no clip with id {missing[:5]} ({len(missing)} of {len(ids)} asked "
                "for); the ids belong to another catalogue"
            )
        return found

    def snapshot(self, split: Split) -> str:
        """Twelve hex digits that change with the split's clips, their sizes and scores, and `info`.

        Where the bytes lie (shard, offset) is left out: it changes nothing that is trained on.
        """
        state = hashlib.sha256(json.dumps(dataclasses.asdict(self.info)).encode())
        for entry in self.entries(split):
            sizes = (entry.latent_frames, entry.height, entry.width, entry.text_tokens)
            # Without scores, the digits are those that they were before there were any.
            scores = sorted(entry.scores.items())
            state.update(repr((entry.id, entry.crc32c, entry.bytes, *sizes, *scores)).encode())
        return state.hexdigest()[:12]

    def _has(self, column: str) -> bool:
        return column != "scores" or self._version >= SCORES_SINCE

    def _cells(self, clip: NewClip) -> dict[str, Any]:
        return {name: cell for name, cell in dataclasses.asdict(clip).items() if self._has(name)}

    def _require_room_for_scores(self, clips: Sequence[NewClip]) -> None:
        scored = [clip for clip in clips if clip.scores]
        if scored and not self._has("scores"):
            raise DataError(
                f"{self.path}: schema version {self._version} has no scores, but "
                f"{scored[0].source} has; prepare into another folder"
            )


def _conditions(query: ClipQuery) -> list[sql.ColumnElement[bool]]:
    area, frames = _clips.c.height * _clips.c.width, _clips.c.latent_frames
    conditions = [area >= query.min_latent_area, frames >= query.min_latent_frames]
    if query.max_latent_area is not None:
        conditions.append(area <= query.max_latent_area)
    if query.max_latent_frames is not None:
        conditions.append(frames <= query.max_latent_frames)
    if query.kind != "all":
        conditions.append(frames > 1 if query.kind == "video" else frames == 1)
    return conditions


@contextmanager
def _connect(path: Path) -> Iterator[sql.Connection]:
    """A connection in one transaction; what SQLite refuses becomes a `DataError` of this file."""
    engine = sql.create_engine(sql.URL.create("sqlite", database=str(path)), poolclass=sql.NullPool)
    try:
        with engine.begin() as connection:
            yield connection
    except sql.exc.IntegrityError as error:
        raise DataError(
            f"{path}: refused a row: {error.orig}; a source may be added or rejected only once, "
            "by one process at a time (skip Catalogue.sources())"
        ) from error
    except sql.exc.OperationalError as error:
        raise DataError(
            f"{path}: {error.orig}; see that the folder can be read and written, that its disk is "
            "not full and that no other process is preparing into it"
        ) from error
    except sql.exc.DatabaseError as error:
        raise DataError(
            f"{path}: {error.orig}; restore this file from a copy, or delete the data folder and "
            "run jobs/prepare.py again"
        ) from error


def _create_file(path: Path, info: DataInfo) -> None:
    """Write an empty catalogue under another name first, so that a crash leaves none behind."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    values = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(info)}
    with _connect(part) as connection:
        _tables.create_all(connection)
        rows = [{"key": key, "value": str(value)} for key, value in values.items()]
        connection.execute(sql.insert(_info), rows)
    os.replace(part, path)


def _read_info(path: Path) -> tuple[DataInfo, int]:
    """What made the data, and the schema version of the file."""
    with _connect(path) as connection:
        missing = {"info", "clips"} - set(sql.inspect(connection).get_table_names())
        if missing:
            raise DataError(
                f"{path}: not a catalogue: table {', '.join(sorted(missing))} is missing; give "
                "the folder that jobs/prepare.py wrote"
            )
        values = {row.key: row.value for row in connection.execute(sql.select(_info))}
    try:
        version = int(values["schema_version"])
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest "
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
            f"{path}: table info is damaged ({error!r}); restore this file from a copy, or "
            "delete the data folder and run jobs/prepare.py again"
        ) from None


def _require_same(path: Path, found: DataInfo, wanted: DataInfo) -> None:
    for name in (each.name for each in dataclasses.fields(DataInfo)):
        holds, asked = getattr(found, name), getattr(wanted, name)
        if holds != asked:
            raise DataError(
                f"{path}: made with {name} = {holds!r}, not {asked!r}; prepare into another "
                "folder, or delete this one first"
            )
