#!/usr/bin/env python3
"""What becomes of reading when the store, the network, the hot volume or a process fails.

    AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \
        benchmarks/loader_faults.py --endpoint URL > benchmarks/loader_faults-MACHINE.md

Some 200 MB of clips go into a bucket of the S3 server, and are read over once, in packs, through a
proxy that damages answers. Every latent and text that arrives is held against what was written, and
every step against the plan. Readers are processes of their own; those with a hot volume are two.
A full hot volume is a tmpfs that holds a tenth of the data, for which the script must be root.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT), str(ROOT / "tests")]

import datetime
import json
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import boto3
import click
import numpy as np
import torch
from crc32c import crc32c
from faults import Faults, proxy  # type: ignore[import-not-found]

from scalewright.data.clips import Clips
from scalewright.data.fetching import Fetcher
from scalewright.data.hot import HotVolume
from scalewright.data.loader import Loader, StepData
from scalewright.data.order import PackOrder
from scalewright.data.sample import DataInfo, Entry, Missing, Sample
from scalewright.data.settings import DataConfig
from scalewright.data.shards import ShardWriter
from scalewright.data.snapshot import FILE_NAME, open_snapshot, snapshot_of, write_snapshot
from scalewright.data.staging import stretches
from scalewright.data.storage import Bucket, open_storage
from scalewright.errors import DataError
from scalewright.model.shape import ModelConfig
from scalewright.train.skips import FOLDER, SkipList
from scalewright.train.weigh import weigh_in

BUCKET, SUMS = "loader-faults", "sums.npy"
CHANNELS, HEIGHT, WIDTH, TEXT = 16, 40, 64, (16, 64)
CLIPS, SHARD_BYTES = 400, 4_000_000
STEPS, UPSET_STEP = 25, 6
SKIP_SHARE, LIMIT_S = 0.001, 240.0
REMARKS = """
Seconds are against the clean run of the same kind, the first of its kind in the table; a full or
removed volume is quicker than a clean one where the store is as near as the volume, as here. An
object that answers 503 for ever holds up the step that needs it for one deadline, and each later
one of its ranges for an eighth of it. A worker that dies is waited for once, 10 s. Where nothing
answers, up to 10 clips are listed as skipped before the run ends. Closing leaves reads that hang to
their threads, which end with their read, 15 s later at most."""
processes = multiprocessing.get_context("forkserver")  # which imports once


@dataclass(frozen=True)
class Case:
    """A fault: what the proxy does, or what happens to the volume or to readers on the way.

    `alone`: every clip is read by a request of its own. `hot_mb`: two readers with a volume.
    """

    name: str
    faults: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    hot_mb: int = 0
    upset: str = ""


@dataclass(frozen=True)
class Job:
    """What a reader's process is to do; it notes each step in `out`."""

    url: str
    data: Path
    out: Path
    deadline_s: float
    case: Case
    hot: Path | None = None
    rank: int = 0
    world: int = 1
    begin: int = 0
    attempt: int = 1

    @property
    def steps(self) -> Path:
        return self.out / f"steps-{self.rank}.jsonl"

    @property
    def end(self) -> Path:
        return self.out / f"end-{self.attempt}-{self.rank}.json"


