"""Which clips go together into which pack of which step: planned from sizes alone, no I/O.

The order is a pure function of (clips, seed, step), so it is the same at any number of workers
and a run resumes exactly from the number of its step.
"""

import copy
import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scalewright.data.sample import Entry
from scalewright.errors import ConfigError, DataError
from scalewright.model.shape import ClipTokens

# Clips a pack may choose from. 64 fills packs to 97-99% (the next clip that overshoots closing the
# pack: 76%) while a clip waits for a few packs only, so the order stays a shuffle.
WINDOW = 64
CACHED_EPOCHS = 2
SHUFFLE_STREAM = 0x7061636B  # "pack"

Pack = tuple[int, ...]  # indices of clips


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data lies and how much a step eats; fixed for the length of a run.

    `pack_tokens` bounds the visual and text tokens of a pack, which is what one worker holds in
    memory at once; `packs_per_step` is shared out over the workers, however many there are.
    `codec` and `text_encoder`: fingerprints that the folder must have been prepared with, as a
    plan pins those of its sweep; left out, any will do whose sizes fit the model. `assumed_clips`:
    sizes that a dry run takes for the clips where the folder is not there, such as "25x64x64+224"
    for 25 latent frames of 64 x 64 with 224 text tokens, all equally frequent.
    """

    path: str = "data/shapes"
    pack_tokens: int = 2048
    packs_per_step: int = 4
    codec: str | None = None
    text_encoder: str | None = None
    assumed_clips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("data.path is empty; give the folder that jobs/prepare.py wrote")
        for name in ("pack_tokens", "packs_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} = {getattr(self, name)}; it must be at least 1")


def legal_worlds(packs_per_step: int, shard_size: int | None = None) -> list[int]:
    """The numbers of workers that share a step evenly: the divisors of `packs_per_step`.

    With a `shard_size`, beyond it only its multiples: groups of workers that hold all weights.
    """
    return [
        world
        for world in range(1, packs_per_step + 1)
        if packs_per_step % world == 0
        and (shard_size is None or world <= shard_size or world % shard_size == 0)
    ]


def plan_epoch(clips: Sequence[ClipTokens], pack_tokens: int, seed: int, epoch: int) -> list[Pack]:
    """The packs of one epoch as indices into `clips`; every clip is in exactly one.

    Clips come in the order of a shuffle keyed by (seed, epoch). A pack begins with the clip that
    has waited longest and takes the largest that still fits out of the next `WINDOW`.
    """
    shuffled = _permutation(len(clips), seed, epoch)
    sizes = [clips[index].visual + clips[index].text for index in shuffled]
    window = _Window(sizes)
    packs: list[Pack] = []
    while window:
        pack = [window.take_oldest()]
        room = pack_tokens - sizes[pack[0]]
        while (place := window.take_largest(room)) is not None:
            pack.append(place)
            room -= sizes[place]
        packs.append(tuple(shuffled[place] for place in pack))
    return packs


@dataclass(frozen=True)
class LeftOut:
    """Data that are not trained on: those of `steps` steps from the data step `begin`."""

    begin: int
    steps: int


def data_step(step: int, left_out: Sequence[LeftOut]) -> int:
    """Which step's data a step trains on, those that were left out passed over."""
    for part in sorted(left_out, key=lambda part: part.begin):
        if step >= part.begin:
            step += part.steps
    return step


