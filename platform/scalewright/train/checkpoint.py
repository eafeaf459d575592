"""Checkpoints: sharded, asynchronous, and trusted only after a manifest of hashes is in place.

    checkpoints/step-00000400/   *.distcp  .metadata  null_text.safetensors  manifest.json

A save goes to a `.part` folder of its attempt; when every rank has written, rank 0 hashes the
files into the manifest and renames the folder. Loading walks back to the newest that verifies.
Tensors only, saved by name and resharded on load: any world size reads any other's.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import crc32c
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from scalewright.errors import CheckpointError
from scalewright.train.parallel import World
from scalewright.train.training import Training

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

# Saving from a single process is what is asked for there (no_dist), not a mistake to warn about.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds: `step` steps are done; `run` is what it takes to go on or sample."""

    step: int
    attempt: int
    world_size: int
    run: dict[str, Any]
    files: dict[str, dict[str, int]]
    schema_version: int = 1


class Checkpointer:
    """Saves a run's state in the background and finds the newest state to go on from.

    It keeps the newest `keep`, and of older ones what it takes to go back `horizon_steps` at any
    time.
    """

    def __init__(
        self, folder: Path, world: World, attempt: int, keep: int, horizon_steps: int = 0
    ) -> None:
        self._folder, self._world, self._attempt, self._keep = folder, world, attempt, keep
        self._horizon_steps = horizon_steps
        # Its own group: collectives of the saving thread must not meet those of the step.
        self._group = dist.new_group(backend="gloo") if world.sharded else None
        # A real copy is needed while training goes on; pinned and shared memory need CUDA.
        cuda = world.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=cuda,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=cuda,
            )
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if world.rank == 0:
            for unfinished in folder.glob("*.part"):
                shutil.rmtree(unfinished)

    def save(
        self,
        step: int,
        training: Training,
        run: Mapping[str, Any],
        extras: Mapping[str, bytes],
    ) -> None:
        """Begin to save the state after `step` steps; waits only for the save before it."""
        self.wait()
        part = self._folder / f"{_name(step)}.attempt-{self._attempt}.part"
        written = dcp.async_save(
            train_state(training),
            storage_writer=dcp.FileSystemWriter(part, single_file_per_rank=True),
            process_group=self._group,
            async_stager=self._stager,
            no_dist=not self._world.sharded,
        )
        self._pending = self._thread.submit(
            self._commit, written, step, part, dict(run), dict(extras)
        )

    def wait(self) -> None:
        """Wait for the save in flight and raise its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()
        self._stager.close()

    def _commit(
        self, written: Any, step: int, part: Path, run: dict[str, Any], extras: dict[str, bytes]
    ) -> None:
        written.result()
        if self._world.rank != 0:
            return
        for name, content in extras.items():
            (part / name).write_bytes(content)
        files = {path.name: _fingerprint(path) for path in sorted(part.iterdir())}
        manifest = Manifest(step, self._attempt, self._world.size, run, files)
        _write_synced(part / MANIFEST, json.dumps(asdict(manifest), indent=1))
        _replace_folder(part, self._folder / _name(step))
        for old in superseded(committed(self._folder), self._keep, step - self._horizon_steps):
            shutil.rmtree(old)

    def forget_after(self, step: int) -> bool:
        """Set aside the checkpoints of later steps, so that no restart goes on from them.

        False, and nothing is touched, where none would be left.
        """
        self.wait()
        done = self._world.rank == 0 and self._forget_after(step)
        if self._world.sharded:
            box = [done]
            dist.broadcast_object_list(box, src=0, group=self._group)
            done = box[0]
        return done

    def _forget_after(self, step: int) -> bool:
        there = committed(self._folder)
        later = [path for path in there if path.name > _name(step)]
        if len(later) == len(there):
            return False
        for path in later:
            _set_aside(path, f"left-{self._attempt}")
        return True

    def resume(self, training: Training) -> Manifest | None:
        """Load the newest checkpoint that verifies; None if there is none."""
        chosen = self._choose() if self._world.rank == 0 else None
        if self._world.sharded:
            box = [chosen]
            dist.broadcast_object_list(box, src=0, group=self._group)
            chosen = box[0]
        if chosen is None:
            return None
        path, manifest = chosen
        state = train_state(training)
        dcp.load(
            state,
            checkpoint_id=path,
            process_group=self._group,
            no_dist=not self._world.sharded,
        )
        for moments in training.optimizer.state.values():
            moments["step"].copy_(state["updates"])
        return manifest

    def _choose(self) -> tuple[Path, Manifest] | None:
        """The newest that verifies; newer ones are set aside, or they would outlive good ones."""
        chosen = newest_verified(self._folder)
        for path in committed(self._folder):
            if chosen is not None and path == chosen[0]:
                break
            _set_aside(path, f"damaged-{self._attempt}")
        return chosen


def superseded(newest_first: Sequence[Path], keep: int, horizon: int) -> list[Path]:
    """The checkpoints that are not needed any more.

    Needed are the newest `keep`, the newest up to the step `horizon`, and the oldest after it,
    which takes its place once the horizon has come so far.
    """
    beyond = [path for path in newest_first if path.name <= _name(max(0, horizon))]
    within = newest_first[: len(newest_first) - len(beyond)]
    needed = {*newest_first[:keep], *beyond[:1], *within[-1:]}
    return [path for path in newest_first if path not in needed]


def _set_aside(path: Path, why: str) -> None:
    """Rename a checkpoint to a name that none has yet, so that it is never found again."""
    number = 0
    while (aside := path.with_name(f"{path.name}.{why}" + f".{number}" * bool(number))).exists():
        number += 1
    os.replace(path, aside)


def train_state(training: Training) -> dict[str, Any]:
    """All tensors of a run by name: weights, moments and average of those trained, the guard's.

    Moments begin as zeros. `updates`: steps that were not skipped, of which Adam keeps count.
    """
    first, second = {}, {}
    updates = torch.tensor(0.0)
    for name, parameter in training.model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = training.optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, device=training.world.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        first[name], second[name] = state["exp_avg"], state["exp_avg_sq"]
        updates = state["step"]
    memory = {"kept": training.memory.kept, "accepted": training.memory.accepted}
    state = {
        "model": _weights(training.model),
        "exp_avg": first,
        "exp_avg_sq": second,
        "updates": updates.clone(),
        "guard": memory,
    }
    return state if training.average is None else state | {"average": training.average.weights}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_weights(path: Path, model: nn.Module, *, averaged: bool = False) -> None:
    """Load a checkpoint's weights alone into an unsharded model; `averaged` ones where asked."""
    weights = _weights(model)
    dcp.load({"model": weights}, checkpoint_id=path, no_dist=True)
    if averaged:
        held = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        average = {name: w for name, w in weights.items() if f"average.{name}" in held}
        dcp.load({"average": average}, checkpoint_id=path, no_dist=True)


