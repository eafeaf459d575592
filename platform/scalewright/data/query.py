"""Which clips of a catalogue are meant: a choice by kind, size, data set and quality."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClipQuery:
    """Clips of a kind whose latent is within limits, both ends included; as it is, every clip.

    Areas are height·width of the latent, so of 512x512 px and 8x8 px a latent cell 4096; None is
    no limit. A picture has one latent frame. `collections`: only clips of these data sets.
    `min_scores`: only clips whose quality is known and at least that.
    """

    kind: Literal["all", "picture", "video"] = "all"
    min_latent_area: int = 1
    max_latent_area: int | None = None
    min_latent_frames: int = 1
    max_latent_frames: int | None = None
    collections: tuple[str, ...] = ()
    min_scores: Mapping[str, float] = field(default_factory=dict, hash=False)

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

    def mask(self, clips: Clips) -> NDArray[np.bool_]:
        """Which rows are meant; `ConfigError` for a collection or a score that no clip has."""
        area, frames = clips.height.astype(np.int64) * clips.width, clips.latent_frames
        meant = (area >= self.min_latent_area) & (frames >= self.min_latent_frames)
        if self.max_latent_area is not None:
            meant &= area <= self.max_latent_area
        if self.max_latent_frames is not None:
            meant &= frames <= self.max_latent_frames
        if self.kind != "all":
            meant &= clips.is_video if self.kind == "video" else ~clips.is_video
        if self.collections:
            _require_known("collections", self.collections, clips.collections)
            numbers = [clips.collections.index(name) for name in self.collections]
            meant &= np.isin(clips.collection, numbers)
        _require_known("min_scores", self.min_scores, clips.scores)
        for name, least in self.min_scores.items():
            meant &= clips.scores[name] >= least  # false where it is not known (NaN)
        return meant


def _require_known(key: str, asked: Iterable[str], known: Iterable[str]) -> None:
    if missing := sorted(set(asked) - set(known)):
        raise ConfigError(
            f"clips.{key} names {', '.join(missing)}, which no clip has; there are: "
            f"{', '.join(sorted(known)) or 'none'}"
        )


def _check_limits(name: str, least: int, most: int | None) -> None:
    if least < 1:
        raise ConfigError(f"min_{name} = {least}; it must be at least 1")
    if most is not None and most < least:
        raise ConfigError(
            f"max_{name} = {most} is below min_{name} = {least}; raise the one or lower the other"
        )
