"""Real ranks on this machine: one process each, joined by gloo on loopback."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scalewright.config import assign
from scalewright.events import EVENTS_FILE, Metrics, Notice, read_events
from scalewright.recipes import demo
from scalewright.train.generate import leave
from scalewright.train.place import RunPlace
from scalewright.train.run import RunConfig
from scalewright.train.worker import train

CPU = torch.device("cpu")


def small(*assignments: str) -> RunConfig:
    """A run of seconds on the folders of `folders.write_data_folder`."""
    return assign(
        demo(),
        [
            "model.width=32", "model.depth=2", "steps=12", "optimizer.warmup_steps=2",
            "data.pack_tokens=96", "data.packs_per_step=4", "log.every_steps=2",
            "checkpoint.every_steps=4", "checkpoint.keep=3", "log.validate_every_steps=6",
            "log.sample_clips=0", *assignments,
        ],
    )  # fmt: skip


def run_ranks(world: int, target: Callable[..., None], *arguments: Any) -> None:
    """Call `target(rank, *arguments)` in `world` processes of one gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        # Ranks meet at a file: a port found free now may be taken by the time they do.
        meeting = f"file://{folder}/meeting"
        mp.spawn(_join, (world, meeting, target, arguments), nprocs=world)


def _join(
    rank: int, world: int, meeting: str, target: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    target(rank, *arguments)
    # Gloo takes a peer that leaves early for one that died.
    dist.barrier()
    dist.destroy_process_group()
    leave()


def train_rank(rank: int, config: RunConfig, folder: Path, data: Path, attempt: int) -> None:
    train(config, RunPlace(folder, data, attempt), CPU)


def train_on(world: int, config: RunConfig, folder: Path, data: Path, attempt: int = 1) -> Path:
    """Train on `world` ranks, or in this process without a group if `world` is 0."""
    folder.mkdir(parents=True, exist_ok=True)
    if world:
        run_ranks(world, train_rank, config, folder, data, attempt)
    else:
        train_rank(0, config, folder, data, attempt)
    return folder


def notices(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a run told of one kind, in order."""
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    return [dict(e.fields) for e in events if isinstance(e, Notice) and e.kind == kind]


def series(folder: Path, name: str) -> list[float]:
    """All values that a run told of a metric."""
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    return [e.values[name] for e in events if isinstance(e, Metrics) and name in e.values]
