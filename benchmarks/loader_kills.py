"""The data feed of a run whose ranks are real processes, killed and started again.

Each rank reads its share as a worker of a run does, and waits after each step until all ranks have
taken it, as gradients do. A step is saved once every rank has its clips on record; the next attempt
goes on from there, on as many ranks as it is given. What was read is then held against the plan.
"""

import json
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crc32c import crc32c

from scalewright.config import assign
from scalewright.data.catalogue import Catalogue, NewClip
from scalewright.data.codec import HaarCodec
from scalewright.data.fetching import Fetcher
from scalewright.data.loader import StepData
from scalewright.data.order import Mark
from scalewright.data.sample import DataInfo, Sample
from scalewright.data.shards import ShardWriter, write_null_text
from scalewright.data.snapshot import write_snapshot
from scalewright.data.text import ByteNgramEncoder
from scalewright.recipes import demo
from scalewright.train.consumed import ConsumedLog, read_consumed
from scalewright.train.feed import Feed
from scalewright.train.inputs import Inputs, open_inputs
from scalewright.train.parallel import World
from scalewright.train.run import RunConfig
from scalewright.train.skips import SkipList

STATE, SUMS, TIMES, SNAPSHOT = "state.json", "sums.npy", "times.jsonl", "snapshot.arrow"
POLL_S = 0.002


@dataclass(frozen=True)
class Drill:
    """A run of `steps` steps on the clips of `data`, saved every `save_every` steps."""

    folder: Path
    data: Path
    steps: int
    packs_per_step: int
    save_every: int = 2
    step_s: float = 0.02
    hot: Path | None = None
    hot_bytes: int = 40_000_000

    @property
    def config(self) -> RunConfig:
        hot = [f"data.hot={self.hot}", f"data.hot_bytes={self.hot_bytes}"] if self.hot else []
        return assign(
            demo(),
            [
                f"steps={self.steps}", f"data.packs_per_step={self.packs_per_step}",
                "optimizer.warmup_steps=1", "data.pack_tokens=1024", "data.shuffle_clips=1000",
                "data.ram_bytes=20000000",
                "name=drill", *hot,
            ],
        )  # fmt: skip

    def inputs(self) -> Inputs:
        return open_inputs(self.config, self.data, self.folder / SNAPSHOT)

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of the data: the step to go on at, and its mark."""
        path = self.folder / STATE
        if path.exists():
            return dict(json.loads(path.read_text()))
        return {"step": 0, "mark": asdict(Mark())}


@dataclass(frozen=True)
class Shared:
    """What the ranks of an attempt know of each other: how many steps each took, and noted."""

    taken: Any
    noted: Any


def write_data(
    folder: Path, clips: int, most_frames: int = 8, size: tuple[int, int] = (16, 16)
) -> Path:
    """A data folder of random clips, and the checksums of their numbers.

    1 to `most_frames` latent frames of `size`, 64 bytes a position: 20 to 135 KB as it is.
    """
    random_latents = torch.Generator().manual_seed(0)
    encoder, codec = ByteNgramEncoder(), HaarCodec()
    info = DataInfo(codec.fingerprint, codec.latent_channels, encoder.fingerprint, encoder.dim)
    catalogue = Catalogue.create(folder, info)
    text = encoder.encode(["a clip of random numbers"])[0].half()
    rows, sums = [], [0]
    with ShardWriter(folder) as writer:
        for number in range(clips):
            shape = (1 + number % most_frames, codec.latent_channels, *size)
            latent = torch.randn(shape, generator=random_latents).half()
            at = writer.add(f"{number:06d}", latent, text)
            sums.append(_sum(latent, text))
            rows.append(
                NewClip(
                    source=f"{number}.mp4", split="validation" if number == 0 else "train",
                    caption="", **asdict(at), latent_frames=len(latent), height=size[0],
                    width=size[1],
                    text_tokens=len(text),
                )
            )  # fmt: skip
    catalogue.add(rows)
    write_null_text(folder, text)
    write_snapshot(catalogue.snapshot(), folder / SNAPSHOT)
    np.save(folder / SUMS, np.array(sums, np.uint32))  # by id, which count from 1
    return folder


def _sum(latent: torch.Tensor, text: torch.Tensor) -> int:
    return crc32c(text.contiguous().numpy().data, crc32c(latent.contiguous().numpy().data))


def live(drill: Drill, attempt: int, rank: int, world: int, threads: int, shared: Shared) -> None:
    """One rank's life: go on from what is saved, and read its share of every step."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    torch.set_num_threads(1)
    saved, sums = drill.saved, np.load(drill.data / SUMS)
    inputs = drill.inputs()
    inputs.reader.fetcher = Fetcher(inputs.reader.storage, threads=threads)
    stage = inputs.work.stages[0]
    stage.order.plan_from(Mark(**saved["mark"]))
    log = ConsumedLog(drill.folder, rank, attempt)
    feed = Feed(
        drill.config, inputs, stage, World(rank, world, torch.device("cpu"), False, 1),
        start_step=saved["step"], attempt=attempt,
        skips=SkipList(drill.folder, rank, attempt, 0.0),
    )  # fmt: skip
    with feed as loader:
        for data in loader:
            if data.step == saved["step"]:
                wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
                _note_time(drill.folder / TIMES, FirstPack(attempt, rank, world, wall_s, cpu_s))
            check(data, sums)
            time.sleep(drill.step_s)
            log.add(data)
            done = data.step + 1
            shared.taken[rank] = done
            _wait(lambda done=done: min(shared.taken) >= done)  # type: ignore[misc]
            if done % drill.save_every == 0 or done == drill.steps:
                log.flush()
                shared.noted[rank] = done
                if rank == 0:
                    _wait(lambda done=done: min(shared.noted) >= done)  # type: ignore[misc]
                    mark = stage.order.mark(min(done, drill.steps - 1))
                    _save(drill.folder / STATE, {"step": done, "mark": asdict(mark)})
    inputs.reader.close()


