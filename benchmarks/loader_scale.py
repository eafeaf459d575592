#!/usr/bin/env python3
"""From a large catalogue to the first pack: seconds, memory, and how fast packs are planned.

    benchmarks/loader_scale.py --scratch FOLDER > benchmarks/loader_scale-2-cores.md

Snapshots of that many clips are written to the folder (60 bytes a clip, and a score); they name
the clips of some small shards again and again, so that every clip is really read and checked. Each
row is a process of its own: rank 0 of 8, whose share is read. Seconds are counted from when its
libraries are imported.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click
import numpy as np
import pyarrow as pa  # noqa: F401 - imported before time is counted
import torch

from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.clips import Clips
from scalewright.data.order import Mark, PackOrder
from scalewright.data.pinning import pinned_snapshot
from scalewright.data.sample import DataInfo, Entry
from scalewright.data.shards import ShardWriter, write_null_text
from scalewright.data.snapshot import FILE_NAME, snapshot_of, write_snapshot
from scalewright.recipes import recipe
from scalewright.train.feed import Feed
from scalewright.train.inputs import open_inputs
from scalewright.train.parallel import World
from scalewright.train.run import RunConfig
from scalewright.train.skips import SkipList

SIDES = ((64, 64), (44, 92), (92, 44), (56, 72), (72, 56), (52, 80))
TEXT_DIM, CHANNELS, KINDS = 4096, 16, 97
RATE_CLIPS = 200_000
INFO = DataInfo("scale", CHANNELS, "scale", TEXT_DIM)


def config_of(**data: Any) -> RunConfig:
    base = recipe("mmdit_1b")
    settings = {"packs_per_step": 64, "hot": None, "codec": None, "text_encoder": None} | data
    return replace(base, data=replace(base.data, **settings))


def write_large(folder: Path, count: int) -> None:
    """Snapshot of `count` clips, each of them one of `KINDS` in random order."""
    kinds = write_kinds(folder)
    at = np.random.default_rng(0).integers(0, len(kinds), count).astype(np.int32)
    clips = replace(kinds.take(at), id=np.arange(1, count + 1))
    held_out = np.arange(count) % 100_000 == 0
    write_snapshot(snapshot_of(INFO, 1, clips, held_out), folder / FILE_NAME)


def write_kinds(folder: Path) -> Clips:
    """Shards that hold a clip of each kind; 40 of 100 kinds are pictures."""
    random, entries = np.random.default_rng(1), []
    with ShardWriter(folder) as writer:
        for number in range(KINDS):
            frames = 1 if number % 5 < 2 else int(random.integers(2, 26))
            height, width = SIDES[number % len(SIDES)]
            text = torch.zeros(int(random.integers(20, 225)), TEXT_DIM).half()
            at = writer.add(f"{number:06d}", torch.zeros(frames, CHANNELS, height, width), text)
            entries.append(
                Entry(
                    number, at.shard, at.offset, at.bytes, at.crc32c, frames, height, width,
                    len(text), ("films", "photos", "scenes")[number % 3],
                    {"motion": number / KINDS},
                )
            )  # fmt: skip
    write_null_text(folder, torch.zeros(1, TEXT_DIM))
    return Clips.of(entries)


def peak_mb() -> float:
    """Of this process; what `getrusage` tells counts its parent's as well."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["VmHWM"].split()[0]) / 1024