@click.command()
@click.option("--endpoint", required=True, help="URL of an S3 server.")
@click.option("--server", default="an S3 server", help="What it is, for the report.")
@click.option("--deadline", default=30.0, show_default=True, help="Seconds, of a range.")
@click.option("--only", default="", help="Cases whose name holds this.")
def main(endpoint: str, server: str, deadline: float, only: str) -> None:
    """Print a table of what became of reading under each fault."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    with tempfile.TemporaryDirectory() as work:
        data = Path(work) / "data"
        write_data(data)
        upload(data, endpoint)
        size_mb = sum(path.stat().st_size for path in data.rglob("*.tar")) / 1e6
        head(server, size_mb, deadline)
        clean: dict[Any, float] = {}
        for number, case in enumerate(cases(data)):
            if only in case.name:
                with network(endpoint, case) as (url, damaged):
                    job = Job(url, data, Path(work) / str(number), deadline, case)
                    told = run(job)
                    print(row(case, told, damaged(), clean), flush=True)
        print(REMARKS)


def cases(data: Path) -> Iterator[Case]:
    """Every fault, after a clean run of its kind."""
    order = plan(data)
    entry = order.packs(2)[0][0].entry
    yield Case("none")
    yield Case("503, every range once", {"mode": "503"})
    yield Case("SlowDown, a third of requests, 10 s", {
        "mode": "503", "times": 0, "share": 1 / 3, "for_s": 10.0})  # fmt: skip
    for mode, name in (("reset", "reset mid-body"), ("short", "short body"), ("flip", "bit flip")):
        yield Case(f"{name}, every range once", {"mode": mode})
    yield Case("stall of 40 s, 8% of ranges", {"mode": "stall", "stall_s": 40.0, "share": 0.08})
    yield Case("no answer at all to any", {"mode": "stall", "stall_s": 300.0, "times": 0})
    for code in ("503", "404"):
        yield Case(f"a shard {code} for ever", {"mode": code, "times": 0, "match": entry.shard})
    yield Case("every tenth shard 404 for ever", {"mode": "404", "times": 0, "match": "2.tar"})
    yield Case(
        "credentials expired, renewed", {"mode": "expired", "times": 2, "match": entry.shard}
    )
    yield Case("credentials expired for ever", {"mode": "expired", "times": 0})
    yield Case("none, each clip alone", alone=True)
    one = {"times": 0, "match": f"{entry.shard} bytes={entry.offset}-"}
    yield Case("one clip flipped for ever", {"mode": "flip", **one}, alone=True)
    yield Case("none, hot volume", hot_mb=60)
    yield Case("bit flipped once, hot volume", {"mode": "flip"}, hot_mb=60)
    yield Case("full hot volume", hot_mb=1000, upset="full")
    yield Case("hot volume removed", hot_mb=60, upset="remove")
    yield Case("one of two that bring is killed", hot_mb=60, upset="kill one")
    yield Case("both readers killed, begun anew", hot_mb=60, upset="kill both")


def write_data(folder: Path) -> None:
    """Clips of 1 to 12 latent frames, and the checksums of their tensors by id."""
    generator, entries, sums = torch.Generator().manual_seed(0), [], [0]
    with ShardWriter(folder, SHARD_BYTES) as writer:
        for id in range(1, CLIPS + 1):
            shape = (1 + id * 7 % 12, CHANNELS, HEIGHT, WIDTH)
            latent, text = (torch.randn(s, generator=generator).half() for s in (shape, TEXT))
            at = writer.add(f"{id:06d}", latent, text)
            where = (at.shard, at.offset, at.bytes, at.crc32c)
            entries.append(Entry(id, *where, shape[0], HEIGHT, WIDTH, TEXT[0]))
            sums.append(checksum(latent, text))
    info = DataInfo("gaussian", CHANNELS, "gaussian", TEXT[1])
    held_out = np.zeros(CLIPS, np.bool_)
    write_snapshot(snapshot_of(info, 0, Clips.of(entries), held_out), folder / FILE_NAME)
    np.save(folder / SUMS, sums)


def checksum(latent: torch.Tensor, text: torch.Tensor) -> int:
    found: int = crc32c(text.numpy().tobytes(), crc32c(latent.numpy().tobytes()))
    return found


def upload(data: Path, endpoint: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    for path in data.rglob("*.tar"):
        client.upload_file(str(path), BUCKET, f"data/{path.relative_to(data)}")


def plan(data: Path) -> PackOrder:
    clips = open_snapshot(data / FILE_NAME).clips
    config = DataConfig(pack_tokens=18_000, packs_per_step=4, shuffle_clips=128)
    weigh = weigh_in(ModelConfig(text_dim=TEXT[1], latent_channels=CHANNELS))
    return PackOrder(clips, np.arange(len(clips)), weigh, config, 0)


@contextmanager
def network(endpoint: str, case: Case) -> Iterator[tuple[str, Callable[[], int]]]:
    """A proxy in a process of its own: its URL, and how many answers it has damaged."""
    ours, its = processes.Pipe()
    process = processes.Process(target=serve, args=(endpoint, case.faults, its), daemon=True)
    process.start()

    def damaged() -> int:
        ours.send(None)
        return int(ours.recv())

    try:
        yield ours.recv(), damaged
    finally:
        process.kill()
        process.join()


def serve(endpoint: str, settings: dict[str, Any], pipe: Connection) -> None:
    with proxy(endpoint, faults := Faults(**settings)) as url:
        pipe.send(url)
        while pipe.recv() is None:
            pipe.send(sum(faults.damaged.values()))


def read(job: Job) -> None:
    """A reader's life: its share of the steps, each checked and noted."""
    os.environ["AWS_ENDPOINT_URL"] = job.url
    logging.basicConfig(filename=job.out / f"log-{job.rank}", level=logging.WARNING)
    order, sums = plan(job.data), np.load(job.data / SUMS)
    store, hot = open_storage(f"s3://{BUCKET}/data"), None
    assert isinstance(store, Bucket)
    if job.hot is not None:
        name, share = f"attempt-{job.attempt}", {"rank": job.rank, "world": job.world}
        hot = HotVolume(store, job.hot, name=name, **share, hot_bytes=job.case.hot_mb * 10**6)
        hot.bring(stretches(order, job.begin, STEPS, hot.stretch_bytes))
    skips = SkipList(job.out, job.rank, job.attempt, SKIP_SHARE)
    fetcher = Fetcher(hot or store, deadline_s=job.deadline_s)
    begin_s, error = time.monotonic(), ""
    try:
        with Loader(
            fetcher, order, rank=job.rank, world=job.world, start_step=job.begin, stop_step=STEPS,
            ram_bytes=40_000_000, on_skip=skips, hot=hot, joined=not job.case.alone,
        ) as loader:  # fmt: skip
            skips.clips_read = lambda: loader.gauges.clips
            for data in loader:
                note(job, order, sums, data)
    except DataError as failure:
        error = f"{type(failure).__name__}: {failure}".replace(f"{job.out}/", "")
    told = {"seconds": time.monotonic() - begin_s, "error": error, **asdict(fetcher.gauges)}
    if hot is not None:
        told["from_store"] = hot.gauges.from_store
        hot.close()
    fetcher.close()
    told["close_s"] = time.monotonic() - begin_s - told["seconds"]
    job.end.write_text(json.dumps(told))


