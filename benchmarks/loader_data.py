"""The data of the loader benchmarks, in the format of every loader, in a folder and in a bucket.

About 2 GB: latents of 16 x T x H x W in float16, in six aspect ratios of about 4,900 positions a
frame, 40% pictures and 60% videos of 2 to 25 latent frames, each with 64 x 256 of text. Values are
gaussian, so nothing compresses. All formats hold the clips in one shuffled order, as every loader
advises, in shards of 64 MB.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.sample import DataInfo
from scalewright.data.shards import ShardWriter
from scalewright.data.snapshot import FILE_NAME, write_snapshot

BUCKET = "loader-benchmark"
CHANNELS, TEXT = 16, (64, 256)
SIZES = {(52, 92): 0.42, (92, 52): 0.22, (70, 70): 0.14, (60, 80): 0.10, (80, 60): 0.06,
         (46, 106): 0.06}  # fmt: skip
SHARD_BYTES = 64_000_000


class Clip(NamedTuple):
    """A clip of the data; its tensors are made of its number alone."""

    number: int
    frames: int
    height: int
    width: int

    @property
    def bytes(self) -> int:
        return 2 * (CHANNELS * self.frames * self.height * self.width + TEXT[0] * TEXT[1])

    def tensors(self) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """The latent (T, C, H, W) and the text (S, D)."""
        rng = np.random.default_rng([11, self.number])
        shape = (self.frames, CHANNELS, self.height, self.width)
        latent = rng.standard_normal(shape, dtype=np.float32).astype(np.float16)
        return latent, rng.standard_normal(TEXT, dtype=np.float32).astype(np.float16)


def clips(total_bytes: int) -> list[Clip]:
    """The clips, in the order in which every format holds them."""
    rng = np.random.default_rng(7)
    sizes, found, held = list(SIZES), list[Clip](), 0
    while held < total_bytes:
        height, width = sizes[rng.choice(len(sizes), p=list(SIZES.values()))]
        frames = 1 if rng.random() < 0.4 else int(rng.integers(2, 26))
        found.append(Clip(len(found), frames, height, width))
        held += found[-1].bytes
    return [found[place] for place in rng.permutation(len(found))]


def checksum(latent: NDArray[np.float16], text: NDArray[np.float16]) -> int:
    return zlib.crc32(text.tobytes(), zlib.crc32(latent.tobytes()))


def write(folder: Path, total_bytes: int) -> None:
    """Write every format that is not there yet; peers that are not installed are left out."""
    some = clips(total_bytes)
    if not (folder / "clips.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        sums = {clip.number: [checksum(*clip.tensors()), clip.bytes] for clip in some}
        (folder / "clips.json").write_text(json.dumps(sums))
    for name, write_one in WRITERS.items():
        if not (folder / name).exists():
            try:
                write_one(folder / name, some)
            except ImportError as error:
                print(f"{name}: {error}; left out", flush=True)


def _ours(folder: Path, some: list[Clip]) -> None:
    catalogue = Catalogue.create(folder, DataInfo("gaussian", CHANNELS, "gaussian", TEXT[1]))
    rows = []
    with ShardWriter(folder, SHARD_BYTES) as writer:
        for clip in some:
            latent, text = (torch.from_numpy(each) for each in clip.tensors())
            place = writer.add(f"{clip.number:08d}", latent, text)
            rows.append(
                NewClip(
                    source=str(clip.number), split="train", caption="", shard=place.shard,
                    offset=place.offset, bytes=place.bytes, crc32c=place.crc32c,
                    latent_frames=clip.frames, height=clip.height, width=clip.width,
                    text_tokens=TEXT[0],
                )
            )  # fmt: skip
    catalogue.add(rows)
    write_snapshot(catalogue.snapshot(), folder / FILE_NAME)
    numbers = {id: clip.number for id, clip in enumerate(some, start=1)}
    (folder / "numbers.json").write_text(json.dumps(numbers))


def _mds(folder: Path, some: list[Clip]) -> None:
    stub_torchvision()
    from streaming import MDSWriter

    columns = {"id": "int", "latent": "ndarray", "text": "ndarray:float16:64,256"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for clip in some:
            latent, text = clip.tensors()
            writer.write({"id": clip.number, "latent": latent, "text": text})


def _tensors_of(clip: tuple[int, ...]) -> dict[str, Any]:
    latent, text = Clip(*clip).tensors()
    return {"id": clip[0], "latent": latent, "text": text}


def _litdata(folder: Path, some: list[Clip]) -> None:
    import litdata

    litdata.optimize(
        fn=_tensors_of, inputs=[tuple(clip) for clip in some], output_dir=str(folder),
        chunk_bytes="64MB", num_workers=2, verbose=False,
    )  # fmt: skip


def _wds(folder: Path, some: list[Clip]) -> None:
    import webdataset

    def npy(array: NDArray[np.float16]) -> bytes:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        return file.getvalue()

    folder.mkdir()
    pattern = str(folder / "s-%05d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, maxcount=10**6, verbose=0) as writer:
        for clip in some:
            latent, text = clip.tensors()
            name = f"{clip.number:08d}"
            writer.write({"__key__": name, "latent.npy": npy(latent), "text.npy": npy(text)})


WRITERS = {"ours": _ours, "mds": _mds, "litdata": _litdata, "wds": _wds}


def upload(folder: Path) -> None:
    """Copy what the bucket lacks; where it is and who asks is for boto3's settings to say."""
    import boto3

    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    there = {each["Key"] for page in pages for each in page.get("Contents", [])}

    def missing() -> Iterator[tuple[str, str]]:
        for name in WRITERS:
            for path in (folder / name).rglob("*"):
                key = str(path.relative_to(folder))
                if path.is_file() and key not in there:
                    yield str(path), key

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: s3.upload_file(each[0], BUCKET, each[1]), missing()))


def stub_torchvision() -> None:
    """Names that mosaicml-streaming imports from torchvision, which needs the CUDA build of torch.

    Nothing here uses them.
    """
    import importlib.machinery
    import sys
    import types

    names = ("", ".datasets", ".transforms", ".transforms.functional")
    modules: list[Any] = [types.ModuleType(f"torchvision{name}") for name in names]
    root, datasets, transforms, functional = modules
    for module in modules:
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    datasets.VisionDataset = type("VisionDataset", (), {})
    datasets.CIFAR10 = type("CIFAR10", (), {})
    functional.to_tensor = None
    root.datasets, root.transforms, transforms.functional = datasets, transforms, functional
    os.environ["USE_TORCHVISION"] = "0"
    sys.modules.update({module.__name__: module for module in modules})
