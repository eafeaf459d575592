#!/usr/bin/env python3
"""How full packs are, and how equal the work of 8 ranks, on five mixes of clip lengths.

    benchmarks/loader_packs.py > benchmarks/loader_packs-2-cores.md

No clip is read: lengths alone are planned. A latent frame is of 480p (60 x 106, so 30 x 53 = 1,590
tokens), a clip has 20 to 224 text tokens beside, and a clip of n tokens costs 24·d²·n + 4·d·n²
FLOPs in each layer of width d = 3072, three times that in training.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import datetime
import os
import platform
from collections import Counter
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray

from scalewright.data.clips import Clips
from scalewright.data.measure import Weights
from scalewright.data.order import PackOrder, deal
from scalewright.data.settings import DataConfig

FRAMES, FRAME_TOKENS, WIDTH = 25, 30 * 53, 3072
RANKS = 8
PACK_TOKENS = 65_536  # 1.6 of the longest clip with the longest text


@dataclass(frozen=True)
class Mix:
    """Latent frames of clips; `least_fill` percent is to be reached in packs of 25 frames."""

    name: str
    frames: NDArray[np.int64]
    least_fill: float | None = None
    trim_frames: int = 0


def mixes(count: int) -> list[Mix]:
    """`count` clips each, drawn one after another from one generator."""
    random = np.random.default_rng(0)
    pictures = np.where(random.random(count) < 0.4, 1, random.integers(2, FRAMES + 1, count))
    videos = random.integers(2, FRAMES + 1, count)
    causal = random.choice(np.arange(5, FRAMES + 1, 4), count)
    scenes = np.minimum(FRAMES, 2 + random.geometric(0.12, count))
    most = np.where(random.random(count) < 0.8, 1, random.integers(13, FRAMES + 1, count))
    return [
        Mix("40% pictures, videos of 2 to 25", pictures, 99.9),
        Mix("videos of 2 to 25", videos, 96.5),
        Mix("videos of 5, 9, ... 25", causal, 88.0),
        Mix("the same, tails cut by at most 2", causal, 99.0, trim_frames=2),
        Mix("scenes, geometric, cut at 25", scenes, 99.5),
        Mix("80% pictures, videos of 13 to 25", most),
    ]


def weigh(clips: Clips) -> Weights:
    """Tokens, and a layer's FLOPs of a training step, three times those of its forward pass."""
    visual = clips.latent_frames.astype(np.int64) * FRAME_TOKENS
    text = clips.text_tokens.astype(np.int64)
    n = (visual + text).astype(np.float64)
    return Weights(visual, text, 3 * (24 * WIDTH**2 * n + 4 * WIDTH * n**2))


