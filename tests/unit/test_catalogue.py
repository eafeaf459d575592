"""The catalogue: what goes in comes out, foreign files are refused, the snapshot is honest."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from catalogues import INFO, clip

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.sample import DataInfo, Entry
from scalewright.errors import DataError


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
        bytes=90_007,
        crc32c=0xFFFF0007,
        latent_frames=3,
        height=8,
        width=12,
        text_tokens=2,
    )
    assert [entry.bytes for entry in again.entries("validation")] == [90_005]
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
        ("UPDATE info SET value = '4' WHERE key = 'schema_version'", "version 4 is newer than 3"),
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


def test_a_snapshot_ignores_when_clips_came(tmp_path: Path) -> None:
    at_once = Catalogue.create(tmp_path / "a", INFO)
    at_once.add([clip(number) for number in range(5)])
    bit_by_bit = Catalogue.create(tmp_path / "b", INFO)
    for number in range(5):
        bit_by_bit.add([clip(number)])
        bit_by_bit.reject(f"clips/bad-{number}.mp4", "too dark")

    assert at_once.snapshot().digest == bit_by_bit.snapshot().digest
    assert at_once.snapshot().clips.entries() == bit_by_bit.entries("train")
    assert len(at_once.snapshot().digest) == 16


def test_the_revision_grows_with_every_change(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    assert catalogue.revision() == 0
    catalogue.add([clip(0), clip(1)])
    assert catalogue.revision() == catalogue.snapshot().revision == 1
    catalogue.reject("clips/bad.mp4", "too dark")
    assert Catalogue.open(tmp_path).revision() == 2
    with pytest.raises(DataError, match="only once"):
        catalogue.add([clip(2), clip(0)])
    assert catalogue.revision() == 2


@pytest.mark.parametrize(
    "change",
    [
        {"crc32c": 1},
        {"bytes": 90_001},
        {"latent_frames": 9},
        {"height": 16},
        {"width": 16},
        {"text_tokens": 7},
        {"split": "validation"},
        {"scores": {"motion": 0.5}},
        {"collection": "pexels"},
    ],
)
def test_a_snapshot_changes_with_every_property_of_a_clip(
    tmp_path: Path, change: dict[str, object]
) -> None:
    clips = [clip(number) for number in range(5)]
    before = Catalogue.create(tmp_path / "a", INFO)
    before.add(clips)
    after = Catalogue.create(tmp_path / "b", INFO)
    after.add([*clips[:2], replace(clips[2], **change), *clips[3:]])
    assert before.snapshot().digest != after.snapshot().digest


def test_where_the_bytes_lie_changes_no_snapshot(tmp_path: Path) -> None:
    digests = set()
    for name, moved in (("a", {}), ("b", {"offset": 77}), ("c", {"shard": "000099.tar"})):
        catalogue = Catalogue.create(tmp_path / name, INFO)
        catalogue.add([replace(clip(number), **moved) for number in range(3)])
        digests.add(catalogue.snapshot().digest)
    assert len(digests) == 1


def test_a_snapshot_changes_with_order_addition_and_codec(tmp_path: Path) -> None:
    def snapshot(name: str, clips: list[NewClip], info: DataInfo = INFO) -> str:
        catalogue = Catalogue.create(tmp_path / name, info)
        catalogue.add(clips)
        return catalogue.snapshot().digest

    clips = [clip(number) for number in range(3)]
    snapshots = {
        snapshot("a", clips),
        snapshot("b", clips[::-1]),
        snapshot("c", [*clips, clip(3)]),
        snapshot("d", clips, replace(INFO, codec="haar(octaves=1)")),
        snapshot("e", []),
    }
    assert len(snapshots) == 5


def test_a_snapshot_of_many_batches_holds_every_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalewright.data.catalogue.ROWS_PER_FETCH", 3)
    catalogue = Catalogue.create(tmp_path, INFO)
    splits = ["validation" if number % 4 == 0 else "train" for number in range(11)]
    catalogue.add(
        [
            replace(clip(n, split), collection="ab"[n % 2], scores={"motion": 0.1 * n} if n else {})
            for n, split in enumerate(splits)
        ]
    )
    snapshot = catalogue.snapshot()
    assert snapshot.validation.tolist() == [split == "validation" for split in splits]
    trained = [e for e, held in zip(snapshot.clips.entries(), snapshot.validation, strict=True)
               if not held]  # fmt: skip
    assert trained == catalogue.entries("train")
    assert {e.collection for e in trained} == {"a", "b"}


# Scores


def make_old(path: Path) -> None:
    """What the first schema version wrote: the same table with neither scores nor collections."""
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE clips DROP COLUMN scores")
        connection.execute("ALTER TABLE clips DROP COLUMN collection")
        connection.execute("DELETE FROM info WHERE key = 'revision'")
        connection.execute("UPDATE info SET value = '1' WHERE key = 'schema_version'")


def test_scores_come_back_exactly_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    scores = {"motion": 0.1 + 0.2, "aesthetics": 1 / 3}
    catalogue.add([replace(clip(0), scores=scores), clip(1)])
    first, second = Catalogue.open(tmp_path).entries("train")
    assert first.scores == scores
    assert second.scores == {}
    assert len({first, second, replace(first)}) == 2, "entries can be in sets"


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"clips/0\.mp4: score motion = .*0 to 1"):
        replace(clip(0), scores={"motion": value})


def test_snapshot_tells_scores_apart_but_not_their_order(tmp_path: Path) -> None:
    def snapshot(name: str, scores: dict[str, float]) -> str:
        catalogue = Catalogue.create(tmp_path / name, INFO)
        catalogue.add([replace(clip(0), scores=scores)])
        return catalogue.snapshot().digest

    both = {"motion": 0.5, "clarity": 0.25}
    assert snapshot("a", both) == snapshot("b", dict(reversed(both.items())))
    others = [{}, {"motion": 0.5}, {"motion": 0.25, "clarity": 0.5}, {"motion": 0.5, "look": 0.25}]
    snapshots = {snapshot(f"c{index}", scores) for index, scores in enumerate(others)}
    assert len(snapshots | {snapshot("d", both)}) == 5


def test_an_older_catalogue_is_read_and_gone_on_with_as_it_is(tmp_path: Path) -> None:
    made = Catalogue.create(tmp_path, INFO)
    made.add([clip(number) for number in range(3)])
    entries, snapshot = made.entries("train"), made.snapshot().digest
    make_old(tmp_path / "catalogue.sqlite")
    bytes_before = (tmp_path / "catalogue.sqlite").read_bytes()

    old = Catalogue.create(tmp_path, INFO)
    assert old.entries("train") == entries
    assert old.snapshot().digest == snapshot
    with pytest.raises(DataError, match=r"version 1 has no scores, but clips/4\.mp4 has"):
        old.add([clip(3), replace(clip(4), scores={"motion": 1.0})])
    assert (tmp_path / "catalogue.sqlite").read_bytes() == bytes_before
    old.add([clip(3)])
    old.reject("clips/broken.mp4", "no frame could be decoded")
    assert len(Catalogue.open(tmp_path).entries("train")) == 4


def test_damaged_scores_are_told(tmp_path: Path) -> None:
    Catalogue.create(tmp_path, INFO).add([clip(0)])
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as connection:
        connection.execute("UPDATE clips SET scores = '{\"motion\"'")
    with pytest.raises(DataError, match=r"catalogue\.sqlite: scores that are not JSON"):
        Catalogue.open(tmp_path).entries("train")


# Queries


@pytest.mark.parametrize(
    "change",
    [
        {"latent_frames": 0}, {"height": 0}, {"width": -3}, {"text_tokens": 0},
        {"height": 2**30}, {"bytes": 10}, {"offset": -1},
    ],
)  # fmt: skip
def test_a_clip_that_cannot_be_is_named(tmp_path: Path, change: dict[str, int]) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.add([clip(1), replace(clip(2), **change)])
    with pytest.raises(DataError, match=r"clip 2 cannot be: a latent of .* \(1 such clips\); set"):
        catalogue.snapshot()


@pytest.mark.parametrize(
    ("column", "value"), [("latent_frames", 10**10), ("crc32c", None), ("height", "eight")]
)
def test_a_value_that_no_column_holds_is_named(tmp_path: Path, column: str, value: object) -> None:
    catalogue = Catalogue.create(tmp_path, INFO)
    catalogue.add([clip(1), clip(2)])
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as connection:
        connection.execute(f"UPDATE clips SET {column} = ? WHERE id = 2", (value,))
    with pytest.raises(DataError, match=r"clip 2 cannot be: .*; set their status"):
        catalogue.snapshot()
