"""How large clips are to the packer, and whether they fit at all."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.data.packing import Item, Limits
from scalewright.data.settings import DataConfig
from scalewright.errors import ConfigError, DataError

SIZE_STEPS = 512  # limits on size are counted in so many units; finer ones fill no better
WEIGHED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Weights:
    """What clips weigh in a model: tokens, and FLOPs of a training step."""

    visual: NDArray[np.int64]
    text: NDArray[np.int64]
    flops: NDArray[np.float64]


Weigh = Callable[[Clips], Weights]


class Measure:
    """How clips become items of a packer: what is counted, in which units, up to which limits."""

    def __init__(
        self, clips: Clips, rows: NDArray[np.int64], weigh: Weigh, config: DataConfig
    ) -> None:
        self._weigh, self._config = weigh, config
        self._frames = config.pack_frames is not None
        limit = config.pack_frames or config.pack_tokens
        self._unit = 1 if self._frames else max(1, limit // SIZE_STEPS)
        size = limit // self._unit
        largest_frame = _check(clips, rows, weigh, config)
        self.limits = Limits(
            size,
            cost=config.pack_flops or math.inf,
            enough=size - size // 200,
            trim=config.trim_frames * (1 if self._frames else largest_frame // self._unit),
        )

    def items(self, rows: NDArray[np.int64], clips: Clips) -> Iterator[Item]:
        config, weights = self._config, self._weigh(clips)
        frames = clips.latent_frames.astype(np.int64)
        if self._frames:
            sizes, frame_sizes = frames, np.ones_like(frames)
        else:
            tokens = weights.visual + weights.text
            sizes = np.minimum(-(-tokens // self._unit), self.limits.size)
            frame_sizes = weights.visual // frames // self._unit
        spare = np.minimum(np.minimum(config.trim_frames, np.maximum(1, frames // 10)), frames - 2)
        columns = (
            rows, self._kinds(clips), sizes, weights.flops, frame_sizes, np.maximum(spare, 0),
        )  # fmt: skip
        return itertools.starmap(Item, zip(*(column.tolist() for column in columns), strict=True))

    def _kinds(self, clips: Clips) -> NDArray[np.int64]:
        if self._config.buffers == "one":
            return np.zeros(len(clips), np.int64)
        if self._frames:  # frames of one size, for packs of as many tokens
            return clips.height.astype(np.int64) << 32 | clips.width
        return clips.aspects


def _check(clips: Clips, rows: NDArray[np.int64], weigh: Weigh, config: DataConfig) -> int:
    """Refuse clips that no pack can hold; the visual tokens of the largest latent frame."""
    if not len(rows):
        raise DataError(
            f"data.path = {config.path}: no clip to train on; run jobs/prepare.py on more sources"
        )
    largest_frame = 0
    for begin in range(0, len(rows), WEIGHED_AT_ONCE):
        part = clips.take(rows[begin : begin + WEIGHED_AT_ONCE])
        weights = weigh(part)
        largest_frame = max(largest_frame, int((weights.visual // part.latent_frames).max()))
        tokens = weights.visual + weights.text
        _refuse(part, tokens, "tokens", "pack_tokens", config.pack_tokens)
        if config.pack_frames is not None:
            _refuse(part, part.latent_frames, "latent frames", "pack_frames", config.pack_frames)
        if config.pack_flops is not None:
            _refuse(part, weights.flops, "FLOPs", "pack_flops", config.pack_flops)
    if config.pack_frames is not None and config.pack_frames * largest_frame > config.pack_tokens:
        raise ConfigError(
            f"data.pack_frames = {config.pack_frames} latent frames of {largest_frame} tokens are "
            f"over data.pack_tokens = {config.pack_tokens}; set it to at least "
            f"{config.pack_frames * largest_frame} and some for text, or lower data.pack_frames"
        )
    return largest_frame


def _refuse(clips: Clips, found: NDArray[Any], what: str, name: str, limit: float) -> None:
    worst = int(found.argmax())
    if found[worst] <= limit:
        return
    entry = clips.entry(worst)
    raise ConfigError(
        f"clip {entry.id} (latent of {entry.latent_frames} x {entry.height} x {entry.width}, "
        f"{entry.text_tokens} text tokens) has {found[worst]:.15g} {what}, over data.{name} = "
        f"{limit:.15g}; set data.{name} to at least {found[worst]:.15g}, or prepare shorter or "
        "smaller clips"
    )