def check(data: StepData, sums: Any) -> None:
    """Every clip must be there, with the numbers that were written."""
    for sample in (sample for pack in data.packs for sample in pack):
        assert isinstance(sample, Sample), f"step {data.step}: {sample} is missing"
        found = _sum(sample.latent, sample.text)
        assert found == sums[sample.id], f"step {data.step}: clip {sample.id} is another"


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_S)


def _save(path: Path, state: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(state))
    os.replace(part, path)


@dataclass(frozen=True)
class FirstPack:
    """When a rank of an attempt had its first packs, and the CPU time that it took for them."""

    attempt: int
    rank: int
    world: int
    wall_s: float
    cpu_s: float


def _note_time(path: Path, time: FirstPack) -> None:
    with path.open("a") as file:  # short lines are appended in one piece
        file.write(json.dumps(asdict(time)) + "\n")


@dataclass
class Told:
    """What the driver saw of the attempts; bytes and leftovers are those in the hot volume."""

    attempts: int = 0
    kills: int = 0
    resumed_at: list[int] = field(default_factory=list)
    most_hot_bytes: int = 0
    left_by_others: int = 0
    state_bytes: int = 0


class Driver:
    """Starts attempt after attempt of a drill, each in processes of its own, and ends some."""

    def __init__(self, drill: Drill, seed: int = 0) -> None:
        self.drill, self.told = drill, Told()
        self._random = random.Random(seed)
        # Forked from a process that has imported everything already: an import takes seconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "pyarrow"])
        drill.folder.mkdir(parents=True, exist_ok=True)

    def attempt(
        self, world: int, doomed: Callable[[float, int], bool], threads: int = 32, victims: int = 1
    ) -> bool:
        """An attempt until its end, or until it is `doomed(seconds, steps taken)`: then killed.

        Returns whether it came to its end. An error of a rank is one here.
        """
        self.told.attempts += 1
        self.told.resumed_at.append(self.drill.saved["step"])
        shared = Shared(self._context.RawArray("q", world), self._context.RawArray("q", world))
        name = self.told.attempts
        ranks = [
            self._context.Process(
                target=live, args=(self.drill, name, rank, world, threads, shared), daemon=True
            )
            for rank in range(world)
        ]
        for each in ranks:
            each.start()
        begin_s = time.perf_counter()
        try:
            while any(each.is_alive() for each in ranks):
                if any(each.exitcode for each in ranks):
                    raise AssertionError(f"attempt {name}: a rank ended with an error")
                self._look(name, min(shared.taken))
                if doomed(time.perf_counter() - begin_s, min(shared.taken)):
                    self._kill(ranks, victims)
                    return False
                time.sleep(POLL_S)
            assert not any(each.exitcode for each in ranks), f"attempt {name}: a rank ended early"
            return True
        finally:
            for each in ranks:
                each.kill()
                each.join()

    def _kill(self, ranks: Sequence[BaseProcess], victims: int) -> None:
        """SIGKILL to some; to the others a little later, as a run ends what is left of it."""
        for each in self._random.sample(list(ranks), min(victims, len(ranks))):
            each.kill()
            self.told.kills += 1
        time.sleep(self._random.uniform(0, 0.05))

    def _look(self, attempt: int, taken: int) -> None:
        """At what lies in the hot volume; once steps are taken, only this attempt's."""
        state = self.drill.folder / STATE
        self.told.state_bytes = max(
            self.told.state_bytes, state.stat().st_size if state.exists() else 0
        )
        if self.drill.hot is None or not (volume := self.drill.hot / "drill").exists():
            return
        self.told.most_hot_bytes = max(self.told.most_hot_bytes, sum(held(volume).values()))
        if taken:
            others = [path for path in volume.iterdir() if f"-{attempt:05d}-" not in path.name]
            self.told.left_by_others += len(others)


