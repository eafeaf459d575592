#!/usr/bin/env python3
"""How much of the hardware a training step uses, and what watching it costs.

    benchmarks/train_step.py > benchmarks/train_step-MACHINE.md                        # one GPU
    benchmarks/train_step.py --small > benchmarks/train_step-2-cores.md                # a CPU

Model FLOP utilisation is by the exact formula of model/shape.py, without recomputation, against the
peak of the device. Steps are the run's own (`train_step`: noise levels, packs, FSDP of one rank,
guard, fused AdamW), on random latents of stated sizes. What costs extra is timed in pairs: a plain
step and the other one after it, many times; the table has the median of the differences with its
90% interval, spread over the steps between two of them.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import click
import numpy as np
import torch
import torch.distributed as dist

from scalewright.data.assumed import assumed_clips
from scalewright.data.order import PackOrder
from scalewright.data.sample import Entry, Sample
from scalewright.model.attention import (
    Attention,
    attention_for,
    flash_attention,
    segment_attention,
    torch_varlen_attention,
)
from scalewright.model.memory import Recompute
from scalewright.model.shape import ClipTokens, parameters, train_flops
from scalewright.model.statistics import Watch
from scalewright.objective.flow import NoisedPack, training_pack
from scalewright.recipes import recipe
from scalewright.train.hardware import peak_flops
from scalewright.train.parallel import current_world
from scalewright.train.run import RunConfig
from scalewright.train.step import Counts, train_step
from scalewright.train.training import Training, begin_training
from scalewright.train.weigh import weigh_in

SIZES = ("1x64x64+224", "13x64x64+224", "25x64x64+224")
SMALL_SIZES = ("1x8x8+8", "3x8x8+8")


@click.command()
@click.option("--recipe", "name", default="mmdit_1b", show_default=True)
@click.option("--pack-tokens", multiple=True, type=int, default=(4096, 8192, 26_112))
@click.option("--steps", default=20, show_default=True, help="Timed steps of a row.")
@click.option("--pairs", default=20, show_default=True, help="Pairs of a comparison.")
@click.option("--small", is_flag=True, help="Sizes for a CPU.")
def main(name: str, pack_tokens: Sequence[int], steps: int, pairs: int, small: bool) -> None:
    """Print tables: utilisation by pack and mode, cost of watching, back ends of attention."""
    device = torch.device("cuda" if torch.cuda.is_available() and not small else "cpu")
    config = small_config() if small else replace(recipe(name), activation_penalty=PENALTY)
    sizes = SMALL_SIZES if small else SIZES
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1
        )
        peak = header(config, device)
        packs = (512, 1024) if small else pack_tokens
        utilisation(config, device, packs, sizes, steps, small, peak)
        watching(config, device, 1024 if small else max(pack_tokens), sizes, pairs)
        if device.type == "cuda":
            back_ends(config, device)
            profile(config, device, max(pack_tokens), sizes)
        dist.destroy_process_group()


PACKS = 4  # that a row is timed on, in turn
PENALTY = replace(recipe("demo").activation_penalty, weight=1e-4)


def small_config() -> RunConfig:
    base = recipe("demo")
    model = replace(base.model, width=256, depth=6)
    return replace(base, model=model, activation_penalty=PENALTY)


def header(config: RunConfig, device: torch.device) -> float:
    """Print what runs where; the peak that utilisation is a share of."""
    peak, reason = peak_flops(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(
        f"# A training step\n\n{where}, torch {torch.__version__}, width {config.model.width}, "
        f"depth {config.model.depth}, {parameters(config.model):,} parameters, "
        f"{config.parallel.compute}; peak {peak:.3g} FLOP/s ({reason})\n"
    )
    return peak


def utilisation(
    config: RunConfig, device: torch.device, packs: Sequence[int], sizes: Sequence[str],
    steps: int, small: bool, peak: float,
) -> None:  # fmt: skip
    print("| pack tokens | recompute | compile | s a step | clips/s | MFU | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    modes: list[tuple[Recompute, bool]] = [("none", False), ("full", False), ("selective", False)]
    if not small:
        modes = [("selective", True), ("full", True), ("none", True), ("selective", False)]
    for tokens in packs:
        for recompute, compiled in modes:
            parallel = replace(
                config.parallel,
                activation_checkpointing=recompute,
                compile=compiled,
            )
            try:
                row(replace(config, parallel=parallel), device, tokens, sizes, steps, peak)
            except torch.OutOfMemoryError:
                print(f"| {tokens} | {recompute} | {compiled} | out of memory | | | |", flush=True)
            torch._dynamo.reset()


def row(
    config: RunConfig,
    device: torch.device,
    tokens: int,
    sizes: Sequence[str],
    steps: int,
    peak: float,
) -> None:
    training = begin_training(config, current_world(device))
    bench = Bench(training, tokens, sizes)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(rounds=max(1, steps // PACKS))
    memory = "-"
    if device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
    parallel = config.parallel
    print(
        f"| {tokens} | {parallel.activation_checkpointing} | {parallel.compile} | {seconds:.4g} | "
        f"{bench.clips / seconds:.3g} | {bench.flops / seconds / peak:.1%} | {memory} |",
        flush=True,
    )


def watching(
    config: RunConfig, device: torch.device, tokens: int, sizes: Sequence[str], pairs: int
) -> None:
    """What statistics and the penalty cost on top, spread over the steps between two of them."""
    training = begin_training(config, current_world(device))
    bench = Bench(training, tokens, sizes)
    print("\n| on top of a step | of the step itself | every | of throughput (90% interval) |")
    print("|---|---|---|---|")
    for name, watch, every in (
        ("statistics", Watch(statistics=True), config.log.statistics_every_steps),
        ("penalty", Watch(penalty=True), config.activation_penalty.every_steps),
    ):
        bench.timed(watch, 0)  # compiled once
        # Both of a pair are on the same pack: packs differ more than the two do.
        paired = np.array(
            [(bench.timed(Watch(), index), bench.timed(watch, index)) for index in range(pairs)]
        )
        share = (paired[:, 1] - paired[:, 0]) / np.median(paired[:, 0])
        drawn = np.random.default_rng(0).choice(share, (2000, len(share)))
        low, high = np.percentile(np.median(drawn, axis=1), (5, 95)) / every
        middle = np.median(share)
        print(
            f"| {name} | {middle:+.1%} | {every} | {middle / every:+.2%} ({low:+.2%} to "
            f"{high:+.2%}) |",
            flush=True,
        )


class Bench:
    """A training state and packs to step it on, again and again."""

    def __init__(self, training: Training, tokens: int, sizes: Sequence[str]) -> None:
        self.training = training
        config = training.config
        self._packs = list(made_packs(config, tokens, sizes, training.world.device))
        clips = [clip for _, of_pack in self._packs for clip in of_pack]
        self.clips = len(clips) / len(self._packs)
        self.flops = train_flops(config.model, clips) / len(self._packs)
        self._step = 0
        for index in range(2 * len(self._packs)):
            self.timed(Watch(), index)

    def seconds(self, rounds: int) -> float:
        """Seconds of a step: the median of rounds over all packs, which are as much work each."""
        every = range(len(self._packs))
        times = [sum(self.timed(Watch(), index) for index in every) for _ in range(rounds)]
        return float(np.median(times)) / len(self._packs)

    def timed(self, watch: Watch, index: int) -> float:
        """Seconds of one step on a pack."""
        pack, clips = self._packs[index % len(self._packs)]
        counts = Counts(pack.elements, sum(clip.visual + clip.text for clip in clips))
        synchronise(self.training.world.device)
        begin_s = time.perf_counter()
        train_step(self.training, [pack], step=self._step, counts=counts, watch=watch)
        synchronise(self.training.world.device)
        self._step += 1
        return time.perf_counter() - begin_s


def made_packs(
    config: RunConfig, tokens: int, sizes: Sequence[str], device: torch.device
) -> Iterator[tuple[NoisedPack, list[ClipTokens]]]:
    """Some packs of random clips, planned as a run plans them."""
    clips, weigh = assumed_clips(sizes), weigh_in(config.model)
    weights = weigh(clips)
    rows = np.flatnonzero(weights.visual + weights.text <= tokens)
    data = replace(config.data, pack_tokens=tokens, packs_per_step=1)
    order = PackOrder(clips, rows, weigh, data, seed=0)
    for step in range(PACKS):
        samples = [sample_of(planned.entry, config) for planned in order.packs(step)[0]]
        null = torch.zeros(1, config.model.text_dim)
        pack = training_pack(samples, null, config.flow, config.model, seed=0, step=step)
        yield pack.to(device), order.tokens(step)


def sample_of(entry: Entry, config: RunConfig) -> Sample:
    generator = torch.Generator().manual_seed(entry.id)
    shape = (entry.latent_frames, config.model.latent_channels, entry.height, entry.width)
    text = torch.randn(entry.text_tokens, config.model.text_dim, generator=generator)
    return Sample(entry.id, torch.randn(shape, generator=generator), text)


def back_ends(config: RunConfig, device: torch.device) -> None:
    """Attention alone, forward and backward, on one pack; flash-attn where a build loads."""
    from scalewright.model.attention import Segments

    heads, size = config.model.heads, config.model.head_dim
    segments = Segments.of([6_624, 3_360, 1_248, 1_248, 13_536]).to(device)
    total = sum(segments.lengths)
    shape = (total, heads, size)
    flops = sum(3.5 * 4 * n * n * heads * size for n in segments.lengths)
    chosen: list[tuple[str, Attention]] = [
        ("torch varlen", torch_varlen_attention),
        ("SDPA clip by clip", segment_attention),
    ]
    try:
        import flash_attn

        chosen.insert(0, (f"flash-attn {flash_attn.__version__}", flash_attention))
    except ImportError as error:
        print(f"\nflash-attn is not in this comparison: {error}")
    print(f"\nChosen here: {attention_for(device, torch.bfloat16)[1]}\n")
    print("| attention, forward and backward | ms | TFLOP/s |\n|---|---|---|")
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    for tensor in (q, k, v):
        tensor.requires_grad_(True)

    def once(attention: Attention) -> Callable[[], None]:
        return lambda: attention(q, k, v, segments)[0].sum().backward()

    for name, attention in chosen:
        seconds = min(timed(once(attention), device) for _ in range(10))
        print(f"| {name} | {1e3 * seconds:.2f} | {flops / seconds / 1e12:.0f} |", flush=True)


def profile(config: RunConfig, device: torch.device, tokens: int, sizes: Sequence[str]) -> None:
    """Where the time of a step goes, by kernel."""
    parallel = replace(config.parallel, compile=True, activation_checkpointing="selective")
    bench = Bench(
        begin_training(replace(config, parallel=parallel), current_world(device)), tokens, sizes
    )
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for index in range(PACKS):
            bench.timed(Watch(), index)
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    print(f"\n```\n{table}\n```")


def timed(task: Callable[[], None], device: torch.device) -> float:
    synchronise(device)
    begin_s = time.perf_counter()
    task()
    synchronise(device)
    return time.perf_counter() - begin_s


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
