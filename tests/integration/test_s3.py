"""Data in a real S3 server, over a network that damages what it carries."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from faults import Faults, Mode, proxy
from folders import write_data_folder
from ranks import CPU, series, small
from servers import free_port, moto

from scalewright.data import fetching
from scalewright.data.catalogue import Catalogue
from scalewright.data.fetching import Fetcher
from scalewright.data.loader import Loader, Skip
from scalewright.data.order import PackOrder
from scalewright.data.sample import Missing
from scalewright.data.settings import DataConfig
from scalewright.data.snapshot import write_snapshot
from scalewright.data.storage import (
    AccessError,
    Bucket,
    CorruptError,
    MissingError,
    StoreError,
    open_storage,
)
from scalewright.model.shape import ModelConfig
from scalewright.train.place import RunPlace
from scalewright.train.weigh import weigh_in
from scalewright.train.worker import train

BUCKET = "clips"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data_folder(tmp_path_factory.mktemp("data"))
    write_snapshot(Catalogue.open(folder).snapshot(), folder / "snapshot.arrow")
    return folder


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)


@pytest.fixture(scope="module")
def uploaded(server: str, data: Path) -> str:
    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="key", aws_secret_access_key="secret",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    for path in data.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"some/where/{path.relative_to(data)}")
    return f"s3://{BUCKET}/some/where"


def test_ranges_come_back_as_they_were_written(uploaded: str) -> None:
    storage = open_storage(uploaded)
    storage.write("a/b.bin", bytes(range(200)))
    assert storage.read("a/b.bin") == bytes(range(200))
    assert storage.read("a/b.bin", 10, 5) == bytes(range(10, 15))
    assert storage.read("a/b.bin", 190) == bytes(range(190, 200))
    assert storage.keys("a/") == ["a/b.bin"]
    with pytest.raises(StoreError, match=r"s3://clips/some/where/a/b\.bin: gave 5 of 10 bytes"):
        storage.read("a/b.bin", 195, 10)
    with pytest.raises(CorruptError, match=r"a/b\.bin: InvalidRange .*: it ends before the bytes"):
        storage.read("a/b.bin", 300, 10)
    with pytest.raises(MissingError, match=r"s3://clips/some/where/none: NoSuchKey"):
        storage.read("none")


def test_a_run_on_a_bucket_is_that_on_the_folder(uploaded: str, data: Path, tmp_path: Path) -> None:
    for name, place in (("bucket", uploaded), ("folder", str(data))):
        train(small(), RunPlace(tmp_path / name, place, 1), CPU)
    for metric in ("loss/train", "eval/loss_all"):
        assert series(tmp_path / "bucket", metric) == series(tmp_path / "folder", metric)


def plan(data: Path) -> PackOrder:
    clips = Catalogue.open(data).snapshot().clips
    model = ModelConfig(text_dim=64, latent_channels=32)
    config = DataConfig(pack_tokens=96, packs_per_step=4, shuffle_clips=16)
    return PackOrder(clips, np.arange(len(clips)), weigh_in(model), config, 0)


def read_through(url: str, data: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 4) -> Any:
    """Steps read through a proxy: the ids, what was skipped, the gauges, the seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr("scalewright.data.storage.READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.02)
    fetcher, skips = Fetcher(Bucket(BUCKET, "some/where"), deadline_s=6.0), list[Skip]()
    begin_s = time.monotonic()
    # Every clip is a range of its own, so that one of them can be hurt.
    span = {"rank": 0, "world": 1, "start_step": 0, "stop_step": steps, "joined": False}
    try:
        with Loader(fetcher, plan(data), on_skip=skips.append, **span) as loader:
            packs = [step.packs for step in loader]
    finally:
        fetcher.close(timeout_s=5)
    ids = [
        [-s.entry.id if isinstance(s, Missing) else s.id for s in pack]
        for step in packs for pack in step
    ]  # fmt: skip
    return ids, skips, fetcher.gauges, time.monotonic() - begin_s


@pytest.mark.parametrize("mode", ["503", "500", "reset", "short", "flip", "stall"])
def test_what_a_bad_network_does_once_is_made_good(
    mode: Mode, uploaded: str, server: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(mode)
    with proxy(server, faults) as url:
        ids, skips, gauges, seconds = read_through(url, data, monkeypatch)
    order = plan(data)
    assert ids == [[p.entry.id for p in pack] for s in range(4) for pack in order.share(s, 0, 1)]
    assert skips == []
    assert faults.damaged
    assert gauges.retries + gauges.hedges >= len(faults.damaged)
    assert (gauges.corrupt > 0) is (mode == "flip")
    assert seconds < 20


@pytest.mark.parametrize("mode", ["404", "flip", "503", "stall"])
def test_what_stays_bad_is_skipped_and_listed_and_the_order_of_the_others_stays(
    mode: Mode, uploaded: str, server: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = plan(data)
    entry = order.packs(1)[0][0].entry
    first = f"bytes={entry.offset}-"
    faults = Faults(mode, times=0, match=first, stall_s=2.0)
    with proxy(server, faults) as url:
        ids, skips, _, seconds = read_through(url, data, monkeypatch)
    planned = [[p.entry.id for p in pack] for s in range(4) for pack in order.share(s, 0, 1)]
    assert [[abs(id) for id in pack] for pack in ids] == planned
    assert {-id for pack in ids for id in pack if id < 0} == {entry.id}
    assert {skip.entry.id for skip in skips} == {entry.id}
    assert all("secret" not in skip.reason and "Signature" not in skip.reason for skip in skips)
    assert seconds < 20


def test_expired_credentials_end_it_and_say_so(
    uploaded: str, server: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        proxy(server, Faults("expired", times=0)) as url,
        pytest.raises(AccessError, match=r"ExpiredToken.*renew the credentials"),
    ):
        read_through(url, data, monkeypatch)


def test_credentials_that_are_renewed_in_time_are_taken(
    uploaded: str, server: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(server, Faults("expired", times=1)) as url:
        ids, skips, *_ = read_through(url, data, monkeypatch)
    assert len(ids) == 16
    assert skips == []


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreError, match=r"a/b: EndpointConnectionError at http://127\.0\.0\.1:"):
        open_storage("s3://clips/a").read("b")


def test_an_answer_that_drips_is_given_up(
    uploaded: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalewright.data.storage.ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr("scalewright.data.storage.PART_BYTES", 16)
    open_storage(uploaded).write("slow.bin", bytes(1000))
    with proxy(server, Faults("drip", match="slow.bin", stall_s=30.0)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StoreError, match=r"slow\.bin: \d+ of 1000 bytes in 0\.3 s"):
            open_storage(uploaded).read("slow.bin", 0, 1000)


def test_without_credentials_it_says_where_they_are_looked_for(
    uploaded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AccessError, match="set AWS_ACCESS_KEY_ID"):
        open_storage(uploaded).read("null_text.safetensors")


def test_urls_are_signed_by_version_4_and_hold_no_secret(
    uploaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where botocore would take version 2, which newer buckets refuse."""
    for region in ("us-east-1", "eu-west-1"):
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        bucket = open_storage(uploaded)
        assert isinstance(bucket, Bucket)
        url = bucket._url(bucket._client(), "shards/000000.tar")
        assert "X-Amz-Signature=" in url
        assert "secret-key" not in url