def first_pack(folder: Path, saved: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Open inputs and feed as a worker does, wait for the first packs, then plan on alone.

    Of a resumed run: `saved` holds the step to go on at and its mark.
    """
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    config = config_of(**data)
    inputs = open_inputs(config, folder, folder / FILE_NAME)
    told = {
        "open_s": time.perf_counter() - begin_s,
        "open_cpu_s": time.process_time() - begin_cpu_s,
    }
    order = inputs.work.stages[0].order
    if saved:
        order.plan_from(Mark(**saved["mark"]))
    feed = Feed(
        config, inputs, inputs.work.stages[0], World(0, 8, torch.device("cpu"), False, 1),
        start_step=saved.get("step", 0), attempt=1, skips=SkipList(folder, 0, 1, 0.0),
    )  # fmt: skip
    with feed as loader:
        next(loader)
        told["first_s"] = time.perf_counter() - begin_s
        told["first_cpu_s"] = time.process_time() - begin_cpu_s
        told["peak_mb"] = peak_mb()
    inputs.reader.close()
    if saved:
        return told
    last = last_step_of_block(order)
    mark = {"step": last, "mark": asdict(order.mark(last))}
    return told | rates(order, last + 1) | {"saved": mark}


def rates(order: PackOrder, first: int) -> dict[str, float]:
    """Clips planned in a second, and in a second of CPU time: packs alone, and as rank 0 of 8."""
    order.costs(first)  # the steps after it are not planned yet
    found = {}
    begin_s, begin_cpu_s, clips, step = time.perf_counter(), time.process_time(), 0, first
    while clips < RATE_CLIPS:
        step += 1
        clips += 8 * sum(len(pack) for pack in order.share(step, 0, 8))
    found["clips_per_s"] = clips / (time.perf_counter() - begin_s)
    found["clips_per_cpu_s"] = clips / (time.process_time() - begin_cpu_s)
    return found


def last_step_of_block(order: PackOrder) -> int:
    """The last step that needs no pack beyond the first block."""
    step = 0
    while order.mark(step + 1).block == 0:
        step += 1
    return step


def pin(count: int, folder: Path) -> dict[str, float]:
    """A catalogue of `count` rows in SQLite, and the snapshot that a run takes of it."""
    catalogue = Catalogue.create(folder, INFO)
    for begin in range(0, count, 100_000):
        catalogue.add([
            NewClip(f"{row}.mp4", "train", "a caption of some words", "000000.tar", row << 20,
                    1 << 24, 0, 1 + row % 25, 64, 64, 20 + row % 200)
            for row in range(begin, min(count, begin + 100_000))
        ])  # fmt: skip
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    pinned_snapshot(str(folder), None, folder / "run" / FILE_NAME)
    return {
        "open_s": time.perf_counter() - begin_s, "open_cpu_s": time.process_time() - begin_cpu_s,
        "peak_mb": peak_mb(),
    }  # fmt: skip


def in_a_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


WAYS: dict[str, dict[str, Any]] = {
    "tokens": {"pack_tokens": 52_224},
    "25 frames": {"pack_tokens": 52_224, "pack_frames": 25},
    "tokens, 4,096 packs a step": {"pack_tokens": 52_224, "packs_per_step": 4096},
}


def report(scratch: Path, counts: Sequence[int], catalogue_rows: int) -> None:
    print(f"# From a large catalogue to the first pack\n\n{os.cpu_count()} cores, "
          f"{platform.machine()}, Python {platform.python_version()}, {datetime.date.today()}; "
          f"load {os.getloadavg()[0]:.0f} when this began.\n")  # fmt: skip
    print("Seconds are of the clock, and (in brackets) of CPU. Memory is the peak of the process,")
    print("with its libraries, the mapped snapshot and the clips read ahead.\n")
    columns = ("clips", "packs close on", "inputs open, s", "first pack, s", "peak, MB",
               "resumed at the end of a block: first pack, s",
               "state, bytes", "planned, clips/s")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for count in counts:
        folder = scratch / str(count)
        write_large(folder, count)
        for way in list(WAYS)[: 1 if count > 10**7 else None]:
            fresh = in_a_process("row", str(folder), way)
            resumed = in_a_process("row", str(folder), way, json.dumps(fresh["saved"]))
            cells = (
                f"{count:,}", way, both(fresh, "open"), both(fresh, "first"),
                f"{fresh['peak_mb']:,.0f}", both(resumed, "first"),
                f"{len(json.dumps(fresh['saved'])):,}",
                f"{fresh['clips_per_s']:,.0f} ({fresh['clips_per_cpu_s']:,.0f})",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
        (folder / FILE_NAME).unlink()
    told = in_a_process("pin", str(scratch / "catalogue"), str(catalogue_rows))
    print(f"\nTaking the snapshot of a catalogue of {catalogue_rows:,} rows in SQLite: "
          f"{both(told, 'open')} s, {told['peak_mb']:,.0f} MB. Once a run.")  # fmt: skip


def both(told: dict[str, Any], name: str) -> str:
    return f"{told[f'{name}_s']:.2f} ({told[f'{name}_cpu_s']:.2f})"


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--scratch", type=click.Path(path_type=Path))
@click.option("--count", multiple=True, type=int, default=(1_000_000, 10_000_000))
@click.option("--catalogue-rows", default=1_000_000, show_default=True)
def main(
    context: click.Context, scratch: Path | None, count: Sequence[int], catalogue_rows: int
) -> None:
    """Print a row for each size and way."""
    if context.invoked_subcommand is None:
        if scratch is None:
            raise click.UsageError("give --scratch FOLDER")
        report(scratch, count, catalogue_rows)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("way")
@click.argument("saved", default="{}")
def row(folder: Path, way: str, saved: str) -> None:
    """Measure one row, and print it as JSON."""
    print(json.dumps(first_pack(folder, json.loads(saved), WAYS[way])))


@main.command("pin")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def pin_row(folder: Path, count: int) -> None:
    """Measure how long a catalogue takes to pin, and print it as JSON."""
    print(json.dumps(pin(count, folder)))


if __name__ == "__main__":
    main()
