"""muP by parameter name: role, initial spread, and multipliers of learning rate and weight decay.

`mup` tells, from models on the meta device, which dimensions grow with the width. All that
training uses is the table made of it here: mup's own tensor attributes are lost by
`fully_shard`, `to_empty` and `deepcopy`. Rules: Tensor Programs V, table 8 (Adam), with zero
output and adaLN-Zero modulation; proved for MMDiT in arXiv 2505.15270.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from mup.infshape import InfShape
from mup.shape import set_base_shapes
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from scalewright.model.attention import Attention, segment_attention
from scalewright.model.mmdit import MMDiT
from scalewright.model.shape import ModelConfig

Role = Literal["input", "hidden", "output", "vector", "finite"]

# adaLN-Zero and muP's zero readout: these start at zero, so that every block starts as identity.
_ZERO = ("visual_modulation", "text_modulation", "final_modulation", "visual_out", "score_in")


@dataclass(frozen=True)
class ParamRule:
    """What training does to one tensor: factors on the base learning rate and weight decay."""

    role: Role
    init_std: float
    lr_mult: float
    wd_mult: float


def meta_model(config: ModelConfig, attention: Attention = segment_attention) -> MMDiT:
    """The model without memory; `materialise` gives it weights."""
    with torch.device("meta"):
        return MMDiT(config, attention)


def param_rules(config: ModelConfig) -> dict[str, ParamRule]:
    """The rule of every parameter, by name."""
    base = meta_model(replace(config, width=config.mup_base_width))
    delta = meta_model(replace(config, width=2 * config.mup_base_width))
    model = set_base_shapes(
        meta_model(config), base, delta=delta, rescale_params=False, do_assert=False
    )
    return {name: _rule(name, parameter) for name, parameter in model.named_parameters()}


def _rule(name: str, parameter: nn.Parameter) -> ParamRule:
    infshape: InfShape = getattr(parameter, "infshape")  # noqa: B009  set by mup, unknown to types
    infinite = [dimension.isinf() for dimension in infshape]
    if parameter.ndim == 1:
        return ParamRule("vector", 0.0, 1.0, 0.0)
    std = 0.0 if name.split(".")[-2] in _ZERO else parameter.shape[1] ** -0.5
    match infinite:
        case [True, True]:
            n = infshape.width_mult()
            return ParamRule("hidden", std, 1 / n, n)
        case [True, False]:
            return ParamRule("input", std, 1.0, 1.0)
        case [False, True]:
            return ParamRule("output", std, 1.0, 1.0)
        case _:
            return ParamRule("finite", std, 1.0, 1.0)


def materialise(
    model: nn.Module, rules: dict[str, ParamRule], seed: int, device: torch.device
) -> None:
    """Give a meta model (sharded or not) its initial weights, bitwise equal at any world size.

    Each whole tensor is drawn from (seed, name) on the CPU and then cut: a DTensor initialised in
    place from one seed would hold identical shards on every rank.
    """
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            full = initial_value(name, parameter.shape, rules[name], seed)
            parameter.copy_(_like(parameter)(full.to(device)))


def _like(parameter: Tensor) -> Callable[[Tensor], Tensor]:
    if not isinstance(parameter, DTensor):
        return lambda full: full
    mesh, placements = parameter.device_mesh, parameter.placements
    return lambda full: distribute_tensor(full, mesh, placements, src_data_rank=None)


def initial_value(name: str, shape: torch.Size, rule: ParamRule, seed: int) -> Tensor:
    """The whole fp32 tensor `name` starts from; depends on (seed, name, shape) alone."""
    if rule.role == "vector":
        is_gain = name.endswith("norm.weight")
        return torch.ones(shape) if is_gain else torch.zeros(shape)
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
    return torch.randn(shape, generator=generator) * rule.init_std
