#!/usr/bin/env python3
"""Packs of clips against batches padded to one length: clips per second on the same clips.

    benchmarks/packing.py > benchmarks/packing-MACHINE.md

Of the clips 40% are pictures and 60% videos of 2 to 25 latent frames, as many of each length; a
pass holds as many tokens as one, or as four, of the longest. Packs are clips end to end. A padded
batch holds as many clips as fit when each is as long as the longest of the batch; its padding is
attended to like any token, as where a batch has one length and no mask, and costs the same in every
layer. Buckets are such batches of clips sorted by length, in random order. All run the same model,
forward and backward, in turns; a pass counts with its best time.

Workers wait for the slowest of them: clips per second of 8 workers are those of the measured
passes, dealt out in steps of eight that last as long as their longest pass.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import itertools
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import click
import numpy as np
import torch
from numpy.typing import NDArray

from scalewright.data.assumed import assumed_entries
from scalewright.data.clips import Clips
from scalewright.data.order import PackOrder
from scalewright.data.sample import Entry
from scalewright.data.settings import DataConfig
from scalewright.model.attention import attention_for
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, param_rules
from scalewright.model.packed import PackedBatch, PackItem, pack
from scalewright.model.shape import ModelConfig
from scalewright.recipes import recipe
from scalewright.train.weigh import weigh_in

PICTURES, LENGTHS = 16, range(2, 26)  # of every 40 clips 16 are pictures
WORKERS = 8
CLIPS = 400


@dataclass(frozen=True)
class Batch:
    """What one pass eats, and how many clips of the data are in it."""

    packed: PackedBatch
    clips: int


@click.command()
@click.option("--rounds", default=2, show_default=True)
def main(rounds: int) -> None:
    """Print clips per second of each way, and the ratio to packs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    config = recipe("mmdit_200m").model if cuda else replace(recipe("demo").model, width=256)
    frame, text = ("64x64", 224) if cuda else ("8x8", 8)
    mix = [f"{frames}x{frame}+{text}" for frames in [1] * PICTURES + list(LENGTHS)]
    entries = assumed_entries(mix)[:CLIPS]
    Random(0).shuffle(entries)
    longest = max(tokens_of_clips(entries, config))
    model, dtype = built(config, device)
    where = torch.cuda.get_device_name() if cuda else platform.machine()
    print(f"# Packs against padded batches\n\n{where}, torch {torch.__version__}, {dtype}.")
    print(f"Width {config.width}, depth {config.depth}; {len(entries)} clips of {frame} latents:")
    print(f"{PICTURES / (PICTURES + len(LENGTHS)):.0%} pictures, videos of 2 to 25 frames.")
    for clips_per_pass in (1, 4):
        print(f"\n## {clips_per_pass * longest:,} tokens a pass: {clips_per_pass} of the longest\n")
        ways = ways_to_batch(entries, config, clips_per_pass * longest)
        compare(ways, model, device, dtype, rounds)


def ways_to_batch(
    entries: Sequence[Entry], config: ModelConfig, tokens: int
) -> dict[str, list[Batch]]:
    """The same clips, batched in each way."""
    buckets = padded(by_length(entries), config, tokens)
    Random(0).shuffle(buckets)
    return {
        "packs": packs(entries, config, tokens),
        "one clip a pass": [Batch(pack([item(e, config)], config), 1) for e in entries],
        "padded to the longest of the batch": padded(entries, config, tokens),
        "padded, in buckets of like length": buckets,
    }


def compare(
    ways: dict[str, list[Batch]], model: MMDiT, device: torch.device, dtype: torch.dtype,
    rounds: int,
) -> None:  # fmt: skip
    """Run all ways in turns, and print a row of each."""
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    timed(model, ways["packs"][0].packed.to(device), dtype)
    for _ in range(rounds):
        for name, batches in ways.items():
            times[name].append([timed(model, b.packed.to(device), dtype) for b in batches])
    print("| way | passes | no padding | clips/s | packs are faster by | ", end="")
    print(f"clips/s, {WORKERS} workers | packs are faster by |\n|---|---|---|---|---|---|---|")
    rows = {name: rates(ways[name], np.min(found, axis=0)) for name, found in times.items()}
    real = tokens_of(ways["packs"])
    for name, batches in ways.items():
        alone, together = rows[name]
        print(
            f"| {name} | {len(batches)} | {real / tokens_of(batches):.0%} | "
            f"{alone:.3g} | {rows['packs'][0] / alone:.2f}x | "
            f"{together:.3g} | {rows['packs'][1] / together:.2f}x |"
        )


def tokens_of(batches: Sequence[Batch]) -> int:
    return sum(sum(batch.packed.segments.lengths) for batch in batches)


def rates(batches: Sequence[Batch], seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Clips per second of one worker, and of `WORKERS` that wait for each other at every step."""
    steps = range(0, len(batches) - WORKERS + 1, WORKERS)
    slowest_s = sum(max(seconds[step : step + WORKERS]) for step in steps)
    clips = sum(batch.clips for batch in batches[: steps[-1] + WORKERS])
    return sum(batch.clips for batch in batches) / float(seconds.sum()), clips / slowest_s


def built(config: ModelConfig, device: torch.device) -> tuple[MMDiT, torch.dtype]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = meta_model(config, attention_for(device, dtype)[0])
    materialise(model, param_rules(config), seed=0, device=device)
    return model.to(dtype), dtype


def tokens_of_clips(entries: Sequence[Entry], config: ModelConfig) -> list[int]:
    weights = weigh_in(config)(Clips.of(entries))
    return (weights.visual + weights.text).tolist()


def by_length(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.latent_frames * entry.height * entry.width)


def packs(entries: Sequence[Entry], config: ModelConfig, tokens: int) -> list[Batch]:
    """As a run packs them."""
    data = DataConfig(pack_tokens=tokens, packs_per_step=1, balance_steps=1)
    clips = Clips.of(entries)
    order = PackOrder(clips, np.arange(len(clips)), weigh_in(config), data, seed=0)
    plan = itertools.takewhile(lambda step: order.epoch_of(step) < 1, itertools.count())
    return [
        Batch(pack([item(each.entry, config) for each in parts], config), len(parts))
        for step in plan
        for parts in order.packs(step)
    ]


def padded(entries: Sequence[Entry], config: ModelConfig, tokens: int) -> list[Batch]:
    """In the order given; every clip becomes as large as the largest of its batch."""
    sizes = tokens_of_clips(entries, config)
    groups: list[list[int]] = [[]]
    for index, size in enumerate(sizes):
        longest = max([size, *(sizes[i] for i in groups[-1])])
        if longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(index)
    batches = []
    for group in groups:
        largest = max(group, key=lambda i: sizes[i])
        items = [item(entries[largest], config)] * len(group)
        batches.append(Batch(pack(items, config), len(group)))
    return batches


def item(entry: Entry, config: ModelConfig) -> PackItem:
    generator = torch.Generator().manual_seed(entry.id)
    shape = (entry.latent_frames, config.latent_channels, entry.height, entry.width)
    text = torch.randn(entry.text_tokens, config.text_dim, generator=generator)
    return PackItem(torch.randn(shape, generator=generator), text, 0.5)


def timed(model: MMDiT, batch: PackedBatch, dtype: torch.dtype) -> float:
    synchronise(batch.visual.device)
    begin_s = time.perf_counter()
    model(batch).velocity.float().square().mean().backward()
    synchronise(batch.visual.device)
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - begin_s


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
