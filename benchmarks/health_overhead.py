#!/usr/bin/env python3
"""What heartbeats and the timing of own work cost a training step.

    benchmarks/health_overhead.py > benchmarks/health_overhead-MACHINE.md

Steps are the run's own, on one rank. A step with its pulse and one without follow each other on the
same pack, either of them first in turn; the table has the median of the differences of many pairs
with its 90% interval, as a share of a plain step. Single calls are timed below it. What a node's
health agent takes is counted, not paired: the processor time of it and of all its children.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable

import click
import numpy as np
import psutil
import torch
import torch.distributed as dist

from benchmarks.train_step import SIZES, SMALL_SIZES, Bench, small_config
from scalewright.heartbeat import Phase, beat_folder, read_beats
from scalewright.model.statistics import Watch
from scalewright.recipes import recipe
from scalewright.train.parallel import current_world
from scalewright.train.pulse import Pulse
from scalewright.train.run import RunConfig
from scalewright.train.training import begin_training

CALLS = 2000
AGENT_BEGINS_S, AGENT_PERIOD_S = 60.0, 15.0


@click.command()
@click.option("--pairs", default=200, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of a CPU; fewer, less noise.")
@click.option("--agent-s", default=300.0, show_default=True, help="How long the agent is watched.")
def main(pairs: int, threads: int, agent_s: float) -> None:
    """Print a table of the cost of a pulse, and what its calls take."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        torch.set_num_threads(threads)
    where = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {threads} threads"
    print(f"# A rank's signs of life\n\n{where}, torch {torch.__version__}, {pairs} pairs\n")
    print("| model | blocks | step | pulse on top (90% interval) |\n|---|---|---|---|", flush=True)
    configs = [("mmdit_1b", recipe("mmdit_1b"), 8192)] if gpu else []
    configs += [("small", small_config(), 512), ("demo", recipe("demo"), 128)]
    with tempfile.TemporaryDirectory() as folder:
        meeting, backend = f"file://{folder}/meeting", "nccl" if gpu else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        with Pulse(Path(folder), 1, current_world(device)) as pulse:
            for name, config, tokens in configs:
                sizes = SIZES if name == "mmdit_1b" else SMALL_SIZES
                row(name, config, device, tokens, sizes, pulse, pairs)
            single_calls(pulse, Path(folder))
        dist.destroy_process_group()
        the_agent(Path(folder), agent_s)


def row(
    name: str, config: RunConfig, device: torch.device, tokens: int, sizes: tuple[str, ...],
    pulse: Pulse, pairs: int,
) -> None:  # fmt: skip
    """Time pairs of steps, and print what the second of each cost on top."""
    training = begin_training(config, current_world(device))
    pulse.time(training.model.blocks)  # type: ignore[arg-type]
    bench = Bench(training, tokens, sizes)

    def plain(index: int) -> float:
        return bench.timed(Watch(), index)

    def told(index: int) -> float:
        begin_s = time.perf_counter()
        pulse.enter(Phase.DATA)
        with pulse.step(index, [1e12]):
            bench.timed(Watch(), index)
        return time.perf_counter() - begin_s

    told(0)  # the first of its kind is not timed
    paired = np.array([pair(plain, told, index) for index in range(pairs)])
    share = (paired[:, 1] - paired[:, 0]) / np.median(paired[:, 0])
    drawn = np.random.default_rng(0).choice(share, (2000, len(share)))
    low, high = np.percentile(np.median(drawn, axis=1), (5, 95))
    print(
        f"| {name} | {config.model.depth} | {1e3 * np.median(paired[:, 0]):.3g} ms | "
        f"{np.median(share):+.2%} ({low:+.2%} to {high:+.2%}) |",
        flush=True,
    )


def pair(
    plain: Callable[[int], float], told: Callable[[int], float], index: int
) -> tuple[float, float]:
    """Seconds of a plain step and of one with its pulse; a slowing machine favours none."""
    if index % 2:
        second = told(index)
        return plain(index), second
    return plain(index), told(index)


def single_calls(pulse: Pulse, run_folder: Path) -> None:
    print("\n| call | µs |\n|---|---|")
    folder = beat_folder(run_folder, 1)

    def step() -> None:
        with pulse.step(1, [1e12]):
            pass

    calls: list[tuple[str, Callable[[], object]]] = [
        ("enter a phase", lambda: pulse.enter(Phase.SAVE)),
        ("begin and end a step", step),
        ("read one rank's record", lambda: read_beats(folder)),
    ]
    for name, call in calls:
        times_s = []
        for _ in range(CALLS):
            begin_s = time.perf_counter()
            call()
            times_s.append(time.perf_counter() - begin_s)
        print(f"| {name} | {1e6 * float(np.median(times_s)):.1f} |", flush=True)


def the_agent(storage: Path, watched_s: float) -> None:
    """Count the processor time of a node's agent with all of its checks, once they are at work."""
    checks = [sys.executable, "-m", "scalewright.health", "--watch", "--folder", str(storage)]
    with subprocess.Popen(
        [*checks, "--period-s", str(AGENT_PERIOD_S), "--out", str(storage / "findings.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
    ) as agent:
        time.sleep(AGENT_BEGINS_S)
        before_s, begin_s = processor_s(agent.pid), time.perf_counter()
        time.sleep(watched_s)
        used_s, passed_s = processor_s(agent.pid) - before_s, time.perf_counter() - begin_s
        agent.terminate()
    print(
        f"\nA node's agent, all checks each {AGENT_PERIOD_S:g} s, over {passed_s:.0f} s: "
        f"{1e3 * used_s / passed_s:.2f} ms of one core a second, {used_s / passed_s:.2%} of it"
    )


def processor_s(pid: int) -> float:
    """Seconds on a processor, of a process, its children, and those of them that have ended."""
    root = psutil.Process(pid)
    family = [root, *root.children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:4]) for process in family))


if __name__ == "__main__":
    main()
