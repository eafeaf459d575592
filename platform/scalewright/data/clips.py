"""Many clips as columns: what the order, the packs and the queries are computed from.

A clip is a row of some 50 bytes; columns may lie in a memory-mapped file, so that a hundred
million clips need no more memory than is looked at.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalewright.data.sample import Entry

# Columns and their types, beside scores. `shard` and `collection` are indices into names.
COLUMNS: dict[str, type[np.generic]] = {
    "id": np.int64,
    "shard": np.int32,
    "offset": np.int64,
    "bytes": np.int64,
    "crc32c": np.uint32,
    "latent_frames": np.int32,
    "height": np.int32,
    "width": np.int32,
    "text_tokens": np.int32,
    "collection": np.int32,
}


@dataclass(frozen=True, eq=False)
class Clips:
    """Columns of equal length, row i of all of them being one clip.

    `shards` and `collections` are the names that their columns count; `scores` by name, NaN where
    a clip has none.
    """

    id: NDArray[np.int64]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    bytes: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    latent_frames: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    text_tokens: NDArray[np.int32]
    collection: NDArray[np.int32]
    shards: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Clips":
        """The columns of entries, in their order; takes them in as they come."""
        builder = ClipsBuilder()
        for entry in entries:
            values = [getattr(entry, name) for name in COLUMNS]
            builder.add([(*values, entry.scores)])
        return builder.build()

    def entry(self, row: int) -> Entry:
        """Row `row` (from 0) as an entry."""
        return self.take(np.array([row])).entries()[0]

    def entries(self) -> list[Entry]:
        """Every row, as entries; only for few. Of some rows: `take` them first."""
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        columns["shard"] = [self.shards[number] for number in columns["shard"]]
        columns["collection"] = [self.collections[number] for number in columns["collection"]]
        rows = zip(*columns.values(), self._known_scores(), strict=True)
        return list(itertools.starmap(Entry, rows))  # its fields come in the order of `COLUMNS`

    def _known_scores(self) -> list[dict[str, float]]:
        if not self.scores:
            return [{} for _ in range(len(self))]
        rows = zip(*(column.tolist() for column in self.scores.values()), strict=True)
        return [
            {name: value for name, value in zip(self.scores, row, strict=True) if value == value}
            for row in rows
        ]

    def take(self, rows: NDArray[Any]) -> "Clips":
        """The rows of an index array or a mask, copied."""
        columns = {
            column.name: getattr(self, column.name)[rows]
            for column in fields(self)
            if column.name in COLUMNS
        }
        scores = {name: column[rows] for name, column in self.scores.items()}
        return replace(self, **columns, scores=scores)

    @property
    def is_video(self) -> NDArray[np.bool_]:
        return self.latent_frames > 1

    @property
    def aspects(self) -> NDArray[np.int64]:
        """A number for each aspect ratio, the same for all clips of it."""
        divisor = np.gcd(self.height, self.width).astype(np.int64)
        return (self.height // divisor) * (1 << 32) + self.width // divisor


class ClipsBuilder:
    """Collects rows, batch by batch, into columns."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        self._names: dict[str, dict[str, int]] = {"shard": {}, "collection": {}}
        self._scores: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
        self._count = 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows of the values of `COLUMNS` in their order, and a mapping of scores at the end."""
        *columns, scores = zip(*rows, strict=True)
        for (name, kind), column in zip(COLUMNS.items(), columns, strict=True):
            if (numbers := self._names.get(name)) is not None:
                column = tuple(numbers.setdefault(value, len(numbers)) for value in column)
            self._parts[name].append(np.array(column, dtype=kind))
        known: dict[str, list[tuple[int, float]]] = {}
        for place, row in enumerate(scores, start=self._count):
            for name, value in (row or {}).items():
                known.setdefault(name, []).append((place, value))
        for name, pairs in known.items():
            places, values = zip(*pairs, strict=True)
            self._scores.setdefault(name, []).append(
                (np.array(places, np.int64), np.array(values, np.float64))
            )
        self._count += len(rows)

    def build(self) -> Clips:
        """All rows so far."""
        columns: dict[str, Any] = {
            name: np.concatenate([np.empty(0, COLUMNS[name]), *parts])
            for name, parts in self._parts.items()
        }
        scores = {}
        for name in sorted(self._scores):
            scores[name] = np.full(self._count, np.nan, np.float64)
            for places, values in self._scores[name]:
                scores[name][places] = values
        shards, collections = (tuple(self._names[name]) for name in ("shard", "collection"))
        return Clips(**columns, shards=shards, collections=collections, scores=scores)
