"""Which clips come together in a block: all once an epoch, or collections by their weights."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.data.settings import DataConfig
from scalewright.data.shuffle import epoch_rows, key_of, shuffled
from scalewright.errors import ConfigError

READ_BYTES = 8 * 2**20  # clips that lie side by side stay together in runs of about this size


class Draws:
    """Blocks of shuffled clips, block after block without end.

    An epoch is as many draws as there are clips. Without a mixture every clip is drawn once in it;
    with one, every clip once in each round of its collection, however long that takes.
    """

    def __init__(
        self, clips: Clips, rows: NDArray[np.int64], config: DataConfig, seed: int
    ) -> None:
        self._seed = seed
        self._count = len(rows)
        mean_bytes = float(clips.bytes[rows].mean())
        run = max(1, round(READ_BYTES / max(1.0, mean_bytes)))
        self._run = min(run, config.shuffle_clips)
        self._block_clips = config.shuffle_clips // self._run * self._run
        self.blocks_per_epoch = -(-self._count // self._block_clips)
        self._sources = _sources(clips, rows, config)

    def rows(self, block: int) -> NDArray[np.int64]:
        epoch, place = divmod(block, self.blocks_per_epoch)
        begin = place * self._block_clips
        end = min(begin + self._block_clips, self._count)
        before = epoch * self._count
        drawn = [
            source.draw(before + begin, before + end, self._run, self._seed)
            for source in self._sources
        ]
        return shuffled(np.concatenate(drawn), key_of(self._seed, "block", block))


@dataclass(frozen=True)
class Source:
    """A collection: its `rows`, and its share of the draws."""

    name: str
    rows: NDArray[np.int64]
    weight: Fraction

    def draw(self, begin: int, end: int, run: int, seed: int) -> NDArray[np.int64]:
        """What of it is among the draws `begin` to before `end` of all sources."""
        first, last = math.floor(begin * self.weight), math.floor(end * self.weight)
        count = len(self.rows)
        parts = [np.empty(0, np.int64)]
        while first < last:
            epoch, place = divmod(first, count)
            stop = min(count, place + last - first)
            key = key_of(seed, "epoch", self.name, epoch)
            parts.append(epoch_rows(count, min(run, count), key, place, stop))
            first += stop - place
        return self.rows[np.concatenate(parts)]


def _sources(clips: Clips, rows: NDArray[np.int64], config: DataConfig) -> list[Source]:
    if not config.mixture:
        return [Source("", rows, Fraction(1))]
    total = sum(Fraction(weight) for weight in config.mixture.values())
    sources = []
    for name, weight in sorted(config.mixture.items()):
        number = clips.collections.index(name) if name in clips.collections else -1
        own = rows[clips.collection[rows] == number]
        if not len(own):
            raise ConfigError(
                f"data.mixture names {name!r}, of which no clip is meant here; there are: "
                f"{', '.join(sorted(clips.collections))}"
            )
        sources.append(Source(name, own, Fraction(weight) / total))
    return sources
