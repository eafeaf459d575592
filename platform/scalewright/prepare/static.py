"""Static clips: one frame, repeated, with a caption that says that nothing moves.

They teach the model what the words mean, so that as a negative prompt they make it move more.
"""

from dataclasses import dataclass

from torch import Tensor

from scalewright.errors import ConfigError
from scalewright.prepare.sources import Source

MARK = "static"  # names the clip in the catalogue: a.png#static


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Which files give a static clip besides their own clips, and how it is made.

    `share` of the files, pictures and videos alike, chosen by their names. `frames`: 1 + 4k of
    them, at least 5; None makes it as long as the longest videos. The caption is
    "`prefix`, caption of the file".
    """

    share: float = 0.0
    frames: int | None = None
    prefix: str = "static video, no movement"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"static share = {self.share}; it must be from 0 to 1")
        if not self.prefix.strip():
            raise ConfigError(
                "static prefix is empty; without one a static clip cannot be told from a video"
            )

    def wants(self, source: Source) -> bool:
        """Whether this file gives a static clip; depends on its name alone."""
        return source.number(MARK) < self.share

    def caption(self, caption: str) -> str:
        return f"{self.prefix.strip()}, {caption}"


def check_frames(frames: int) -> None:
    """Refuse a length that a video cannot have."""
    if frames < 5 or frames % 4 != 1:
        below = max(5, (frames - 1) // 4 * 4 + 1)
        raise ConfigError(
            f"static frames = {frames}; clips have 1 + 4k frames, static ones at least 5: "
            f"use {below} or {below + 4}"
        )


def repeated(frames: Tensor, count: int) -> Tensor:
    """The first of the frames (F, 3, H, W), `count` times, without a copy: (count, 3, H, W)."""
    return frames[:1].expand(count, -1, -1, -1)
