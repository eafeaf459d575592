"""Latents from a checkpoint: made by one process, or by several that share out the model."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from scalewright.errors import ConfigError
from scalewright.model.attention import attention_for
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import meta_model
from scalewright.model.packed import PackedBatch
from scalewright.model.tensor_parallel import check_ranks, parallelise
from scalewright.objective.sampler import Prompt, SamplerConfig, check_prompt, sample
from scalewright.train.checkpoint import load_weights
from scalewright.train.run import RunConfig

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Request:
    """What to make of a checkpoint, and where: in bf16 on CUDA, in fp32 on the CPU.

    `averaged` takes the average of its weights, if it has one.
    """

    checkpoint: Path
    config: RunConfig
    null_text: Tensor
    prompts: tuple[Prompt, ...]
    sampler: SamplerConfig
    device: DeviceType
    averaged: bool = True


def generate(request: Request, ranks: int) -> list[Tensor]:
    """A latent (T, C, H, W) on the CPU for every prompt, with the model over `ranks` processes.

    Under torchrun its processes are the ranks, and each of them must call this; otherwise they are
    started here. Noise is keyed and every rank advances the same latents, so the number of ranks
    changes only how matrix products round.
    """
    check_request(request, ranks)
    if launched_ranks() is not None:
        return _join_launched(request)
    if ranks == 1:
        return _make(request, _device(request.device, 0))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latents.safetensors"
        mp.spawn(_join, (ranks, Path(folder) / "meeting", request, out), nprocs=ranks)
        latents = load_file(out)
    return [latents[str(index)] for index in range(len(latents))]


def check_request(request: Request, ranks: int) -> None:
    """Refuse what cannot be made, before any weight is read."""
    for prompt in request.prompts:
        check_prompt(prompt, request.config.model)
    check_ranks(request.config.model, ranks)
    launched = launched_ranks()
    if launched not in (None, ranks):
        raise ConfigError(
            f"tensor parallel over {ranks} ranks, but torchrun started {launched}; give one "
            f"number to both"
        )
    gpus = torch.cuda.device_count()
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else ranks
    if request.device == "cuda" and here > gpus:
        raise ConfigError(
            f"{here} ranks on this machine, which has {gpus} GPUs; use fewer ranks, more machines "
            f"with torchrun, or the CPU"
        )


def launched_ranks() -> int | None:
    """Processes that torchrun started together with this one; None without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else None


def launched_rank() -> int:
    """This process's rank under torchrun; 0 without it."""
    return 0 if launched_ranks() is None else int(os.environ["RANK"])


def _join_launched(request: Request) -> list[Tensor]:
    device = _device(request.device, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(_backend(device))
    try:
        return _make(request, device)
    finally:
        dist.destroy_process_group()


def _join(rank: int, ranks: int, meeting: Path, request: Request, out: Path) -> None:
    device = _device(request.device, rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    dist.init_process_group(
        _backend(device), init_method=f"file://{meeting}", rank=rank, world_size=ranks
    )
    latents = _make(request, device)
    if rank == 0:
        save_file({str(index): latent for index, latent in enumerate(latents)}, out)
    dist.barrier()  # gloo takes a peer that leaves early for one that died
    dist.destroy_process_group()
    leave()


def leave() -> NoReturn:
    """End a spawned rank whose work is done, without what Python does at its end.

    Threads of gloo live on after their group; one that lets go of a tensor while Python ends
    aborts the process, and so would fail a rank that has done its work.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _make(request: Request, device: torch.device) -> list[Tensor]:
    model = _model(request, device)

    def velocity(batch: PackedBatch) -> Tensor:
        found: Tensor = model(batch).velocity
        return found

    with torch.no_grad():
        return sample(
            velocity,
            request.prompts,
            request.null_text,
            request.config.flow,
            request.config.model,
            request.sampler,
            device=device,
        )


def _model(request: Request, device: torch.device) -> MMDiT:
    """The trained model on `device`, this rank's share of it where there are several.

    Weights are read and cut on the CPU: a model may be larger than the memory of one GPU.
    """
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention, _ = attention_for(device, compute)
    model = meta_model(request.config.model, attention).to_empty(device=torch.device("cpu"))
    load_weights(request.checkpoint, model, averaged=request.averaged)
    model = model.to(compute)
    if dist.is_initialized():
        parallelise(model, init_device_mesh(device.type, (dist.get_world_size(),)))
    return model.to(device)


def _device(kind: DeviceType, index: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"
