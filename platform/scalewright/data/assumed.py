"""Clips that are not there yet: a dry run counts with their sizes alone."""

import re
from collections.abc import Sequence

from scalewright.data.clips import Clips
from scalewright.data.sample import Entry
from scalewright.errors import ConfigError

COPIES = 64  # of each size, so that packs mix and fill as they would
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)\+(\d+)")


def assumed_clips(sizes: Sequence[str], scores: Sequence[str] = ()) -> Clips:
    """Clips without bytes, `COPIES` of each "frames x height x width + text tokens" (latent)."""
    return Clips.of(assumed_entries(sizes, scores))


def assumed_entries(sizes: Sequence[str], scores: Sequence[str] = ()) -> list[Entry]:
    """The same as entries; of each of the `scores`, they have some."""
    shapes = [_shape(size) for size in sizes]
    known = dict.fromkeys(scores, 0.5)
    return [
        Entry(number, "", 0, 0, 0, *shape, scores=known)
        for number, shape in enumerate(shapes * COPIES, start=1)
    ]


def _shape(size: str) -> tuple[int, int, int, int]:
    found = _SIZE.fullmatch(size.replace(" ", ""))
    if found is None or 0 in (numbers := tuple(map(int, found.groups()))):
        raise ConfigError(
            f"data.assumed_clips: {size!r}; expected latent frames x height x width + text tokens, "
            "such as '25x64x64+224'"
        )
    frames, height, width, text = numbers
    return frames, height, width, text
