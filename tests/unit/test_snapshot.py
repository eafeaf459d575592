"""Snapshots: what goes in comes out of the file, mapped, and a run keeps the one it began with."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from folders import write_data_folder
from pyarrow import feather

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.clips import COLUMNS, Clips
from scalewright.data.pinning import pinned_snapshot
from scalewright.data.query import ClipQuery
from scalewright.data.reading import ClipReader
from scalewright.data.sample import DataInfo, Entry
from scalewright.data.snapshot import Snapshot, open_snapshot, snapshot_of, write_snapshot
from scalewright.data.storage import Folder
from scalewright.errors import DataError

INFO = DataInfo("haar", 32, "bytes", 64)


def entry(number: int) -> Entry:
    return Entry(
        number, f"{number % 3:06d}.tar", 2**40 + number, 1000, 2**32 - number, 1 + number % 4, 8,
        12, 3, "ab"[number % 2], {"motion": number / 7} if number % 2 else {},
    )  # fmt: skip


def made(count: int = 9) -> Snapshot:
    clips = Clips.of(entry(number) for number in range(1, count + 1))
    return snapshot_of(INFO, 5, clips, np.arange(count) % 3 == 0)


def test_columns_and_entries_say_the_same() -> None:
    entries = [entry(number) for number in range(1, 10)]
    clips = Clips.of(iter(entries))
    assert clips.entries() == entries
    assert clips.take(np.array([4, 1])).entries() == [entries[4], entries[1]]
    assert clips.take(clips.is_video).entries() == [e for e in entries if e.is_video]
    assert Clips.of([]).entries() == []


def test_a_file_holds_everything_and_is_mapped(tmp_path: Path) -> None:
    snapshot = made()
    write_snapshot(snapshot, tmp_path / "run" / "snapshot.arrow")
    found = open_snapshot(tmp_path / "run" / "snapshot.arrow")
    assert (found.info, found.revision, found.digest) == (INFO, 5, snapshot.digest)
    assert found.clips.entries() == snapshot.clips.entries()
    assert found.validation.tolist() == snapshot.validation.tolist()
    assert not found.clips.offset.flags.owndata
    assert not found.clips.offset.flags.writeable
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["snapshot.arrow"]
    assert found.rows(ClipQuery(kind="video"), validation=True).tolist() == [0, 6]


def test_an_empty_snapshot_is_one(tmp_path: Path) -> None:
    write_snapshot(made(0), tmp_path / "snapshot.arrow")
    assert len(open_snapshot(tmp_path / "snapshot.arrow").clips) == 0


def test_plain_arrow_reads_it(tmp_path: Path) -> None:
    write_snapshot(made(), tmp_path / "snapshot.arrow")
    table = pa.ipc.open_file(str(tmp_path / "snapshot.arrow")).read_all()
    assert set(COLUMNS) | {"validation", "score_motion"} == set(table.column_names)
    about = json.loads(table.schema.metadata[b"scalewright"])
    assert about["shards"] == ["000001.tar", "000002.tar", "000000.tar"]


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.arrow"
    with pytest.raises(DataError, match="no such snapshot"):
        open_snapshot(path)
    write_snapshot(made(), path)
    whole = path.read_bytes()
    for content in (b"", b"not arrow", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"snapshot\.arrow: not a snapshot"):
            open_snapshot(path)
    feather.write_feather(pa.table({"id": [1]}), path, compression="uncompressed")
    with pytest.raises(DataError, match="not a snapshot"):
        open_snapshot(path)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.arrow"
    write_snapshot(made(), path)
    table = pa.ipc.open_file(str(path)).read_all()
    place = table.column_names.index("height")
    table = table.set_column(place, "height", table.column("height").cast(pa.int64()))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="height is int64 with 0 nulls, not int32"):
        open_snapshot(path)


def test_a_run_keeps_the_snapshot_that_it_began_with(tmp_path: Path) -> None:
    data = write_data_folder(tmp_path / "data", clips=16)
    pinned = tmp_path / "run" / "snapshot.arrow"
    begun = pinned_snapshot(str(data), None, pinned)
    assert len(begun.clips) == 16
    more = NewClip("new.png", "train", "new", "000000.tar", 512, 10_000, 0, 1, 4, 4, 2)
    Catalogue.open(data).add([more])
    again = pinned_snapshot(str(data), None, pinned)
    assert again.digest == begun.digest
    assert len(again.clips) == 16
    assert len(pinned_snapshot(str(data), None, None).clips) == 17


def test_the_snapshot_beside_a_catalogue_is_taken_while_it_is_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data_folder(tmp_path / "data", clips=16)
    catalogue = Catalogue.open(data)
    write_snapshot(catalogue.snapshot(), data / "snapshot.arrow")
    with monkeypatch.context() as patched:
        patched.setattr(Catalogue, "snapshot", lambda self: pytest.fail("read row by row"))
        assert len(pinned_snapshot(str(data), None, None).clips) == 16
    catalogue.add([NewClip("new.png", "train", "new", "000000.tar", 512, 10_000, 0, 1, 4, 4, 2)])
    assert len(pinned_snapshot(str(data), None, None).clips) == 17


def test_a_file_in_several_pieces_is_refused(tmp_path: Path) -> None:
    catalogue = Catalogue.open(write_data_folder(tmp_path / "data", clips=12))
    path = tmp_path / "snapshot.arrow"
    write_snapshot(catalogue.snapshot(), path)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    with (
        pa.OSFile(str(tmp_path / "other.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=5)
    with pytest.raises(DataError, match=r"other\.arrow: .* is in 3 pieces"):
        open_snapshot(tmp_path / "other.arrow")


def test_a_flipped_bit_is_found_when_a_run_is_pinned_to_it(tmp_path: Path) -> None:
    data = write_data_folder(tmp_path / "data", clips=12)
    snapshot = Catalogue.open(data).snapshot()
    width = snapshot.clips.width.copy()
    width[3] ^= 1
    wrong = replace(snapshot, clips=replace(snapshot.clips, width=width))
    write_snapshot(wrong, data / "snapshot.arrow")
    with pytest.raises(DataError, match=r"snapshot\.arrow: its clips have the digest"):
        pinned_snapshot(str(data), None, tmp_path / "run" / "snapshot.arrow")
    assert not (tmp_path / "run" / "snapshot.arrow").exists()


def test_a_flipped_bit_in_the_empty_prompt_is_found(tmp_path: Path) -> None:
    data = write_data_folder(tmp_path / "data", clips=12)
    reader = ClipReader(Folder(data))
    assert reader.null_text().ndim == 2
    path = data / "null_text.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"null_text\.safetensors: .*its checksum is another"):
        reader.null_text()
    reader.close()
