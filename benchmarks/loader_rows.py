#!/usr/bin/env python3
"""One pass of one loader over the benchmark's data, in a process of its own; prints JSON.

    benchmarks/loader_rows.py ROW FOLDER SCRATCH [--s3] [--packs] [--check]

Credentials and endpoint of S3 are boto3's (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). Every loader
hands over the same clips; of each one element in 4 KiB is looked at, so that no mapped file wins by
not being read.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import io
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import click
import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.loader_data import BUCKET, checksum, stub_torchvision
from scalewright.data.fetching import Fetcher
from scalewright.data.hot import HotVolume
from scalewright.data.loader import Loader
from scalewright.data.order import PackOrder
from scalewright.data.pinning import pinned_snapshot
from scalewright.data.query import ClipQuery
from scalewright.data.sample import Missing
from scalewright.data.settings import DataConfig
from scalewright.data.staging import stretches
from scalewright.data.storage import open_storage
from scalewright.model.shape import ModelConfig
from scalewright.train.weigh import weigh_in

WORKERS = 2
BATCH = 8
PACK_FRAMES, PACKS = 25, 4


class Given(NamedTuple):
    """A clip as a loader hands it over; the latent's axes are its own affair."""

    number: int
    latent: Tensor
    text: Tensor


@dataclass(frozen=True)
class Place:
    """Where the data lies, and where a loader may write."""

    folder: Path
    scratch: Path
    s3: bool

    def of(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}" if self.s3 else str(self.folder / name)


Groups = Iterator[list[Given]]


def ours(place: Place, shuffle_clips: int = 65_536, hot: bool = False) -> Groups:
    """Packs of the first epoch, as rank 0 of 1 gets them; the last step is cut where it ends."""
    numbers = json.loads((place.folder / "ours" / "numbers.json").read_text())
    storage = open_storage(place.of("ours"))
    snapshot = pinned_snapshot(place.of("ours"), None, None, storage)
    rows = snapshot.rows(ClipQuery())
    config = DataConfig(
        pack_frames=PACK_FRAMES, pack_tokens=10**6, packs_per_step=PACKS,
        shuffle_clips=shuffle_clips,
    )  # fmt: skip
    model = ModelConfig(patch=(1, 2, 2), latent_channels=16)
    order = PackOrder(snapshot.clips, rows, weigh_in(model), config, seed=3)
    steps = 10 * len(rows)  # more than an epoch: it ends where all are seen
    volume = None
    if hot:
        volume = HotVolume(storage, place.scratch, name="a", rank=0, world=1, hot_bytes=512 * 2**20)
        volume.bring(stretches(order, 0, steps, volume.stretch_bytes))
    fetcher = Fetcher(volume or storage)
    seen = set[int]()
    with Loader(
        fetcher, order, rank=0, world=1, start_step=0, stop_step=steps, hot=volume,
        ram_bytes=160 * 2**20,
    ) as loader:  # fmt: skip
        for data in loader:
            for pack in data.packs:
                given = []
                for clip in pack:
                    assert not isinstance(clip, Missing)
                    if clip.id not in seen:
                        given.append(Given(numbers[str(clip.id)], clip.latent, clip.text))
                        seen.add(clip.id)
                yield given
            if len(seen) == len(rows):
                break
    fetcher.close()
    if volume is not None:
        volume.close()


def ours_near(place: Place) -> Groups:
    """Clips of one shard's size shuffled among themselves, as the peers do."""
    return ours(place, shuffle_clips=64)


def ours_hot(place: Place) -> Groups:
    return ours(place, hot=True)


