#!/usr/bin/env python3
"""Packs of clips against batches padded to one length: clips per second on the same clips.

    benchmarks/packing.py > benchmarks/packing-MACHINE.md

Clips are a stated mix of pictures and videos (latent sizes below, equally frequent). Packs are
clips end to end. A padded batch holds as many clips as fit when each is as long as the longest of
the batch; its padding is attended to like any token, as where a batch has one length and no mask,
and costs the same in every layer. Both run the same model, forward and backward, in turns; the
ratio is that of their medians. A second padded row sorts clips by length first, as buckets do.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
import torch

from scalewright.data.assumed import assumed_entries
from scalewright.data.packing import plan_epoch
from scalewright.data.sample import Entry
from scalewright.model.attention import attention_for
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, param_rules
from scalewright.model.packed import PackedBatch, PackItem, pack
from scalewright.model.shape import ModelConfig
from scalewright.recipes import recipe
from scalewright.train.inputs import clip_tokens

GPU_MIX = ("1x64x64+224", "1x44x92+224", "7x64x64+224", "13x48x84+224", "25x64x64+224")
CPU_MIX = ("1x8x8+8", "1x8x12+8", "2x8x8+8", "4x8x8+8", "7x8x8+8")


@dataclass(frozen=True)
class Batch:
    """What one pass eats, and how many clips of the data are in it."""

    packed: PackedBatch
    clips: int


@click.command()
@click.option("--rounds", default=10, show_default=True)
def main(rounds: int) -> None:
    """Print clips per second of each way, and the ratio to packs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    config = recipe("mmdit_200m").model if cuda else replace(recipe("demo").model, width=256)
    mix, tokens = (GPU_MIX, 26_112) if cuda else (CPU_MIX, 512)
    model, dtype = built(config, device)
    entries = assumed_entries(mix)
    ways = {
        "packs": packs(entries, config, tokens),
        "padded to the longest of the batch": padded(shuffled(entries), config, tokens),
        "padded, clips of like length together": padded(by_length(entries), config, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, batches in ways.items():
            seconds[name].append(sum(timed(model, b.packed.to(device), dtype) for b in batches))
    where = torch.cuda.get_device_name() if cuda else platform.machine()
    print(f"# Packs against padded batches\n\n{where}, torch {torch.__version__}")
    print(f"width {config.width}, depth {config.depth}, {tokens} tokens a pass; {', '.join(mix)}\n")
    print("| way | passes | tokens that are no padding | clips/s | packs are faster by |")
    print("|---|---|---|---|---|")
    rates = {n: sum(b.clips for b in ways[n]) / np.median(s[1:]) for n, s in seconds.items()}
    real = sum(clip.visual + clip.text for clip in clip_tokens(config, entries))
    for name, batches in ways.items():
        held = sum(sum(batch.packed.segments.lengths) for batch in batches)
        share = real * sum(b.clips for b in batches) / len(entries) / held
        print(
            f"| {name} | {len(batches)} | {share:.0%} | {rates[name]:.3g} | "
            f"{rates['packs'] / rates[name]:.2f}x |"
        )


def built(config: ModelConfig, device: torch.device) -> tuple[MMDiT, torch.dtype]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = meta_model(config, attention_for(device, dtype)[0])
    materialise(model, param_rules(config), seed=0, device=device)
    return model.to(dtype), dtype


def shuffled(entries: Sequence[Entry]) -> list[Entry]:
    order = np.random.default_rng(0).permutation(len(entries))
    return [entries[index] for index in order]


def by_length(entries: Sequence[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.latent_frames * entry.height * entry.width)


def packs(entries: Sequence[Entry], config: ModelConfig, tokens: int) -> list[Batch]:
    """As a run packs them."""
    plan = plan_epoch(clip_tokens(config, list(entries)), tokens, seed=0, epoch=0)
    return [Batch(pack([item(entries[i], config) for i in one], config), len(one)) for one in plan]


def padded(entries: Sequence[Entry], config: ModelConfig, tokens: int) -> list[Batch]:
    """In the order given; every clip becomes as large as the largest of its batch."""
    clips = clip_tokens(config, list(entries))
    groups: list[list[int]] = [[]]
    for index, clip in enumerate(clips):
        size = clip.visual + clip.text
        longest = max([size, *(clips[i].visual + clips[i].text for i in groups[-1])])
        if longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(index)
    batches = []
    for group in groups:
        largest = max(group, key=lambda i: clips[i].visual + clips[i].text)
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