def clips_of(lengths: NDArray[np.int64]) -> Clips:
    random, count = np.random.default_rng(1), len(lengths)
    frames, same = lengths.astype(np.int32), np.zeros(count, np.int32)
    return Clips(
        id=np.arange(1, count + 1), shard=same, offset=np.arange(count) << 24,
        bytes=frames.astype(np.int64) << 18, crc32c=same.astype(np.uint32), latent_frames=frames,
        height=same + 60, width=same + 106, text_tokens=random.integers(20, 225, count, np.int32),
        collection=same, shards=("000000.tar",), collections=("",),
    )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What planning two epochs gave.

    `fill` in percent; `flushed` of an epoch's packs were closed by its end; `slowest` over the mean
    of a step's ranks.
    """

    fill: float
    flushed: int
    slowest: float
    worst: float
    least_seen: int
    most_seen: int


def plan(clips: Clips, **settings: object) -> Found:
    """Plan whole windows of steps over two epochs or a little more."""
    config = DataConfig(**{"packs_per_step": RANKS, "pack_tokens": PACK_TOKENS, **settings})  # type: ignore[arg-type]
    order = PackOrder(clips, np.arange(len(clips)), weigh, config, 0)
    seen, sizes, slowest, step = Counter[int](), list[float](), list[float](), 0
    while step % config.balance_steps or order.epoch_of(step) < 2:
        packs, costs = order.packs(step), order.costs(step)
        for pack in packs:
            seen.update(part.entry.id for part in pack)
            sizes.append(sum(_size(part.entry.latent_frames - part.frames_cut,
                                   part.entry.text_tokens, config) for part in pack))  # fmt: skip
        hands = [sum(costs[place] for place in hand) for hand in deal(costs, RANKS)]
        slowest.append(max(hands) / float(np.mean(hands)))
        step += 1
    counts = [seen[id] for id in clips.id.tolist()]
    return Found(
        100 * float(np.mean(sizes)),
        order.flushed(),
        float(np.mean(slowest)),
        max(slowest),
        min(counts),
        max(counts),
    )


def _size(frames: int, text_tokens: int, config: DataConfig) -> float:
    """The share of a pack that a clip takes."""
    if config.pack_frames is not None:
        return frames / config.pack_frames
    return (frames * FRAME_TOKENS + text_tokens) / config.pack_tokens


@click.command()
@click.option("--count", default=40_000, show_default=True, help="Clips of a mix.")
def main(count: int) -> None:
    """Print a table of fill, and one of the work of ranks."""
    print(f"# Packs: fill and equal work\n\n{os.cpu_count()} cores, {platform.machine()}, "
          f"Python {platform.python_version()}, {datetime.date.today()}. {count:,} clips of each "
          f"mix, two epochs.\n")  # fmt: skip
    print_fill(count)
    print_work(count // 4)


def print_fill(count: int) -> None:
    print("## Fill\n\nOf packs of 25 latent frames, and of packs of "
          f"{PACK_TOKENS:,} tokens with text, in percent of the limit.\n")  # fmt: skip
    print("| frames | fill, 25 frames | to reach | closed by the end of the epoch | fill, tokens | "
          "a clip was seen |\n|---|---|---|---|---|---|")  # fmt: skip
    for mix in mixes(count):
        clips = clips_of(mix.frames)
        frames = plan(clips, pack_frames=FRAMES, trim_frames=mix.trim_frames)
        tokens = plan(clips, trim_frames=mix.trim_frames)
        target = "" if mix.least_fill is None else f"{mix.least_fill}"
        print(
            f"| {mix.name} | {frames.fill:.2f} | {target} | {frames.flushed} packs | "
            f"{tokens.fill:.2f} | "
            f"{min(frames.least_seen, tokens.least_seen)} to "
            f"{max(frames.most_seen, tokens.most_seen)} times |",
            flush=True,
        )


def print_work(count: int) -> None:
    print(f"\n## The slowest of {RANKS} ranks over the mean\n\nMean over steps, and the worst "
          f"step, of {count:,} clips of each mix. A rank has one pack a step, or "
          "four.\n")  # fmt: skip
    ways: dict[str, dict[str, object]] = {
        "25 frames, as they come": {"pack_frames": FRAMES, "balance_steps": 1},
        "25 frames, balanced": {"pack_frames": FRAMES},
        "tokens, as they come": {"balance_steps": 1},
        "tokens, balanced": {},
        "tokens and cost, as they come": {"balance_steps": 1, **_by_cost()},
        "tokens and cost, balanced": _by_cost(),
        "tokens, as they come, 4 packs": {"balance_steps": 1, "packs_per_step": 4 * RANKS},
        "tokens, balanced, 4 packs": {"packs_per_step": 4 * RANKS},
    }  # fmt: skip
    print(f"| frames | one clip a rank | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 2)}")
    for mix in mixes(count):
        clips = clips_of(mix.frames)
        found = [plan(clips, trim_frames=mix.trim_frames, **way) for way in ways.values()]
        cells = [f"{each.slowest:.3f} ({each.worst:.2f})" for each in found]
        print(f"| {mix.name} | {alone(clips):.2f} | {' | '.join(cells)} |", flush=True)


def _by_cost() -> dict[str, object]:
    """Packs that may cost as much as the longest clip does, however many tokens that are."""
    longest = clips_of(np.full(1000, FRAMES))
    return {"pack_flops": float(weigh(longest).flops.max())}


def alone(clips: Clips) -> float:
    """The slowest over the mean where each rank takes one clip a step, no packs."""
    costs = weigh(clips).flops[: len(clips) // RANKS * RANKS].reshape(-1, RANKS)
    return float((costs.max(1) / costs.mean(1)).mean())


if __name__ == "__main__":
    main()
