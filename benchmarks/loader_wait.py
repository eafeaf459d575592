#!/usr/bin/env python3
"""How long steps wait for data: 8 ranks as 8 processes, from S3 and through a hot volume.

    benchmarks/loader_wait.py SCRATCH > benchmarks/loader_wait-2-cores.md

Credentials and endpoint of S3 are boto3's (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...); the clips, of
0.3 and 0.6 MB, are uploaded to a bucket of their own. A step sleeps half a second, as if a GPU was
busy, and ends when all ranks have taken it. A rank reads at most four of its packs ahead, so that
what it waits for is the store and not what lay in RAM at the start.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import datetime
import json
import multiprocessing
import os
import platform
import shutil
import time
from dataclasses import dataclass
from typing import Any

import boto3
import click
import numpy as np
import torch

from benchmarks.loader_kills import SNAPSHOT, Shared, write_data
from scalewright.config import assign
from scalewright.recipes import demo
from scalewright.train.feed import Feed
from scalewright.train.inputs import open_inputs
from scalewright.train.parallel import World
from scalewright.train.run import RunConfig
from scalewright.train.skips import SkipList

BUCKET = "loader-wait"
RANKS, STEP_S, WARM_STEPS = 8, 0.5, 2
CLIPS, FRAMES, SIZE = 1500, 2, (52, 92)
TOKEN_BYTES = 4 * 64  # a patch of 2 x 2 positions
READ_AHEAD_PACKS = 4
POLL_S = 0.002


@dataclass(frozen=True)
class Trial:
    """Steps at a rate of `megabytes_per_s` that all ranks together consume."""

    folder: Path
    place: str
    megabytes_per_s: int
    steps: int
    hot: Path | None

    @property
    def config(self) -> RunConfig:
        pack_bytes = self.megabytes_per_s * 10**6 * STEP_S / RANKS
        hot = [f"data.hot={self.hot}", "data.hot_bytes=1000000000"] if self.hot else []
        return assign(
            demo(),
            [
                f"steps={self.steps}", "optimizer.warmup_steps=1", f"data.packs_per_step={RANKS}",
                f"data.pack_tokens={round(pack_bytes / TOKEN_BYTES)}",
                f"data.ram_bytes={round(READ_AHEAD_PACKS * pack_bytes)}", *hot,
            ],
        )  # fmt: skip


@dataclass(frozen=True)
class Lived:
    """What a rank saw: how long each step waited, when steps began, and what it took for bytes.

    CPU time is counted from the first pack on.
    """

    waits_s: list[float]
    begins_s: list[float]
    first_s: float
    read_bytes: int
    cpu_s: float


def live(trial: Trial, rank: int, shared: Shared) -> None:
    """A rank's life; leaves what it saw as JSON."""
    begin_s, begin_cpu_s = time.perf_counter(), 0.0
    torch.set_num_threads(1)
    config = trial.config
    inputs = open_inputs(config, trial.place, trial.folder / SNAPSHOT)
    feed = Feed(
        config, inputs, inputs.work.stages[0],
        World(rank, RANKS, torch.device("cpu"), False, 1), start_step=0, attempt=1,
        skips=SkipList(trial.folder, rank, 1, 0.0),
    )  # fmt: skip
    waits_s, begins_s, read_bytes, waited_s = [], [], 0, 0.0
    with feed as loader:
        for data in loader:
            begins_s.append(time.perf_counter() - begin_s)
            begin_cpu_s = begin_cpu_s or time.process_time()
            waits_s.append(loader.gauges.wait_s - waited_s)
            waited_s = loader.gauges.wait_s
            for sample in (sample for pack in data.packs for sample in pack):
                read_bytes += sample.latent.nbytes + sample.text.nbytes  # type: ignore[union-attr]
            time.sleep(STEP_S)
            shared.taken[rank] = data.step + 1
            while min(shared.taken) <= data.step:
                time.sleep(POLL_S)
    inputs.reader.close()
    lived = Lived(waits_s, begins_s, begins_s[0], read_bytes, time.process_time() - begin_cpu_s)
    (trial.folder / f"rank-{rank}.json").write_text(json.dumps(vars(lived)))


def run(trial: Trial) -> list[Lived]:
    """All ranks at once, each in a process of its own."""
    trial.folder.mkdir(parents=True)
    shutil.copy(trial.folder.parent / "data" / SNAPSHOT, trial.folder / SNAPSHOT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.loader_kills", "pyarrow", "boto3"])
    shared = Shared(context.RawArray("q", RANKS), None)
    ranks = [context.Process(target=live, args=(trial, rank, shared)) for rank in range(RANKS)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert not any(each.exitcode for each in ranks), "a rank ended with an error"
    paths = [trial.folder / f"rank-{rank}.json" for rank in range(RANKS)]
    return [Lived(**json.loads(path.read_text())) for path in paths]


def row(trial: Trial, ranks: list[Lived]) -> str:
    """A step waits as long as the rank that waits longest; the first steps fill the RAM."""
    waits = np.array([each.waits_s for each in ranks])[:, WARM_STEPS:]
    wall_s = ranks[0].begins_s[-1] - ranks[0].begins_s[WARM_STEPS]
    steps = waits.shape[1] - 1
    megabytes = sum(each.read_bytes for each in ranks) / 1e6
    cells = (
        "hot volume" if trial.hot else "S3",
        f"{trial.megabytes_per_s}",
        f"{megabytes / len(ranks[0].waits_s) / (wall_s / steps):.0f}",
        f"{100 * waits.max(0).mean() / STEP_S:.2f}%",
        f"{100 * waits.mean() / STEP_S:.2f}%",
        f"{1000 * waits.max():.0f}",
        f"{100 * (wall_s / steps / STEP_S - 1):.1f}%",
        f"{max(each.first_s for each in ranks):.2f}",
        f"{sum(each.cpu_s for each in ranks) / megabytes * 1000:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def upload(data: Path) -> str:
    """The place in S3 to which the files of a data folder were copied."""
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in data.rglob("*"):
        if path.is_file() and path.suffix != ".sqlite":
            client.upload_file(str(path), BUCKET, f"data/{path.relative_to(data)}")
    return f"s3://{BUCKET}/data"


@click.command()
@click.argument("scratch", type=click.Path(path_type=Path))
@click.option("--rate", multiple=True, type=int, default=(10, 50, 100, 200), help="In MB/s.")
@click.option("--steps", default=40, show_default=True)
def main(scratch: Path, rate: tuple[int, ...], steps: int) -> None:
    """Print a row for each rate and way."""
    shutil.rmtree(scratch, ignore_errors=True)
    place = upload(write_data(scratch / "data", CLIPS, FRAMES, SIZE))
    print(f"# Waiting for data\n\n{os.cpu_count()} cores, {platform.machine()}, Python "
          f"{platform.python_version()}, {datetime.date.today()}; load {os.getloadavg()[0]:.0f} "
          f"when this began. {steps} steps of {STEP_S} s, {RANKS} ranks; they and the S3 server "
          "share the cores.\n")  # fmt: skip
    columns = (
        "clips come from", "MB/s planned", "consumed",
        "wait of a step (its slowest rank)", "of a rank",
        "longest, ms", "steps longer than planned by", "first pack, s", "CPU s/GB of ranks",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for each in rate:
        for hot in (None, scratch / "hot"):
            name = f"{each}-{'hot' if hot else 's3'}"
            trial = Trial(scratch / name, place, each, steps, hot)
            print(row(trial, run(trial)), flush=True)


if __name__ == "__main__":
    main()