def plain(place: Place) -> Groups:
    """No loader at all: ranges of 8 MiB of the shards, 16 at a time; nothing is made of them."""
    storage, size = open_storage(place.of("ours")), 8 * 2**20
    ranges: queue.SimpleQueue[tuple[str, int, int] | None] = queue.SimpleQueue()
    out: queue.Queue[memoryview | None] = queue.Queue(16)
    for path in sorted((place.folder / "ours" / "shards").iterdir()):
        end = path.stat().st_size
        for begin in range(0, end, size):
            ranges.put((f"shards/{path.name}", begin, min(size, end - begin)))

    def work() -> None:
        while (each := ranges.get()) is not None:
            out.put(storage.read(*each))
        out.put(None)

    for _ in range(16):
        ranges.put(None)
        threading.Thread(target=work, daemon=True).start()
    left = 16
    while left:
        if (data := out.get()) is None:
            left -= 1
        else:
            even = torch.frombuffer(data, dtype=torch.float16, count=len(data) // 2)
            yield [Given(-1, even, torch.empty(0, dtype=torch.float16))]


def _given(samples: Iterable[dict[str, Any]]) -> list[Given]:
    def tensor(array: Any) -> Tensor:
        array = np.asarray(array)
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    return [Given(int(x["id"]), tensor(x["latent"]), tensor(x["text"])) for x in samples]


def mds(place: Place) -> Groups:
    """mosaicml-streaming; its S3 client is dropped before the workers fork.

    As it comes (0.13.0) the parent opens a connection that every forked worker inherits, and
    answers get crossed.
    """
    stub_torchvision()
    import streaming

    local = str(place.scratch / "mds") if place.s3 else place.of("mds")
    os.environ["S3_ENDPOINT_URL"] = os.environ.get("AWS_ENDPOINT_URL", "")
    data = streaming.StreamingDataset(
        remote=place.of("mds") if place.s3 else None, local=local, shuffle=True, batch_size=BATCH,
        shuffle_seed=3, num_canonical_nodes=1,
    )  # fmt: skip
    for stream in data.streams:
        if place.s3:
            stream._downloader.clean_up()
    return iter(
        streaming.StreamingDataLoader(
            data, batch_size=BATCH, num_workers=WORKERS, collate_fn=_given
        )
    )


def litdata(place: Place) -> Groups:
    import litdata
    from litdata.streaming import downloader

    # It refuses plain http, and offers no switch for it (0.2.76).
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    store: dict[str, Any] = {}
    if place.s3:
        store = {
            "cache_dir": str(place.scratch / "litdata"),
            "storage_options": {
                "endpoint_url": os.environ.get("AWS_ENDPOINT_URL"),
                "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
                "region_name": "us-east-1",
            },
        }
    data = litdata.StreamingDataset(
        place.of("litdata"), shuffle=True, seed=3, max_cache_size="20GB", **store
    )
    return iter(
        litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, collate_fn=_given)
    )


def wds(place: Place) -> Groups:
    import boto3
    import webdataset

    names = sorted(path.name for path in (place.folder / "wds").glob("*.tar"))
    urls = [str(place.folder / "wds" / name) for name in names]
    if place.s3:
        s3 = boto3.client("s3")
        signed = [
            s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": f"wds/{name}"})
            for name in names
        ]
        urls = [f"pipe:curl -sf '{url}'" for url in signed]

    def decode(sample: dict[str, Any]) -> dict[str, Any]:
        found = {name: np.load(io.BytesIO(sample[f"{name}.npy"])) for name in ("latent", "text")}
        return {"id": int(sample["__key__"]), **found}

    data = (
        webdataset.WebDataset(
            urls, shardshuffle=100, nodesplitter=webdataset.split_by_node,
            workersplitter=webdataset.split_by_worker, seed=3, empty_check=False,
        )
        .map(decode)
        .shuffle(64, initial=32)
        .batched(BATCH, partial=True, collation_fn=_given)
    )  # fmt: skip
    return iter(DataLoader(data, batch_size=None, num_workers=WORKERS))


ROWS: dict[str, Callable[[Place], Groups]] = {
    "plain": plain, "ours": ours, "ours_near": ours_near, "ours_hot": ours_hot,
    "mds": mds, "litdata": litdata, "wds": wds,
}  # fmt: skip


