"""muP by parameter name: role, initial spread, and every factor that training or the model applies.

`mup` tells, from models on the meta device, which dimensions grow with the width. All that
training uses is the table made of it here: mup's own tensor attributes are lost by
`fully_shard`, `to_empty` and `deepcopy`. Rules over width: Tensor Programs V, table 8 (Adam), with
zero output and adaLN-Zero modulation; proved for MMDiT in arXiv 2505.15270. Over depth: CompleteP
with alpha = 1 (arXiv 2505.01618, table 1). `python -m scalewright.model.mup check` measures both.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from mup.infshape import InfShape
from mup.shape import set_base_shapes
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from scalewright.model.attention import Attention, segment_attention
from scalewright.model.mmdit import Block, MMDiT
from scalewright.model.shape import ModelConfig

Role = Literal["input", "hidden", "output", "vector", "finite"]

# adaLN-Zero and muP's zero readout: these start at zero, so that every block starts as identity.
_ZERO = ("visual_modulation", "text_modulation", "final_modulation", "visual_out", "score_in")


@dataclass(frozen=True)
class ParamRule:
    """What is done to one tensor, as factors on the base model's numbers.

    `lr_mult`, `wd_mult`, `eps_mult`: on learning rate, weight decay and Adam's epsilon.
    `forward_mult`: what the model multiplies the output of the tensor's layer by.
    """

    role: Role
    init_std: float
    lr_mult: float
    wd_mult: float
    eps_mult: float = 1.0
    forward_mult: float = 1.0


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
    return {name: _rule(name, parameter, config) for name, parameter in model.named_parameters()}


def _rule(name: str, parameter: nn.Parameter, config: ModelConfig) -> ParamRule:
    infshape: InfShape = getattr(parameter, "infshape")  # noqa: B009  set by mup, unknown to types
    infinite = tuple(dimension.isinf() for dimension in infshape)
    n, layer = config.width_mult, name.split(".")[-2]
    eps = _eps_mult(name, any(infinite), config)
    forward = {
        "visual_out": 1 / n,
        "attention_out": config.branch_multiplier,
        "ff_out": config.branch_multiplier,
    }.get(layer, 1.0)
    if parameter.ndim == 1:
        # The output's bias is divided by n with the rest, though it has no fan-in to add up over.
        return ParamRule("vector", 0.0, n if layer == "visual_out" else 1.0, 0.0, eps, forward)
    std = 0.0 if layer in _ZERO else parameter.shape[1] ** -0.5
    match infinite:
        case (True, True):
            return ParamRule("hidden", std, 1 / n, n, eps, forward)
        case (True, False):
            return ParamRule("input", std, 1.0, 1.0, eps, forward)
        case (False, True):
            return ParamRule("output", std, 1.0, 1.0, eps, forward)
        case _:
            return ParamRule("finite", std, 1.0, 1.0, eps, forward)


def _eps_mult(name: str, grows: bool, config: ModelConfig) -> float:
    """How the tensor's gradient shrinks with the size of the model; epsilon must follow it.

    A number of a growing tensor, or behind the output multiplier, has 1/n of the gradient, and one
    inside a branch the branch's share; tensors that all heads or all blocks read add up again.
    """
    width = 1 / config.width_mult if grows or name.startswith("visual_out.") else 1.0
    return width * (config.branch_multiplier if name.startswith("blocks.") else 1.0)


def set_multipliers(model: MMDiT, rules: dict[str, ParamRule]) -> None:
    """Let the model multiply as the rules say instead of as its config does."""
    model.output_multiplier = rules["visual_out.weight"].forward_mult
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)  # a ModuleList does not say what it holds
        block.branch_multiplier = rules[f"blocks.{index}.attention_out.weight"].forward_mult


def optimizer_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    rules: dict[str, ParamRule],
    *,
    lr: float,
    weight_decay: float,
    eps: float,
) -> list[dict[str, Any]]:
    """Groups for AdamW of the named parameters, one for each set of factors, in their order.

    A group carries `lr_mult`, so that a schedule can scale all groups relative to the base rate.
    """
    members: dict[tuple[float, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters:
        rule = rules[name]
        members[rule.lr_mult, rule.wd_mult, rule.eps_mult].append(parameter)
    return [
        {
            "params": members[lr_mult, wd_mult, eps_mult],
            "lr": lr * lr_mult,
            "lr_mult": lr_mult,
            "weight_decay": weight_decay * wd_mult,
            "eps": eps * eps_mult,
        }
        for lr_mult, wd_mult, eps_mult in sorted(members)
    ]


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


if __name__ == "__main__":
    from scalewright.command import run
    from scalewright.model.mup_command import mup

    run(mup)
