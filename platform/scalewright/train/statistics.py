"""Statistics of a step over all packs and ranks: activations, attention logits, parameters.

What the passes returned is put together on the device and reduced in two collectives, a maximum
and a sum; it leaves the device once, in `as_metrics`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scalewright.model.mmdit import Seen
from scalewright.model.statistics import BINS, BOUNDS, SITES
from scalewright.train.parallel import World, local

NORMS = ("weight", "gradient", "update")


@dataclass(frozen=True)
class Activity:
    """What blocks tell: `low`, `high`, `squares` and `count` (blocks, sites, BINS), and
    `logits` (blocks, BINS, 2).
    """

    low: Tensor
    high: Tensor
    squares: Tensor
    count: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Statistics:
    """A step's activity, and per kind of parameter the sums of squares (kinds, 3) of `NORMS`."""

    activity: Activity
    parameters: Tensor
    kinds: tuple[str, ...]


def activity_of(passes: Sequence[tuple[Seen, ...]]) -> Activity:
    """What all passes of this rank tell together, block by block."""
    sites = torch.stack([torch.stack([_known(block.sites) for block in seen]) for seen in passes])
    logits = torch.stack([torch.stack([_known(block.logits) for block in seen]) for seen in passes])
    low, high, squares, count = sites.unbind(-1)
    return Activity(low.amin(0), high.amax(0), squares.sum(0), count.sum(0), logits.amax(0))


def kind_of(name: str) -> str:
    """The kind of a parameter: its name without the number of its block."""
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)


def kinds_of(model: nn.Module) -> tuple[tuple[str, ...], Tensor]:
    """Every kind once, and for each trained parameter in order the index of its kind."""
    names = [kind_of(name) for name, p in model.named_parameters() if p.requires_grad]
    kinds = tuple(dict.fromkeys(names))
    return kinds, torch.tensor([kinds.index(name) for name in names])


def squares_by_kind(squares: Tensor, kinds: Tensor, count: int) -> Tensor:
    """Sums of squares of parameters (P,) -> of kinds (count,), in one order on every device."""
    members = torch.nn.functional.one_hot(kinds.to(squares.device), count).double()
    return squares.double() @ members


def squares_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of squares of this rank's part of each tensor, (P,) in fp64."""
    return torch.stack(torch._foreach_norm([local(t) for t in tensors])).double().square()


def adam_updates(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What the last step of AdamW added to each trained parameter, this rank's part.

    From its moments, so that no copy of the weights is kept: (step size) · m̂ / (sqrt(v̂) + eps).
    Weight decay, which is proportional to the weight, is not in it.
    """
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    updates = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        group, state = groups[parameter], optimizer.state[parameter]
        (beta1, beta2), step = group["betas"], state["step"].clamp(min=1)
        first = local(state["exp_avg"]) / (1 - beta1**step)
        second = local(state["exp_avg_sq"]) / (1 - beta2**step)
        updates.append(group["lr"] * first / (second.sqrt() + group["eps"]))
    return updates


def reduce(activity: Activity, parameters: Tensor, world: World) -> tuple[Activity, Tensor]:
    """Both over all ranks, in one maximum and one sum; replicas of a shard count once."""
    extremes = torch.cat(
        (-activity.low.flatten(), activity.high.flatten(), activity.logits.flatten())
    )
    groups = world.size // world.shard_size
    sums = torch.cat(
        (activity.squares.flatten(), activity.count.flatten(), parameters.flatten() / groups)
    )
    if world.size > 1:
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        dist.all_reduce(sums)
    size = activity.low.numel()
    shape = activity.low.shape
    reduced = Activity(
        low=-extremes[:size].view(shape),
        high=extremes[size : 2 * size].view(shape),
        squares=sums[:size].view(shape),
        count=sums[size : 2 * size].view(shape),
        logits=extremes[2 * size :].view(activity.logits.shape),
    )
    return reduced, sums[2 * size :].view(parameters.shape)


def as_metrics(statistics: Statistics) -> dict[str, float]:
    """Named numbers: each site by block, each site by noise level, logits, norms by kind."""
    activity = statistics.activity
    measures = (activity.low, activity.high, activity.squares, activity.count)
    metrics: dict[str, float] = {}
    for index, logits in enumerate(activity.logits.amax(1).tolist()):
        metrics |= _sites(f"block_{index:02d}", *(measure[index] for measure in measures))
        for name, bound in zip(BOUNDS, logits, strict=True):
            metrics[f"attention/block_{index:02d}/{name}"] = bound
    for noise in range(BINS):
        of_noise = [measure[:, :, noise].T for measure in measures]
        if of_noise[-1].sum() > 0:
            metrics |= _sites(f"noise_{noise}", *of_noise)
    norms = statistics.parameters.sqrt().tolist()
    for kind, values in zip(statistics.kinds, norms, strict=True):
        for name, value in zip(NORMS, values, strict=True):
            metrics[f"parameters/{kind}/{name}_norm"] = value
        metrics[f"parameters/{kind}/update_ratio"] = values[2] / values[0] if values[0] else 0.0
    return metrics


def _sites(
    place: str, low: Tensor, high: Tensor, squares: Tensor, count: Tensor
) -> dict[str, float]:
    """Of each site, from (sites, n) measures: least, greatest, norm, root of the mean square."""
    metrics = {}
    total = squares.sum(1)
    named = {
        "min": low.amin(1),
        "max": high.amax(1),
        "norm": total.sqrt(),
        "rms": (total / count.sum(1)).sqrt(),
    }
    for name, values in named.items():
        for site, value in zip(SITES, values.tolist(), strict=True):
            metrics[f"activation/{site}/{place}/{name}"] = value
    return metrics


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the pass was not asked for statistics"
    return tensor


def gains_of(model: nn.Module) -> Tensor:
    """This rank's part of a bound on every attention logit, from the gains of QK-norm alone.

    (blocks, 4): greatest |gain| and |bias| of queries, then of keys. Normalised heads have norm
    sqrt(head_dim), so that |logit| <= sqrt(head_dim)·(gq + bq)·(gk + bk): see `logit_bound`.
    """
    values = []
    for block in model.blocks:  # type: ignore[union-attr]
        for norm in (block.query_norm, block.key_norm):
            for name in ("weight", "bias"):
                tensor = getattr(norm, name, None)
                values.append(None if tensor is None else local(tensor.detach()))
    present = [value for value in values if value is not None]
    tops = iter(torch._foreach_norm([_filled(value) for value in present], float("inf")))
    zero = torch.zeros((), device=present[0].device)
    row = [zero if value is None else next(tops) for value in values]
    return torch.stack(row).view(-1, 4)


def _filled(tensor: Tensor) -> Tensor:
    """A shard may be empty on this rank."""
    return tensor if tensor.numel() else tensor.new_zeros(1)


def logit_bound(gains: Tensor, head_dim: int) -> Tensor:
    """(blocks, 4) of `gains_of`, reduced over ranks -> the bound of each block."""
    query, key = gains[:, 0] + gains[:, 1], gains[:, 2] + gains[:, 3]
    return head_dim**0.5 * query * key
