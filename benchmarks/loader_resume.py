#!/usr/bin/env python3
"""Exact resume: ranks are killed at random, the run goes on with more or fewer of them.

    benchmarks/loader_resume.py SCRATCH > benchmarks/loader_resume-2-cores.md

SCRATCH is a folder of its own, deleted first. Every attempt's ranks are processes of their own that
share it; the clips of every step are put on record, and their bytes checked
(`benchmarks/loader_kills.py`).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import datetime
import itertools
import os
import platform
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace

import click
import numpy as np

from benchmarks.loader_kills import Drill, Driver, doom, first_packs, held, verdict, write_data

CLIPS = 4000
CHANGES = ((2, 1), (3, 1), (4, 2), (1, 1))  # ranks, and threads that read in each
WORLDS = (8, 6, 8)
LAST_STEPS = 20  # of the attempt after all kills, which comes to its end


@click.command()
@click.argument("scratch", type=click.Path(path_type=Path))
@click.option("--kills", default=200, show_default=True, help="Half of them with a hot volume.")
@click.option("--seed", default=0, show_default=True)
def main(scratch: Path, kills: int, seed: int) -> None:
    """Kill, go on, and print what was lost or seen twice."""
    shutil.rmtree(scratch, ignore_errors=True)
    data = write_data(scratch / "data", CLIPS)
    print(f"# Resume after kills\n\n{os.cpu_count()} cores, {platform.machine()}, "
          f"Python {platform.python_version()}, {datetime.date.today()}.\n")  # fmt: skip
    print(
        f"{CLIPS:,} clips of 20 to 135 KB, in blocks of 1,000. Times to the first pack are those of"
    )
    print(
        "every resumed rank, from opening its inputs on, all ranks of an attempt at once on these"
    )
    print("cores; a process is forked from one that has imported the libraries.\n")
    print_head()
    change_of_ranks(scratch / "changes", data)
    for hot in (False, True):
        name = "hot" if hot else "direct"
        many_kills(scratch / name, data, kills // 2, seed, hot=hot)


def change_of_ranks(folder: Path, data: Path) -> None:
    """Once through a few world sizes, each killed within an epoch and between two saves."""
    drill = Drill(folder / "run", data, steps=120, packs_per_step=12)
    driver = Driver(drill)
    for number, (world, threads) in enumerate(CHANGES, start=1):
        end = 25 * number + 1 if number < len(CHANGES) else drill.steps + 1
        driver.attempt(world, lambda _, taken, end=end: taken >= end, threads)  # type: ignore[misc]
    print_row("2x1 -> 3x1 -> 4x2 -> 1x1", driver)


def many_kills(folder: Path, data: Path, kills: int, seed: int, *, hot: bool) -> None:
    """Kills of one to three ranks at random moments."""
    chance = random.Random(seed)
    drill = Drill(
        folder / "run", data, steps=10**6, packs_per_step=24, hot=folder / "hot" if hot else None
    )
    driver = Driver(drill, seed)
    for world in itertools.cycle(WORLDS):
        if driver.told.kills >= kills:
            break
        driver.attempt(
            world,
            doom(chance, drill.saved["step"]),
            victims=min(chance.choice((1, 1, 2, 3)), kills - driver.told.kills),
        )
    driver.drill = replace(drill, steps=drill.saved["step"] + LAST_STEPS)
    driver.attempt(WORLDS[0], lambda *_: False)
    what = "through a hot volume" if hot else "without a hot volume"
    print_row(f"8 -> 6 -> 8 -> ..., {what}", driver)
    if hot:
        left = held(folder / "hot")
        print_hot(driver, len(left))


def print_head() -> None:
    columns = (
        "ranks", "attempts", "killed", "steps", "identical", "clips", "missing", "repeated",
        "a clip was seen", "state, bytes", "first pack, s: median, 99%, most",
        "of it CPU, s: median, most",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def print_row(name: str, driver: Driver) -> None:
    found, told = verdict(driver.drill), driver.told
    times = first_packs(driver.drill)
    cells = (
        name, told.attempts, told.kills, found.steps, found.identical_steps, f"{found.clips:,}",
        found.missing, found.repeated, f"{found.seen_least} to {found.seen_most} times",
        told.state_bytes, summary([t.wall_s for t in times], 0.5, 0.99, 1.0),
        summary([t.cpu_s for t in times], 0.5, 1.0),
    )  # fmt: skip
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def summary(times: Sequence[float], *quantiles: float) -> str:
    return ", ".join(f"{np.quantile(times, q):.2f}" for q in quantiles)


def print_hot(driver: Driver, left: int) -> None:
    told, drill = driver.told, driver.drill
    print(f"\nIn the hot volume lay at most {told.most_hot_bytes:,} of {drill.hot_bytes:,} bytes. "
          f"Once an attempt had taken a step, {told.left_by_others} things of other attempts were "
          f"found there; at the end, {left} units.", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
