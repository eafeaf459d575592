"""Which clips of a catalogue are meant: a choice by kind and by size of the latent."""

from dataclasses import dataclass
from typing import Literal

from scalewright.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClipQuery:
    """Clips of a kind whose latent is within limits, both ends included; as it is, every clip.

    Areas are height·width of the latent, so of 512x512 px and 8x8 px a latent cell 4096; None is
    no limit. A picture has one latent frame.
    """

    kind: Literal["all", "picture", "video"] = "all"
    min_latent_area: int = 1
    max_latent_area: int | None = None
    min_latent_frames: int = 1
    max_latent_frames: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("all", "picture", "video"):
            raise ConfigError(f"kind = {self.kind!r}; allowed: all, picture, video")
        _check_limits("latent_area", self.min_latent_area, self.max_latent_area)
        _check_limits("latent_frames", self.min_latent_frames, self.max_latent_frames)
        if self.kind == "picture" and self.min_latent_frames > 1:
            raise ConfigError(
                f"kind = 'picture' with min_latent_frames = {self.min_latent_frames}; a picture "
                "has one latent frame, so ask for videos or leave the limit out"
            )
        if self.kind == "video" and self.max_latent_frames == 1:
            raise ConfigError(
                "kind = 'video' with max_latent_frames = 1; a video has at least 2 latent "
                "frames, so raise the limit or ask for pictures"
            )


def _check_limits(name: str, least: int, most: int | None) -> None:
    if least < 1:
        raise ConfigError(f"min_{name} = {least}; it must be at least 1")
    if most is not None and most < least:
        raise ConfigError(
            f"max_{name} = {most} is below min_{name} = {least}; raise the one or lower the other"
        )
