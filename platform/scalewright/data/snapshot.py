"""A catalogue as it was at one moment: what a run trains on, however the catalogue goes on.

One Arrow file (IPC, uncompressed), readable by anything that reads Arrow, memory-mapped here, so
that opening a hundred million clips takes no longer than opening ten.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import COLUMNS, Clips
from scalewright.data.query import ClipQuery
from scalewright.data.sample import DataInfo
from scalewright.errors import DataError

FILE_NAME = "snapshot.arrow"
SCHEMA_VERSION = 1
SCORE_PREFIX = "score_"
_KINDS = COLUMNS | {"validation": np.uint8}  # scores are float64
# Where the bytes lie changes nothing that is trained on.
NOT_IN_DIGEST = ("shard", "offset")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """`clips` ordered by id, of which `validation` tells who is held out.

    `digest`: 16 hex digits that change with the clips, their sizes, scores and `info`. `revision`:
    that of the catalogue it was taken of.
    """

    info: DataInfo
    revision: int
    clips: Clips
    validation: NDArray[np.bool_]
    digest: str

    def rows(self, query: ClipQuery, *, validation: bool = False) -> NDArray[np.int64]:
        """Rows of the clips that a query means, among those trained on or those held out."""
        return np.flatnonzero(query.mask(self.clips) & (self.validation == validation))


def snapshot_of(
    info: DataInfo, revision: int, clips: Clips, validation: NDArray[np.bool_]
) -> Snapshot:
    """With its digest."""
    state = hashlib.sha256(json.dumps(asdict(info)).encode())
    state.update(json.dumps(clips.collections).encode())
    for name in COLUMNS:
        if name not in NOT_IN_DIGEST:
            state.update(np.ascontiguousarray(getattr(clips, name)).data)
    state.update(np.ascontiguousarray(validation).data)
    for name, column in sorted(clips.scores.items()):
        state.update(name.encode())
        state.update(np.ascontiguousarray(column).data)
    return Snapshot(info, revision, clips, validation, state.hexdigest()[:16])


def verify(snapshot: Snapshot, where: str) -> Snapshot:
    """The same; `DataError` where its columns are not those that its digest was made of."""
    made = snapshot_of(snapshot.info, snapshot.revision, snapshot.clips, snapshot.validation)
    if made.digest != snapshot.digest:
        raise DataError(
            f"{where}: its clips have the digest {made.digest}, not {snapshot.digest} as it says: "
            "the file changed after it was written; copy it again, or run jobs/prepare.py again"
        )
    return snapshot


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write the file in one piece: there is the old one, or the new one, never a part."""
    import pyarrow as pa

    clips = snapshot.clips
    columns = {name: getattr(clips, name) for name in COLUMNS}
    columns |= {SCORE_PREFIX + name: column for name, column in clips.scores.items()}
    columns["validation"] = snapshot.validation.astype(np.uint8)
    about = {
        "schema_version": SCHEMA_VERSION,
        "info": asdict(snapshot.info),
        "revision": snapshot.revision,
        "digest": snapshot.digest,
        "shards": clips.shards,
        "collections": clips.collections,
    }
    table = pa.table({name: _array(column) for name, column in columns.items()})
    table = table.replace_schema_metadata({"scalewright": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, len(clips)))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_snapshot(path: Path) -> Snapshot:
    """Map a file that `write_snapshot` wrote; `DataError` if missing, cut short or foreign."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = json.loads(table.schema.metadata[b"scalewright"])
        if about["schema_version"] > SCHEMA_VERSION:
            raise DataError(
                f"{path}: schema version {about['schema_version']} is newer than {SCHEMA_VERSION}, "
                "the newest this Scalewright reads; use the version that wrote it"
            )
        columns = {name: _column(table, name) for name in table.column_names}
        clips = Clips(
            **{name: columns[name] for name in COLUMNS},
            shards=tuple(about["shards"]),
            collections=tuple(about["collections"]),
            scores={
                name.removeprefix(SCORE_PREFIX): column
                for name, column in columns.items()
                if name.startswith(SCORE_PREFIX)
            },
        )
        return Snapshot(
            info=DataInfo(**about["info"]),
            revision=about["revision"],
            clips=clips,
            validation=columns["validation"].view(np.bool_),
            digest=about["digest"],
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such snapshot of a catalogue") from None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: not a snapshot of a catalogue ({error}); restore this file from a copy, or "
            "start the run over with --fresh"
        ) from None


# Arrow's own ways from and to NumPy import pandas where it is installed, which takes a second.


def _array(column: NDArray[Any]) -> Any:
    import pyarrow as pa

    data = pa.py_buffer(np.ascontiguousarray(column))
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, data])


def _column(table: Any, name: str) -> NDArray[Any]:
    import pyarrow as pa

    kind = np.dtype(_KINDS.get(name, np.float64))
    column = table.column(name)
    if column.type != pa.from_numpy_dtype(kind) or column.null_count:
        raise ValueError(f"{name} is {column.type} with {column.null_count} nulls, not {kind}")
    if column.num_chunks > 1:
        raise ValueError(
            f"{name} is in {column.num_chunks} pieces; it was written by something else"
        )
    if column.num_chunks == 0:
        return np.empty(0, kind)
    chunk = column.chunk(0)
    data = chunk.buffers()[1]
    return np.frombuffer(data, kind, len(chunk), chunk.offset * kind.itemsize)
