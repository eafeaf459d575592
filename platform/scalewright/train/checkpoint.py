"""The state of a run as a sharded checkpoint of tensors, written and read with torch's DCP.

Tensors only, saved by name and resharded on load: any world size reads any other's. Which
checkpoint counts is for `vault.py` to say, when one is saved for `saving.py`.
"""

import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import SavePlan, SavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from scalewright.errors import CheckpointError
from scalewright.train.readback import HashingStream, Written
from scalewright.train.training import Training

# Saving from a single process is what is asked for there (no_dist), not a mistake to warn about.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


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


def size_bytes(state: Mapping[str, Any]) -> int:
    """What the tensors of a state take, those of all ranks together."""
    return sum(
        size_bytes(value) if isinstance(value, Mapping) else value.numel() * value.element_size()
        for value in state.values()
    )


def stager_for(device: torch.device) -> DefaultStager:
    """Copies a state to RAM, which is all that training waits for; again into the same memory."""
    cuda = device.type == "cuda"
    # A real copy is needed while training goes on; pinned and shared memory need CUDA.
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=cuda,
        )
    )


def write_state(staged: Mapping[str, Any], folder: Path, group: Any) -> dict[str, Written]:
    """Write this rank's part of a state; every rank must call it. Returns the files it wrote.

    Raises `CheckpointException` on all ranks when any of them failed. `group` None: no ranks.
    """
    writer = _Writer(folder)
    dcp.save(dict(staged), storage_writer=writer, process_group=group, no_dist=group is None)
    return writer.files.written()


def read_state(training: Training, folder: Path, group: Any) -> None:
    """Set the state of a run to that of a checkpoint; every rank must call it.

    Raises `CheckpointError` on all ranks where it does not fit.
    """
    state = train_state(training)
    try:
        dcp.load(state, checkpoint_id=folder, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # which is no Exception
        raise CheckpointError(f"{folder}: cannot be loaded: {reason_of(error)[0]}") from error
    for moments in training.optimizer.state.values():
        moments["step"].copy_(state["updates"])


def load_weights(path: Path, model: nn.Module, *, averaged: bool = False) -> None:
    """Load a checkpoint's weights alone into an unsharded model; `averaged` ones where asked."""
    weights = _weights(model)
    dcp.load({"model": weights}, checkpoint_id=path, no_dist=True)
    if averaged:
        held = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        average = {name: w for name, w in weights.items() if f"average.{name}" in held}
        dcp.load({"average": average}, checkpoint_id=path, no_dist=True)


def reason_of(error: BaseException) -> tuple[str, int | None]:
    """What an error says in one line, by rank where ranks failed, and its errno if it has one."""
    if isinstance(error, CheckpointException):
        causes = {rank: cause for rank, (cause, _) in sorted(error.failures.items())}
        text = "; ".join(f"rank {rank}: {reason_of(cause)[0]}" for rank, cause in causes.items())
        numbers = [number for c in causes.values() if (number := reason_of(c)[1]) is not None]
        return text, numbers[0] if numbers else None
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text, error.errno if isinstance(error, OSError) else None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


class _HashedFiles(FileSystem):
    """Files that know what was written to them, and the first error of the disk."""

    def __init__(self) -> None:
        self._streams: dict[str, HashingStream] = {}

    def written(self) -> dict[str, Written]:
        return {name: stream.written for name, stream in self._streams.items()}

    def error(self) -> OSError | None:
        return next((s.error for s in self._streams.values() if s.error is not None), None)

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        with super().create_stream(path, mode) as file:
            stream = self._streams[Path(path).name] = HashingStream(cast(Any, file))
            yield stream
            stream.flush()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self._streams[Path(new_path).name] = self._streams.pop(Path(path).name)


class _Writer(dcp.FileSystemWriter):
    """Writes one file a rank, and raises what the disk said where torch only says that it broke."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, single_file_per_rank=True)
        self.fs = self.files = _HashedFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise (self.files.error() or error) from None
