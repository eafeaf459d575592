"""Where a model lives: one process or many, sharded with FSDP2, and the sums across ranks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from scalewright.model.attention import attention_for
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import ParamRule, materialise, meta_model
from scalewright.train.run import RunConfig


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Without a process group it is alone and unsharded; with one, even of size 1, it shards, so
    that a run computes the same at every number of workers.
    """

    rank: int
    size: int
    device: torch.device
    sharded: bool

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def current_world(device: torch.device) -> World:
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device, sharded=True)
    return World(0, 1, device, sharded=False)


def build_model(config: RunConfig, rules: dict[str, ParamRule], world: World) -> MMDiT:
    """The model with its initial weights: whole in one process, else sharded over all ranks.

    Every block is its own FSDP unit, so that two blocks at a time are gathered. Recomputation
    stands inside the unit, so that it sees gathered weights.
    """
    compute = getattr(torch, config.parallel.compute)
    attention, _ = attention_for(world.device, compute)
    model = meta_model(
        config.model,
        attention,
        activation_checkpointing=config.parallel.activation_checkpointing,
    )
    if world.sharded:
        # Inputs stay as they are: noise levels and rotary tables must not be rounded to bf16.
        policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # By default the mesh would take any accelerator it sees, also under CPU workers.
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    materialise(model, rules, config.seed, world.device)
    return model


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
    return world.sum(torch.stack(norms).double().square().sum()).sqrt()


def autocast(config: RunConfig, world: World) -> Any:
    """The compute type of a single process, where no FSDP policy casts the weights."""
    compute = getattr(torch, config.parallel.compute)
    return torch.autocast(
        world.device.type, dtype=compute, enabled=not world.sharded and compute != torch.float32
    )
