"""Clips that are not there yet: a dry run counts with their sizes alone."""

import re
from collections.abc import Sequence

from scalewright.data.query import ClipQuery
from scalewright.data.sample import Entry
from scalewright.errors import ConfigError

COPIES = 64  # of each size, so that packs mix and fill as they would
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)\+(\d+)")


def assumed_entries(sizes: Sequence[str]) -> list[Entry]:
    """Entries without bytes, `COPIES` of each "frames x height x width + text tokens" (latent)."""
    shapes = [_shape(size) for size in sizes]
    return [
        Entry(number, "", 0, 0, 0, *shape) for number, shape in enumerate(shapes * COPIES, start=1)
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


def matches(query: ClipQuery, entry: Entry) -> bool:
    """Whether the query means the clip; the catalogue asks its database the same."""
    area, frames = entry.height * entry.width, entry.latent_frames
    return (
        query.kind in ("all", "video" if entry.is_video else "picture")
        and query.min_latent_area <= area <= (query.max_latent_area or area)
        and query.min_latent_frames <= frames <= (query.max_latent_frames or frames)
    )