def note(job: Job, order: PackOrder, sums: Any, data: StepData) -> None:
    """Append what a step held against plan and source to the reader's file."""
    share = order.share(data.step, job.rank, job.world)
    ids = [[s.entry.id if isinstance(s, Missing) else s.id for s in pack] for pack in data.packs]
    here = [s for pack in data.packs for s in pack if isinstance(s, Sample)]
    line = {
        "step": data.step,
        "as_planned": ids == [[planned.entry.id for planned in pack] for pack in share],
        "clips": len(here),
        "missing": sum(map(len, data.packs)) - len(here),
        "wrong": sum(checksum(s.latent, s.text) != int(sums[s.id]) for s in here),
    }
    with job.steps.open("a") as file:
        file.write(json.dumps(line) + "\n")


def run(job: Job) -> dict[str, Any]:
    """Run the readers of a case to their ends, upset them on the way, and sum up."""
    job.out.mkdir()
    jobs = [job]
    with volume(job.case) as hot:
        if hot is not None:
            jobs = [replace(job, hot=hot, rank=rank, world=2) for rank in range(2)]
        readers = start(jobs)
        if job.case.upset not in ("", "full"):
            wait(lambda: len(noted(jobs[0])) >= UPSET_STEP or not readers[0].is_alive())
            jobs, readers = upset(jobs, readers)
        wait(lambda: not any(reader.is_alive() for reader in readers))
        hung = [reader for reader in readers if reader.is_alive()]
        for reader in hung:
            reader.kill()
        left = list(hot.rglob("0*")) if hot is not None else []
    ends = [json.loads(each.end.read_text()) for each in jobs if each.end.exists()]
    steps = {(each.rank, step["step"]): step for each in jobs for step in noted(each)}
    return {
        "hung": bool(hung),
        "crashed": len(ends) < len(jobs),
        "steps": list(steps.values()),
        "missing_steps": len(jobs) * STEPS - len(steps),
        "listed": sum(len(path.read_text().splitlines()) for path in (job.out / FOLDER).glob("*")),
        "left": len(left),
        "ends": ends,
    }


