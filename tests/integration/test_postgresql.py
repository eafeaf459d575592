"""The catalogue in a PostgreSQL that was started for it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql
from folders import write_data_folder
from ranks import small
from servers import postgresql

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.pinning import pinned_snapshot
from scalewright.data.sample import DataInfo
from scalewright.errors import DataError
from scalewright.train.inputs import open_inputs

INFO = DataInfo("haar", 32, "bytes", 64)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    """An empty database."""
    engine = sql.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sql.NullPool)
    with engine.connect() as connection:
        connection.execute(sql.text("DROP DATABASE IF EXISTS clips"))
        connection.execute(sql.text("CREATE DATABASE clips"))
    return server.replace("/postgres", "/clips")


def clip(number: int) -> NewClip:
    return NewClip(
        f"{number}.mp4", "validation" if number % 5 == 0 else "train", f"caption {number}",
        "000000.tar", 2**40 + number, 2**33, 2**32 - 1 - number, 1 + number % 4, 8, 12, 3,
        "ab"[number % 2], {"motion": number / 100} if number % 3 else {},
    )  # fmt: skip


def test_it_holds_what_sqlite_holds(url: str, tmp_path: Path) -> None:
    clips = [clip(number) for number in range(50)]
    stores = [Catalogue.create(url, INFO), Catalogue.create(tmp_path, INFO)]
    for catalogue in stores:
        catalogue.add(clips[:20])
        catalogue.reject("broken.mp4", "no frame could be decoded")
        catalogue.add(clips[20:])
    one, other = (catalogue.snapshot() for catalogue in stores)
    assert one.digest == other.digest
    assert one.revision == other.revision == 3
    assert one.clips.entries() == other.clips.entries()
    assert stores[0].entries("validation") == stores[1].entries("validation")
    assert stores[0].captions([1, 50]) == {1: "caption 0", 50: "caption 49"}
    assert stores[0].rejected() == [("broken.mp4", "no frame could be decoded")]
    again = Catalogue.create(url, INFO)
    assert again.sources() == stores[1].sources()
    with pytest.raises(DataError, match="made with codec = 'haar', not 't5'"):
        Catalogue.create(url, replace(INFO, codec="t5"))


def test_a_source_enters_once_and_a_refused_batch_leaves_nothing(url: str) -> None:
    catalogue = Catalogue.create(url, INFO)
    catalogue.add([clip(0)])
    with pytest.raises(DataError, match="only once"):
        catalogue.add([clip(1), clip(0)])
    assert catalogue.sources() == {"0.mp4"}
    assert catalogue.revision() == 1


def test_a_run_trains_on_what_the_database_says(url: str, tmp_path: Path) -> None:
    """The shards lie in the folder, which clips there are is in the database."""
    data = write_data_folder(tmp_path / "data")
    here = Catalogue.open(data)
    catalogue = Catalogue.create(url, here.info)
    known = [(split, entry) for split in ("train", "validation") for entry in here.entries(split)]
    catalogue.add(
        [
            NewClip(
                f"{entry.id}", split, "", entry.shard, entry.offset, entry.bytes, entry.crc32c,
                entry.latent_frames, entry.height, entry.width, entry.text_tokens,
            )
            for split, entry in known if entry.id % 2
        ]
    )  # fmt: skip
    config = small(f"data.catalogue={url}")
    inputs = open_inputs(config, data, tmp_path / "snapshot.arrow")
    entries = inputs.work.stages[0].order.entries()
    assert len(inputs.read(entries)) == len(
        [1 for split, e in known if split == "train" and e.id % 2]
    )
    inputs.reader.close()
    pinned = pinned_snapshot(str(data), url, tmp_path / "snapshot.arrow")
    assert pinned.digest == catalogue.snapshot().digest


def test_what_cannot_be_reached_is_named_without_its_password() -> None:
    url = "postgresql+psycopg://scalewright:secret@127.0.0.1:9/clips"
    with pytest.raises(DataError, match=r"scalewright:\*\*\*@127\.0\.0\.1:9/clips") as caught:
        Catalogue.open(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="is no URL of a database"):
        Catalogue.open("not a url")
