"""What a clip is: its entry in the catalogue, its latent and text once in RAM, their makers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """What made the latents and the text embeddings: fingerprints of codec and text encoder."""

    codec: str
    latent_channels: int
    text_encoder: str
    text_dim: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a clip without reading it; packs are planned from entries alone.

    `latent_frames, height, width` are those of the latent; `offset` and `bytes` locate the
    safetensors member inside its tar shard; `crc32c` is the checksum of those bytes. `scores`:
    quality by name, from 0 to 1; one that is not there is unknown. `collection`: which data set it
    is of, for queries and mixtures.
    """

    id: int
    shard: str
    offset: int
    bytes: int
    crc32c: int
    latent_frames: int
    height: int
    width: int
    text_tokens: int
    collection: str = ""
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def is_video(self) -> bool:
        return self.latent_frames > 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip in RAM. `id` is the catalogue's, and the key of everything random about it.

    `scores`: quality by name, from 0 to 1; one that is not there is unknown.
    """

    id: int
    latent: Tensor  # (T, C, H, W)
    text: Tensor  # (S, text_dim), S >= 1
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Missing:
    """A clip that could not be read, in its place: `frames` latent frames that do not count."""

    entry: Entry
    frames: int