def start(jobs: list[Job]) -> list[BaseProcess]:
    readers: list[BaseProcess] = [processes.Process(target=read, args=(job,)) for job in jobs]
    for reader in readers:
        reader.start()
    return readers


def upset(jobs: list[Job], readers: list[BaseProcess]) -> tuple[list[Job], list[BaseProcess]]:
    """Do what the case says; returns who is to come to an end."""
    case = jobs[0].case
    assert jobs[0].hot is not None
    if case.upset == "remove":
        shutil.rmtree(jobs[0].hot)
        return jobs, readers
    for reader in readers[1:] if case.upset == "kill one" else readers:
        reader.kill()
        reader.join()
    if case.upset == "kill one":
        return jobs[:1], readers[:1]
    begin = min(len(noted(job)) for job in jobs)  # as a run resumes: from what all have trained on
    again = [replace(job, begin=begin, attempt=2) for job in jobs]
    return again, start(again)


def noted(job: Job) -> list[dict[str, Any]]:
    lines = job.steps.read_text().splitlines() if job.steps.exists() else []
    return [json.loads(line) for line in lines]


def wait(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not done() and time.monotonic() < deadline_s:
        time.sleep(0.05)


@contextmanager
def volume(case: Case) -> Iterator[Path | None]:
    """A folder for the volume of a case that has one; of 20 MB in all if it is to be full."""
    if not case.hot_mb:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        if case.upset == "full":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], check=True)
        try:
            yield Path(folder) / "hot"
        finally:
            if case.upset == "full":
                subprocess.run(["umount", "-l", folder], check=True)


def head(server: str, size_mb: float, deadline: float) -> None:
    print(
        f"# The loader under faults\n\n{datetime.date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} cores; {server}.\n{CLIPS} clips, {size_mb:.0f} MB in "
        f"shards of 4 MB, {STEPS} steps of 4 packs. A range fails for good after\n{deadline:g} s "
        f"(120 s in a run); 10 clips may be skipped, or {SKIP_SHARE:.1%} of them.\n\n"
        "| fault | end | seconds | answers damaged | clips read | skipped (listed) | "
        "tried again, asked twice | order as planned | wrong bytes | told |\n" + "|---" * 10 + "|"
    )


def row(case: Case, told: dict[str, Any], damaged: int, clean: dict[Any, float]) -> str:
    """A line of the table; seconds are compared with those of the clean run of its kind."""
    steps, ends = told["steps"], told["ends"]
    errors = sorted({end["error"] for end in ends if end["error"]})
    total = {name: sum(step[name] for step in steps) for name in ("clips", "missing", "wrong")}
    seconds = max((end["seconds"] for end in ends), default=LIMIT_S)
    against = clean.setdefault((case.alone, case.hot_mb > 0), seconds)
    again, twice = (sum(end[name] for end in ends) for name in ("retries", "hedges"))
    cells = [
        case.name, outcome(told, errors), f"{seconds:.1f} ({seconds / against:.1f}x)", damaged,
        total["clips"], f"{total['missing']} ({told['listed']})", f"{again}, {twice}",
        "yes" if all(step["as_planned"] for step in steps) else "NO", total["wrong"],
        "; ".join([*errors, *notes(case, told)]),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def outcome(told: dict[str, Any], errors: list[str]) -> str:
    if told["hung"] or told["crashed"] or errors:
        return "HANG" if told["hung"] else "CRASH" if told["crashed"] else "named error"
    return f"{told['missing_steps']} STEPS MISSING" if told["missing_steps"] else "survived"


def notes(case: Case, told: dict[str, Any]) -> Iterator[str]:
    if case.hot_mb:
        from_store = sum(end.get("from_store", 0) for end in told["ends"])
        yield f"{from_store} reads past the volume, {told['left']} units left in it"
    if (close_s := max((end["close_s"] for end in told["ends"]), default=0.0)) > 2:
        yield f"closed in {close_s:.0f} s"


if __name__ == "__main__":
    main()
