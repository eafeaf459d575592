"""Data in OpenStack Swift, which checks signatures and keeps what it has when it is killed."""

import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from boto3.s3.transfer import TransferConfig
from folders import read_clips, write_data_folder
from ranks import CPU, small
from servers import Swift, swift

from scalewright.data import fetching
from scalewright.data.catalogue import Catalogue
from scalewright.data.fetching import Fetcher
from scalewright.data.loader import Loader, Skip
from scalewright.data.order import PackOrder
from scalewright.data.sample import Sample
from scalewright.data.settings import DataConfig
from scalewright.data.snapshot import write_snapshot
from scalewright.data.storage import AccessError, Storage, StoreError, open_storage
from scalewright.model.shape import ModelConfig
from scalewright.train.place import RunPlace
from scalewright.train.weigh import weigh_in
from scalewright.train.worker import train

PLACE = "s3://clips/some/where"
STEPS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with swift(tmp_path_factory.mktemp("swift")) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data_folder(tmp_path_factory.mktemp("data"))
    write_snapshot(Catalogue.open(folder).snapshot(), folder / "snapshot.arrow")
    return folder


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, server: Swift) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)


def client_of(server: Swift) -> Any:
    return boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key, region_name="us-east-1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def uploaded(server: Swift, data: Path) -> list[str]:
    client = client_of(server)
    client.create_bucket(Bucket="clips")
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    for name in names:
        client.upload_file(str(data / name), "clips", f"some/where/{name}")
    return names


def plan(data: Path) -> PackOrder:
    clips = Catalogue.open(data).snapshot().clips
    model = ModelConfig(text_dim=64, latent_channels=32)
    config = DataConfig(pack_tokens=96, packs_per_step=4, shuffle_clips=16)
    return PackOrder(clips, np.arange(len(clips)), weigh_in(model), config, 0)


def planned(order: PackOrder) -> list[list[list[int]]]:
    return [
        [[part.entry.id for part in pack] for pack in order.share(step, 0, 1)]
        for step in range(STEPS)
    ]


class Reading:
    """A loader of `STEPS` steps that is never more than a step ahead."""

    def __init__(self, storage: Storage, data: Path, deadline_s: float = 60.0) -> None:
        self.skips: list[Skip] = []
        self._fetcher = Fetcher(storage, deadline_s=deadline_s)
        span = {"rank": 0, "world": 1, "start_step": 0, "stop_step": STEPS, "ram_bytes": 1}
        self._loader = Loader(self._fetcher, plan(data), on_skip=self._skip, **span)

    def _skip(self, skip: Skip) -> None:
        self.skips.append(skip)
        raise StoreError(skip.reason)

    def __enter__(self) -> Loader:
        return self._loader

    def __exit__(self, *_: object) -> None:
        self._loader.close()
        self._fetcher.close()


def test_every_clip_is_read_right(uploaded: list[str], data: Path) -> None:
    order = plan(data)
    sources = {clip.id: clip for clip in read_clips(data, order.entries())}
    with Reading(open_storage(PLACE), data) as loader:
        packs = [pack for step in loader for pack in step.packs]
    seen = [clip for pack in packs for clip in pack if isinstance(clip, Sample)]
    assert {clip.id for clip in seen} == sources.keys()
    for clip in seen:
        assert torch.equal(clip.latent.float(), sources[clip.id].latent)
        assert torch.equal(clip.text.float(), sources[clip.id].text)


def test_names_are_listed_and_a_range_may_span_parts(uploaded: list[str], server: Swift) -> None:
    storage = open_storage(PLACE)
    assert storage.keys("") == uploaded
    assert storage.keys("shards/") == [name for name in uploaded if name.startswith("shards/")]
    body, part = np.arange(3_000_000, dtype=np.uint32).tobytes(), 5 * 2**20
    parts = TransferConfig(multipart_threshold=part, multipart_chunksize=part)
    client_of(server).upload_fileobj(BytesIO(body), "clips", "other/big.bin", Config=parts)
    read = open_storage("s3://clips/other").read("big.bin", part - 1000, 2000)
    assert bytes(read) == body[part - 1000 : part + 1000]


def test_a_wrong_secret_ends_a_run_before_it_trains(
    uploaded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(AccessError, match=r"SignatureDoesNotMatch.*check the credentials") as error:
        train(small(), RunPlace(tmp_path / "run", PLACE, 1), CPU)
    for told in ("a-wrong-secret", "not-to-be-told", "X-Amz", "Signature="):
        assert told not in str(error.value)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.chaos
def test_a_server_that_is_killed_and_comes_back_costs_no_clip(
    uploaded: list[str], server: Swift, data: Path
) -> None:
    back = threading.Timer(1.5, server.start)
    reading = Reading(open_storage(PLACE), data)
    with reading as loader:
        got = [next(loader) for _ in range(3)]
        server.kill()
        back.start()
        got += list(loader)
    back.join()
    ids = [[[clip.id for clip in pack] for pack in step.packs] for step in got]  # type: ignore[union-attr]
    assert ids == planned(plan(data))
    assert reading.skips == []


@pytest.mark.chaos
def test_a_server_that_stays_away_is_named_and_nobody_waits_for_ever(
    uploaded: list[str], server: Swift, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.02)
    reading = Reading(open_storage(PLACE), data, deadline_s=2.0)
    with reading as loader:
        next(loader)
        server.kill()
        try:
            with pytest.raises(
                StoreError, match=r"s3://clips/some/where/shards/.* at http://127\."
            ):
                list(loader)
        finally:
            server.start()
