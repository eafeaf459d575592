"""Clips of a catalogue that has no shards."""

from scalewright.data.catalogue import NewClip
from scalewright.data.sample import DataInfo

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
        bytes=90_000 + number,
        crc32c=0xFFFF0000 + number,
        latent_frames=1 + number % 5,
        height=8,
        width=12,
        text_tokens=1 + number % 3,
    )