def packed(groups: Groups) -> Groups:
    """Clips put together into packs of 25 frames of one size, as a user of a peer must do.

    The oldest clip, and those after it that fill the pack best, out of 64 (subset sum).
    """
    pools: dict[tuple[int, int], list[Given]] = {}
    for group in groups:
        for clip in group:
            pool = pools.setdefault((clip.latent.shape[-2], clip.latent.shape[-1]), [])
            pool.append(clip)
            if chosen := _chosen([len(each.latent) for each in pool]):
                yield [pool[place] for place in chosen]
                for place in reversed(chosen):
                    del pool[place]


def _chosen(frames: list[int]) -> tuple[int, ...] | None:
    sums: dict[int, tuple[int, ...]] = {frames[0]: (0,)}
    for place in range(1, len(frames)):
        for total in sorted(sums, reverse=True):
            more = total + frames[place]
            if more <= PACK_FRAMES and more not in sums:
                sums[more] = (*sums[total], place)
    best = max(sums)
    return sums[best] if best == PACK_FRAMES or len(frames) >= 64 else None


def measure(name: str, place: Place, packs: bool, sums: dict[str, list[int]] | None) -> dict:
    """Seconds, bytes, CPU and memory of a pass; wrong, missing and repeated clips."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            peak[0] = max(peak[0], _memory())

    threading.Thread(target=watch, daemon=True).start()
    cpu, begin, first = _cpu_s(), time.perf_counter(), 0.0
    groups = ROWS[name](place)
    size, count, made, seen, wrong = 0, 0, 0, set[int](), 0
    for group in packed(groups) if packs and not name.startswith("ours") else groups:
        first = first or time.perf_counter() - begin
        made += 1
        if packs and group:  # one tensor a pack
            torch.cat([each.latent for each in group])
        for each in group:
            size += each.latent.nbytes + each.text.nbytes
            count += 1
            seen.add(each.number)
            each.latent.view(torch.int16).reshape(-1)[::2048].sum()
            if sums is not None and each.number >= 0:
                found = checksum(each.latent.numpy(), each.text.numpy())
                wrong += found != sums[str(each.number)][0]
    took, used = time.perf_counter() - begin, _cpu_s() - cpu
    over.set()
    return {
        "row": name, "s": took, "MB_per_s": size / 1e6 / took, "cpu_s_per_GB": used / size * 1e9,
        "first_s": first, "packs_per_s": made / took if packs else None, "peak_MB": peak[0] / 1e6,
        "clips": count, "distinct": len(seen), "wrong": wrong,
    }  # fmt: skip


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_s() -> float:
    total = 0.0
    for process in _processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory() -> int:
    """Proportional set size of all processes: shared pages count once."""
    total = 0
    for process in _processes():
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


@click.command()
@click.argument("row", type=click.Choice(list(ROWS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("scratch", type=click.Path(path_type=Path))
@click.option("--s3", is_flag=True, help="From the bucket instead of the folder.")
@click.option("--packs", is_flag=True, help="As packs of 25 latent frames, one tensor each.")
@click.option("--check", is_flag=True, help="Compare every clip with what was written.")
def main(row: str, folder: Path, scratch: Path, s3: bool, packs: bool, check: bool) -> None:
    """Measure a pass of ROW over the data in FOLDER; SCRATCH is emptied."""
    torch.set_num_threads(1)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    sums = json.loads((folder / "clips.json").read_text()) if check else None
    if row == "mds":
        stub_torchvision()
    for module in {"mds": ["streaming"], "litdata": ["litdata"], "wds": ["webdataset"]}.get(
        row, []
    ):
        __import__(module)  # importing is nobody's first batch
    if s3:
        __import__("boto3")
    print(json.dumps(measure(row, Place(folder, scratch, s3), packs, sums)), flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    for process in _processes()[1:]:
        process.kill()
    os._exit(0)  # workers of peers that linger would be waited for


if __name__ == "__main__":
    main()
