"""Where a model lives: one process or many, sharded with FSDP2, and the sums across ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from scalewright.errors import ConfigError
from scalewright.model.attention import attention_for
from scalewright.model.mmdit import Block, MMDiT
from scalewright.model.mup import ParamRule, materialise, meta_model
from scalewright.train.optimizer import freeze
from scalewright.train.run import RunConfig
from scalewright.train.runners import choose_runner


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Without a process group it is alone and unsharded; with one, even of size 1, it shards, so
    that a run computes the same at every number of workers. Weights are sharded over `shard_size`
    ranks next to each other, and every such group of ranks holds all of them.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool
    shard_size: int

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def current_world(device: torch.device, shard_size: int | None = None) -> World:
    """This process's place; `shard_size` None shards over all ranks."""
    if not dist.is_initialized():
        return World(0, 1, device, sharded=False, shard_size=1)
    rank, size = dist.get_rank(), dist.get_world_size()
    shard_size = min(shard_size or size, size)
    if size % shard_size:
        raise ConfigError(
            f"parallel.shard_size = {shard_size} does not divide the {size} workers there are; "
            f"set one of {[n for n in range(1, size + 1) if size % n == 0]}, or leave it out"
        )
    return World(rank, size, device, sharded=True, shard_size=shard_size)


def build_model(config: RunConfig, rules: dict[str, ParamRule], world: World) -> MMDiT:
    """The model with its initial weights: whole in one process, else sharded over all ranks.

    Every block is its own FSDP unit, so that two blocks at a time are gathered. Recomputation and
    compilation stand inside the unit: they see gathered weights.
    """
    compute = getattr(torch, config.parallel.compute)
    attention, _ = attention_for(world.device, compute)
    model = meta_model(config.model, attention)
    for block in model.blocks:
        choose_runner(cast(Block, block), config.parallel)
    freeze(model, config.optimizer.freeze)
    if world.sharded:
        _shard(model, world, compute)
    materialise(model, rules, config.seed, world.device)
    return model


def _shard(model: MMDiT, world: World, compute: torch.dtype) -> None:
    # Inputs stay as they are: noise levels and rotary tables must not be rounded to bf16.
    policy = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    # By default the mesh would take any accelerator it sees, also under CPU workers.
    groups = world.size // world.shard_size
    mesh = init_device_mesh(
        world.device.type,
        (world.size,) if groups == 1 else (groups, world.shard_size),
        mesh_dim_names=("shard",) if groups == 1 else ("replicate", "shard"),
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def set_gradient_sync(model: nn.Module, enabled: bool) -> None:
    """Reduce gradients across ranks after this backward pass, or only add them up locally."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a possibly sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor], world: World) -> Tensor:
    """Norm over all `tensors` and ranks: local sums of squares and one reduction."""
    norms = torch._foreach_norm([local(tensor) for tensor in tensors])
    # Every group of `shard_size` ranks holds the whole, and all of them are summed.
    groups = world.size // world.shard_size
    return (world.sum(torch.stack(norms).double().square().sum()) / groups).sqrt()


def autocast(config: RunConfig, world: World) -> Any:
    """The compute type of a single process, where no FSDP policy casts the weights."""
    compute = getattr(torch, config.parallel.compute)
    return torch.autocast(
        world.device.type, dtype=compute, enabled=not world.sharded and compute != torch.float32
    )