def doom(chance: random.Random, start: int) -> Callable[[float, int], bool]:
    """When to kill: a third within a second of the start, the others some steps later."""
    if chance.random() < 1 / 3:
        end_s = chance.uniform(0, 1)
        return lambda elapsed_s, taken: elapsed_s > end_s
    steps = chance.randint(1, 12)
    return lambda elapsed_s, taken: taken >= start + steps and chance.random() < 0.1


def held(volume: Path) -> dict[str, int]:
    """Bytes of every unit in a hot volume, whole or in part, by its path."""
    found = {}
    for folder, _, names in os.walk(volume):
        for name in names:
            if not name.startswith("passed-"):
                path = os.path.join(folder, name)
                try:
                    found[path] = os.stat(path).st_size
                except FileNotFoundError:  # deleted while we look
                    continue
    return found


@dataclass(frozen=True)
class Verdict:
    """What was read against what was planned, over all steps."""

    steps: int
    identical_steps: int
    clips: int
    missing: int
    repeated: int
    seen_least: int
    seen_most: int


def verdict(drill: Drill) -> Verdict:
    """Hold the audit of a drill that has ended against the plan from its first step on."""
    order, told = drill.inputs().work.stages[0].order, read_consumed(drill.folder)
    identical, missing, repeated, seen = 0, 0, 0, Counter[int]()
    for step in range(drill.steps):
        planned = [[each.entry.id for each in pack] for pack in order.packs(step)]
        found = told[step].packs if step in told else []
        identical += sorted(found) == sorted(planned)
        wanted = Counter(id for pack in planned for id in pack)
        got = Counter(id for pack in found for id in pack)
        missing, repeated = missing + (wanted - got).total(), repeated + (got - wanted).total()
        seen += got
    counts = [seen[entry.id] for entry in order.entries()]
    return Verdict(
        drill.steps, identical, seen.total(), missing, repeated, min(counts), max(counts)
    )


def first_packs(drill: Drill) -> list[FirstPack]:
    """Of every rank of a resumed attempt that got so far."""
    lines = (drill.folder / TIMES).read_text().splitlines()
    times = [FirstPack(**json.loads(line)) for line in lines]
    return [time for time in times if time.attempt > 1]
