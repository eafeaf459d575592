"""Data folders for tests: small latents whose content their text tells, in real shards."""

from collections.abc import Sequence
from pathlib import Path

import torch

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.codec import HaarCodec
from scalewright.data.reading import ClipReader
from scalewright.data.sample import DataInfo, Entry, Sample
from scalewright.data.shards import ShardWriter, write_null_text
from scalewright.data.storage import Folder
from scalewright.data.text import ByteNgramEncoder

WORDS = ("red", "green", "blue", "white", "dark", "grey")
SHAPES = ((1, 4, 4), (1, 4, 6), (2, 4, 4), (3, 6, 4))


def write_data_folder(
    folder: Path, clips: int = 48, seed: int = 0, scales: dict[int, float] | None = None
) -> Path:
    """A folder of `clips` latents: a mean that depends on the caption's word, plus noise.

    `scales` multiplies the latents of some clips, counted from 0.
    """
    generator = torch.Generator().manual_seed(seed)
    encoder, codec = ByteNgramEncoder(), HaarCodec()
    info = DataInfo(codec.fingerprint, codec.latent_channels, encoder.fingerprint, encoder.dim)
    means = torch.randn(len(WORDS), codec.latent_channels, generator=generator)
    catalogue = Catalogue.create(folder, info)
    rows = []
    with ShardWriter(folder) as writer:
        for index in range(clips):
            word, (T, H, W) = index % len(WORDS), SHAPES[index % len(SHAPES)]
            noise = torch.randn(T, codec.latent_channels, H, W, generator=generator)
            latent = means[word][None, :, None, None] + 0.3 * noise
            latent = latent * (scales or {}).get(index, 1.0)
            caption = f"a {WORDS[word]} picture"
            text = encoder.encode([caption])[0]
            location = writer.add(f"{index:06d}", latent, text)
            rows.append(
                NewClip(
                    source=f"{index}.png",
                    split="validation" if index >= clips - 8 else "train",
                    caption=caption,
                    shard=location.shard,
                    offset=location.offset,
                    bytes=location.bytes,
                    crc32c=location.crc32c,
                    latent_frames=T,
                    height=H,
                    width=W,
                    text_tokens=len(text),
                )
            )
    catalogue.add(rows)
    write_null_text(folder, encoder.encode([""])[0])
    return folder


def data_with_broken(ids: Sequence[int], folder: Path) -> Path:
    """A folder in which one bit of each of these clips has turned over."""
    data = write_data_folder(folder)
    for entry in Catalogue.open(data).entries("train"):
        if entry.id in ids:
            with (data / "shards" / entry.shard).open("r+b") as file:
                file.seek(entry.offset + entry.bytes - 1)
                last = file.read(1)[0]
                file.seek(entry.offset + entry.bytes - 1)
                file.write(bytes([last ^ 64]))
    return data


def read_clips(folder: Path, entries: Sequence[Entry]) -> list[Sample]:
    """Clips of a data folder, in float32."""
    reader = ClipReader(Folder(folder))
    try:
        return reader.read(entries)
    finally:
        reader.close()