class PackOrder:
    """The endless sequence of steps: epoch after epoch of packs, `packs_per_step` at a time.

    `clips[i]` are the tokens of `entries[i]`. Steps are found at random, also from several
    threads; a step may straddle two epochs. Reaching epoch e for the first time plans the epochs
    before it, since their number of packs differs a little. Steps count from that of the run's
    first; `begin` is the one that begins with the first pack.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        clips: Sequence[ClipTokens],
        config: DataConfig,
        seed: int,
        begin: int = 0,
    ) -> None:
        if len(entries) != len(clips):
            raise ValueError(f"{len(entries)} entries, but tokens of {len(clips)} clips")
        if seed < 0:
            raise ConfigError(f"seed = {seed}; it must be at least 0")
        _require_fit(entries, clips, config)
        self.config = config
        self._entries = entries
        self._clips = clips
        self._seed = seed
        self._begin = begin
        self._starts = [0]  # number of the first pack of each epoch planned so far, and the next
        self._epochs: OrderedDict[int, list[Pack]] = OrderedDict()
        self._lock = threading.Lock()
        self._left_out: tuple[LeftOut, ...] = ()

    def without(self, left_out: Sequence[LeftOut]) -> "PackOrder":
        """The same order, some data left out; what is planned is shared."""
        other = copy.copy(self)
        other._left_out = tuple(left_out)
        return other

    def pack(self, number: int) -> tuple[Entry, ...]:
        """The clips of pack `number`, counted from the beginning of the run over all steps."""
        return tuple(self._entries[index] for index in self._indices(number))

    def packs(self, step: int) -> list[tuple[Entry, ...]]:
        """The packs of a step, exactly `packs_per_step` of them."""
        return [self.pack(number) for number in self._numbers(step)]

    def tokens(self, step: int) -> list[ClipTokens]:
        """Tokens of every clip of a step, all packs together."""
        return [self._clips[index] for n in self._numbers(step) for index in self._indices(n)]

    def epoch_of(self, step: int) -> float:
        """How many epochs have been seen when `step` begins."""
        number = self._numbers(step)[0]
        with self._lock:
            epoch = self._epoch_with(number)
            start, end = self._starts[epoch : epoch + 2]
        return epoch + (number - start) / (end - start)

    def fill(self) -> float:
        """Mean share of `pack_tokens` that the packs of the first epoch use."""
        total = sum(clip.visual + clip.text for clip in self._clips)
        with self._lock:
            return total / (len(self._plan(0)) * self.config.pack_tokens)

    def _numbers(self, step: int) -> range:
        count = self.config.packs_per_step
        step = data_step(step, self._left_out) - self._begin
        return range(step * count, (step + 1) * count)

    def _indices(self, number: int) -> Pack:
        if number < 0:
            raise ValueError(f"pack {number}: steps and packs count from 0")
        with self._lock:
            epoch = self._epoch_with(number)
            return self._plan(epoch)[number - self._starts[epoch]]

    def _epoch_with(self, number: int) -> int:
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self._plan(len(self._starts) - 1)))
        return bisect_right(self._starts, number) - 1

    def _plan(self, epoch: int) -> list[Pack]:
        if epoch not in self._epochs:
            plan = plan_epoch(self._clips, self.config.pack_tokens, self._seed, epoch)
            self._epochs[epoch] = plan
        self._epochs.move_to_end(epoch)
        while len(self._epochs) > CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        return self._epochs[epoch]


class _Window:
    """The next clips in order of arrival, at most `WINDOW` at once, found by age and by size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._arrivals: Iterator[tuple[int, int]] = iter(enumerate(sizes))
        self._sizes = sizes
        self._by_age: dict[int, None] = {}  # a dict keeps the order of arrival
        self._by_size: list[tuple[int, int]] = []  # (size, -place): of equals the oldest is last
        self._refill(WINDOW)

    def __len__(self) -> int:
        return len(self._by_age)

    def take_oldest(self) -> int:
        """The place of the clip that has waited longest."""
        place = next(iter(self._by_age))
        return self._take(bisect_right(self._by_size, (self._sizes[place], -place)) - 1)

    def take_largest(self, room: int) -> int | None:
        """The place of the largest clip of at most `room` tokens, the oldest of equals."""
        at = bisect_right(self._by_size, (room, 0)) - 1
        return self._take(at) if at >= 0 else None

    def _take(self, at: int) -> int:
        _, negative = self._by_size.pop(at)
        del self._by_age[-negative]
        self._refill(1)
        return -negative

    def _refill(self, count: int) -> None:
        for _, (place, size) in zip(range(count), self._arrivals, strict=False):
            insort(self._by_size, (size, -place))
            self._by_age[place] = None


def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    """A shuffle of range(count) keyed by (seed, epoch).

    Built from raw bits, which NumPy keeps stable over versions, unlike `Generator.permutation`.
    `SeedSequence([0, 0])` would be the stream of `default_rng(0)`: a folder whose lengths were
    drawn with that seed came out with all pictures first, hence the stream of our own.
    """
    key = np.random.SeedSequence(seed, spawn_key=(SHUFFLE_STREAM, epoch))
    bits = np.random.PCG64(key).random_raw(count)
    return np.argsort(bits, kind="stable").tolist()


def _require_fit(entries: Sequence[Entry], clips: Sequence[ClipTokens], config: DataConfig) -> None:
    if not entries:
        raise DataError(
            f"data.path = {config.path}: no clip to train on; run jobs/prepare.py on more sources"
        )
    largest = max(range(len(clips)), key=lambda index: clips[index].visual + clips[index].text)
    clip, entry = clips[largest], entries[largest]
    if clip.visual + clip.text > config.pack_tokens:
        raise ConfigError(
            f"clip {entry.id} (latent of {entry.latent_frames} x {entry.height} x {entry.width}) "
            f"has {clip.visual} visual + {clip.text} text = {clip.visual + clip.text} tokens, over "
            f"data.pack_tokens = {config.pack_tokens}; set data.pack_tokens to at least "
            f"{clip.visual + clip.text}, or prepare shorter or smaller clips"
        )