def committed(folder: Path) -> list[Path]:
    """Checkpoints that were renamed into place, newest first; not verified yet."""
    return sorted((path for path in folder.glob("step-*") if not path.suffix), reverse=True)


def newest_verified(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files are what its manifest says; damaged ones are named."""
    for path in committed(folder):
        try:
            return path, verify(path)
        except CheckpointError as error:
            logger.warning("%s; going back to the checkpoint before it", error)
    return None


def verify(path: Path) -> Manifest:
    """Read the manifest and check every file's size and checksum; `CheckpointError` says what."""
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: no readable {MANIFEST}: {error}") from None
    for name, expected in manifest.files.items():
        file = path / name
        try:
            found: object = _fingerprint(file)
        except OSError as error:
            found = error
        if found != expected:
            raise CheckpointError(f"{file}: damaged: expected {expected}, found {found}")
    return manifest


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _fingerprint(path: Path) -> dict[str, int]:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = crc32c.crc32c(chunk, checksum)
    return {"bytes": path.stat().st_size, "crc32c": checksum}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; one already there (of a step that was done again) goes after."""
    aside = final.with_name(f"{final.name}.replaced.part")
    if final.exists():
        os.replace(final, aside)
    os.replace(new, final)
    shutil.rmtree(aside, ignore_errors=True)
