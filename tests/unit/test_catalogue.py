"""The catalogue: what goes in comes out, foreign files are refused, the snapshot is honest."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from scalewright.data.catalogue import Catalogue, DataInfo, NewClip
from scalewright.data.sample import Entry
from scalewright.errors import DataError

INFO = DataInfo(
    codec="haar(octaves=2)", latent_channels=32, text_encoder="byte-ngrams(dim=64)", text_dim=64
)


def clip(number: int, split: str = "train") -> NewClip:
    return NewClip(
        source=f"clips/{number}.mp4",
        split=split,
        caption=f"caption {number}",
        shard=f"{number // 4:06d}.tar",
        offset=512 + 1024 * number,
        bytes=900 + number,
        crc32c=0xFFFF0000 + number,
        latent_frames=1 + number % 5,
        height=8,
        width=12,
        text_tokens=1 + number % 3,
    )


def test_clips_come_back_by_split_in_the_order_added(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path / "data", INFO)
    catalogue.add([clip(7), clip(3), clip(5, "validation")])
    catalogue.add([clip(1)])

    again = Catalogue.open(tmp_path / "data")

    assert again.info == INFO
    train = again.entries("train")
    assert [entry.id for entry in train] == [1, 2, 4]
    assert train[0] == Entry(
        id=1,
        shard="000001.tar",
        offset=7680,
        bytes=907,
        crc32c=0xFFFF0007,
        latent_frames=3,
        height=8,
        width=12,
        text_tokens=2,
    )
    assert [entry.bytes for entry in again.entries("validation")] == [905]
    assert again.captions([4, 1]) == {1: "caption 7", 4: "caption 1"}


def test_create_goes_on_with_the_catalogue_there(tmp_path: Path) -> None:
    Catalogue.create(tmp_path, INFO).add([clip(0)])
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.reject("clips/broken.mp4", "no frame could be decoded")

    assert catalogue.sources() == {"clips/0.mp4", "clips/broken.mp4"}
    assert catalogue.rejected() == [("clips/broken.mp4", "no frame could be decoded")]
    assert len(catalogue.entries("train")) == 1
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("other", "both"),
    [
        (replace(INFO, codec="cogvideox(1f2e3d)"), ["haar(octaves=2)", "cogvideox(1f2e3d)"]),
        (replace(INFO, latent_channels=16), ["32", "16"]),
        (replace(INFO, text_encoder="t5(abc)"), ["byte-ngrams(dim=64)", "t5(abc)"]),
        (replace(INFO, text_dim=128), ["64", "128"]),
    ],
)
def test_another_codec_or_encoder_is_refused_with_both_names(
    tmp_path: Path, other: DataInfo, both: list[str]
) -> None:
    Catalogue.create(tmp_path, INFO)
    with pytest.raises(DataError, match="another folder") as caught:
        Catalogue.create(tmp_path, other)
    assert all(name in str(caught.value) for name in both)


def test_missing_catalogue_names_the_job_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"jobs/prepare\.py"):
        Catalogue.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 certainly not a database" * 100])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "catalogue.sqlite").write_bytes(content)
    with pytest.raises(DataError, match=r"catalogue\.sqlite"):
        Catalogue.open(tmp_path)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TABLE clips", "table clips is missing"),
        ("UPDATE info SET value = '2' WHERE key = 'schema_version'", "version 2 is newer than 1"),
        ("DELETE FROM info WHERE key = 'codec'", "damaged"),
        ("UPDATE info SET value = 'many' WHERE key = 'text_dim'", "damaged"),
    ],
)
def test_a_damaged_or_newer_catalogue_is_refused(
    tmp_path: Path, statement: str, message: str
) -> None:
    Catalogue.create(tmp_path, INFO)
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as connection:
        connection.execute(statement)
    with pytest.raises(DataError, match=message):
        Catalogue.open(tmp_path)


def test_a_source_enters_once_and_a_refused_batch_leaves_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.add([clip(0)])
    with pytest.raises(DataError, match="only once"):
        catalogue.add([clip(1), clip(0)])
    with pytest.raises(DataError, match="only once"):
        catalogue.reject("clips/0.mp4", "seen already")
    assert catalogue.sources() == {"clips/0.mp4"}


def test_a_folder_that_went_away_is_not_called_damaged(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path / "data", INFO)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match="can be read and written"):
        catalogue.add([clip(0)])


def test_unknown_ids_have_no_caption(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.add([clip(0)])
    with pytest.raises(DataError, match=r"\[2, 9\]"):
        catalogue.captions([1, 9, 2])


def test_captions_of_more_ids_than_one_statement_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalewright.data.catalogue.IDS_PER_QUERY", 3)
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.add([clip(number) for number in range(10)])
    assert catalogue.captions(range(1, 11)) == {n: f"caption {n - 1}" for n in range(1, 11)}


def test_snapshot_ignores_when_clips_came(tmp_path: Path) -> None:
    at_once = Catalogue.create(tmp_path / "a", INFO)
    at_once.add([clip(number) for number in range(5)])
    bit_by_bit = Catalogue.create(tmp_path / "b", INFO)
    for number in range(5):
        bit_by_bit.add([clip(number)])
        bit_by_bit.reject(f"clips/bad-{number}.mp4", "too dark")

    assert at_once.snapshot("train") == bit_by_bit.snapshot("train")
    assert at_once.entries("train") == bit_by_bit.entries("train")
    assert len(at_once.snapshot("train")) == 12
    assert int(at_once.snapshot("train"), 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"crc32c": 1},
        {"bytes": 901},
        {"latent_frames": 9},
        {"height": 16},
        {"width": 16},
        {"text_tokens": 7},
        {"split": "validation"},
    ],
)
def test_snapshot_changes_with_every_property_of_a_clip(
    tmp_path: Path, change: dict[str, object]
) -> None:
    clips = [clip(number) for number in range(5)]
    before = Catalogue.create(tmp_path / "a", INFO)
    before.add(clips)
    after = Catalogue.create(tmp_path / "b", INFO)
    after.add([*clips[:2], replace(clips[2], **change), *clips[3:]])
    assert before.snapshot("train") != after.snapshot("train")


def test_snapshot_changes_with_order_addition_and_codec(tmp_path: Path) -> None:
    def snapshot(name: str, clips: list[NewClip], info: DataInfo = INFO) -> str:
        catalogue = Catalogue.create(tmp_path / name, info)
        catalogue.add(clips)
        return catalogue.snapshot("train")

    clips = [clip(number) for number in range(3)]
    snapshots = {
        snapshot("a", clips),
        snapshot("b", clips[::-1]),
        snapshot("c", [*clips, clip(3)]),
        snapshot("d", clips, replace(INFO, codec="haar(octaves=1)")),
        snapshot("e", []),
    }
    assert len(snapshots) == 5
