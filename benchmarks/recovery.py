#!/usr/bin/env python3
"""How long a run stands still after a fault, over and over on clusters of this machine.

    benchmarks/recovery.py --data CLIPS > benchmarks/recovery-MACHINE.md

A real run on raylets of this machine is disturbed: each fault of the table `--repeats` times.
Seconds are from the fault to the first step of the next attempt; steps are those that had to be
done again. Ray Train's own elastic shrink, with its defaults, is measured on a cluster of the same
size in the same run. All of it takes an hour and a half; `--part` makes one of the two tables.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT), str(ROOT / "tests")]

import contextlib
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence

import click
import psutil
import torch
from storm import Storm, storm

from benchmarks.faults import FAULTS, KILLED_RAYLET, Fault, Seen, disturb
from benchmarks.stock_ray import shrink_s

SPARE = 3  # nodes for two ranks
A_DRIVER = 3  # faults: a supervisor stops a run with more of one kind within a day


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--part", type=click.Choice(["all", "spare", "shrink"]), default="all")
@click.option(
    "--fault",
    "names",
    multiple=True,
    type=click.Choice([fault.name for fault in FAULTS]),
    help="With a spare, only this one; repeatable.",
)
def main(data: Path, repeats: int, part: str, names: tuple[str, ...]) -> None:
    """Print the tables."""
    print(
        f"# From a fault to the next step\n\n{platform.machine()}, {psutil.cpu_count()} cores, "
        f"torch {torch.__version__}; {repeats} of each, median / worst"
    )
    with tempfile.TemporaryDirectory() as folder:
        if part in ("all", "spare"):
            print_head("With a spare")
            chosen = [fault for fault in FAULTS if not names or fault.name in names]
            for index, fault in enumerate(chosen):
                with storm(Path(folder) / f"spare-{index}", data, SPARE) as run:
                    print_row(fault.name, repeat(run, fault, SPARE, repeats))
        if part in ("all", "shrink"):
            print_head("Without a spare: from two ranks to one")
            with storm(Path(folder) / "none", data, 2) as run:
                print_row(KILLED_RAYLET.name, repeat(run, KILLED_RAYLET, 2, repeats))
            stock = [shrink_s() for _ in range(repeats)]
            print(f"| the same, Ray Train's own elasticity | | {spread(stock)} | | |")


def print_head(title: str) -> None:
    print(f"\n## {title}\n")
    print("| fault | noticed, s | next step, s | steps done again | blamed right |")
    print("|---|---|---|---|---|", flush=True)


def repeat(run: Storm, fault: Fault, nodes: int, repeats: int) -> list[Seen]:
    seen: list[Seen] = []
    for index in range(repeats):
        while sum(node.alive for node in run.nodes.values()) < nodes:
            replace_gone(run)
        run.settle()
        shrunk = len(run.used()) < 2  # then from all nodes again
        if shrunk or (index and index % A_DRIVER == 0):
            before = run.attempt()
            run.stop()
            run.start()
            run.wait(lambda before=before: run.attempt() > before and len(run.used()) == 2)
            run.settle()
        seen.append(disturb(run, fault))
        ranks = run.notices("launched")[-1].fields["workers"]
        if ranks != min(2, nodes - fault.leaves):
            raise click.ClickException(f"{fault.name}: went on with {ranks} ranks\n{run.log()}")
    return seen


def replace_gone(run: Storm) -> None:
    """Add a node, and wait until it is a spare: Ray lists it, and the run has measured it."""
    begin_s = time.time()
    node = run.add_node()

    def joined() -> bool:
        with contextlib.suppress(ValueError, psutil.NoSuchProcess):  # its raylet is not there yet
            return node.node_id in run.head.node_ids()
        return False

    def measured() -> bool:
        looked = run.notices("preflight", begin_s)
        return bool(run.notices("measured_ahead", begin_s)) or any(
            node.machine in notice.fields.get("measured", ()) for notice in looked
        )

    run.wait(joined, 200)
    run.wait(measured, 200)


def print_row(name: str, seen: Sequence[Seen]) -> None:
    lost = [max(0, each.lost_steps) for each in seen]
    print(
        f"| {name} | {spread([each.detected_s for each in seen])} | "
        f"{spread([each.first_step_s for each in seen])} | "
        f"{statistics.median(lost):.0f} / {max(lost)} | "
        f"{sum(each.right for each in seen)} of {len(seen)} |",
        flush=True,
    )


def spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} / {max(seconds):.1f}"


if __name__ == "__main__":
    main()
