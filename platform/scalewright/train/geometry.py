"""Sizes, lengths and first frames that a model and its codec can take, from what is asked for."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scalewright.data.codec import SPACE_STRIDE, TIME_STRIDE
from scalewright.data.media import MAX_SOURCE_PX, Sampling, read_media, to_tensor
from scalewright.errors import ConfigError
from scalewright.model.shape import ModelConfig
from scalewright.objective.sampler import LatentShape

DEFAULT_AREA_PX = 64 * 64
MAX_ASPECT = 8.0


@dataclass(frozen=True)
class Geometry:
    """Pixels that sides, and latent frames that lengths, must be multiples of."""

    height_px: int
    width_px: int
    latent_frames: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Geometry":
        groups = model.groups if model.attention == "local_global" else (1, 1, 1)
        frames, height, width = (p * g for p, g in zip(model.patch, groups, strict=True))
        return cls(SPACE_STRIDE * height, SPACE_STRIDE * width, frames)

    def size(self, size: str | None, aspect: str | None, given: Tensor | None) -> tuple[int, int]:
        """(height, width) in pixels: as `size` says; or of its area, in the aspect asked or given.

        `given`: frames (1, 3, H, W) whose aspect is taken where neither size nor aspect is asked.
        """
        exact = None if size is None else self._exact(size)
        area = DEFAULT_AREA_PX if exact is None else exact[0] * exact[1]
        if aspect is not None:
            return self._near(_aspect(aspect), area)
        if exact is None and given is not None:
            return self._near(given.shape[3] / given.shape[2], area)
        return exact or self._near(1.0, area)

    def _exact(self, size: str) -> tuple[int, int]:
        try:
            height, width = (int(part) for part in size.lower().split("x"))
        except ValueError:
            raise ConfigError(f"--size {size!r}: expected HEIGHTxWIDTH, such as 64x96") from None
        for side, step in ((height, self.height_px), (width, self.width_px)):
            if side < step or side % step:
                below = max(1, side // step) * step
                raise ConfigError(
                    f"--size {size}: {side} must be a multiple of {step} pixels; use {below} or "
                    f"{below + step}"
                )
        return height, width

    def _near(self, aspect: float, area_px: int) -> tuple[int, int]:
        """The legal size nearest to an aspect (width over height) and an area."""
        height = max(1.0, math.sqrt(area_px / aspect) / self.height_px)
        width = max(1.0, math.sqrt(area_px * aspect) / self.width_px)
        legal = [
            (rows * self.height_px, columns * self.width_px)
            for rows in {math.floor(height), math.ceil(height)}
            for columns in {math.floor(width), math.ceil(width)}
        ]

        def misfit(size: tuple[int, int]) -> float:
            height, width = size
            return 2 * abs(math.log(width / height / aspect)) + abs(
                math.log(height * width / area_px)
            )

        return min(legal, key=lambda size: (misfit(size), size))

    def latent(self, frames: int, height: int, width: int, channels: int) -> LatentShape:
        """The latent (T, C, H, W) of so many frames of a legal size."""
        latent_frames = 1 + frames // TIME_STRIDE
        if frames < 1 or frames % TIME_STRIDE != 1 or latent_frames % self.latent_frames:
            raise ConfigError(
                f"--frames {frames}: the codec takes 1, 5, 9, 13, ... frames, and the model "
                f"{self.latent_frames} latent frames at a time"
            )
        return latent_frames, channels, height // SPACE_STRIDE, width // SPACE_STRIDE


def _aspect(text: str) -> float:
    """Width over height of "16:9"."""
    try:
        width, height = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--aspect {text!r}: expected WIDTH:HEIGHT, such as 16:9") from None
    ratio = width / height if width > 0 and height > 0 else 0.0
    if not 1 / MAX_ASPECT <= ratio <= MAX_ASPECT:
        raise ConfigError(
            f"--aspect {text}: allowed are 1:{MAX_ASPECT:g} to {MAX_ASPECT:g}:1; crop instead"
        )
    return ratio


def read_frame(path: Path) -> Tensor:
    """The picture at `path`, or a video's first frame: (1, 3, H, W) in [-1, 1]."""
    whole = Sampling(max_frames=1, area_px=MAX_SOURCE_PX)
    return to_tensor(next(read_media(path, whole)))


def fitted(frames: Tensor, height: int, width: int) -> Tensor:
    """Crop frames in the centre to the aspect of a size, and resize them to it, antialiased."""
    scale = max(height / frames.shape[2], width / frames.shape[3])
    rows, columns = round(height / scale), round(width / scale)
    top, left = (frames.shape[2] - rows) // 2, (frames.shape[3] - columns) // 2
    cropped = frames[:, :, top : top + rows, left : left + columns]
    return torch.nn.functional.interpolate(
        cropped, (height, width), mode="bicubic", antialias=True
    ).clamp(-1, 1)
