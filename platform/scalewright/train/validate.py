"""Validation loss: the same clips, noise and stratified noise levels at every evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalewright.data.packing import Item, Limits, packs_of
from scalewright.data.sample import Sample
from scalewright.model.shape import ModelConfig, visual_tokens
from scalewright.objective.flow import (
    FlowConfig,
    evaluation_pack,
    shifted,
    stratified_levels,
)
from scalewright.train.parallel import World

KINDS = ("picture", "video")


@dataclass(frozen=True)
class Place:
    """A clip at one of the noise levels: the `stratum`-th of them, `level` after the shift."""

    sample: Sample
    stratum: int
    level: float

    @property
    def kind(self) -> int:
        return int(self.sample.latent.shape[0] > 1)


@dataclass(frozen=True)
class Validation:
    """Clips, each at its levels, laid out in packs once; `loss` evaluates a model on them.

    `levels`: the noise levels before the shift, rising; `level_0` is the first of them.
    """

    packs: tuple[tuple[Place, ...], ...]
    levels: tuple[float, ...]
    model: ModelConfig
    seed: int

    def loss(self, network: nn.Module, world: World, autocast: torch.autocast) -> dict[str, float]:
        """Mean squared error of the velocity: over all, for each kind of clip and noise level.

        Keys `all`, `picture`, `video`, and `level_0`, `picture_level_0`, `video_level_0` onwards; a
        kind without clips is left out. The same at any world size, to the last bit where the model
        is. Every rank must call it.
        """
        shape = (len(self.packs), len(KINDS), len(self.levels), 2)
        errors = torch.zeros(shape, device=world.device, dtype=torch.float64)
        rounds = -(-len(self.packs) // world.size)
        with torch.no_grad(), autocast:
            for index in range(rounds):
                place = index * world.size + world.rank
                # A rank without a pack still takes part in the gathering of weights.
                counted = place < len(self.packs)
                found = self._errors(network, self.packs[place if counted else 0], world.device)
                if counted:
                    errors[place] = found
        # Zeros add exactly, and the packs are then summed in one order.
        return _means(world.sum(errors).sum(0))

    def _errors(self, network: nn.Module, pack: Sequence[Place], device: torch.device) -> Tensor:
        """Sum of squared errors and count of elements, (kinds, levels, 2)."""
        samples, levels = [each.sample for each in pack], [each.level for each in pack]
        noised = evaluation_pack(samples, levels, self.model, seed=self.seed).to(device)
        errors = (network(noised.batch).velocity.float() - noised.target.float()).square().sum(1)
        sizes = [sample.latent.numel() // noised.target.shape[1] for sample in samples]
        shape = (len(KINDS), len(self.levels), 2)
        totals = torch.zeros(shape, device=device, dtype=torch.float64)
        for each, error in zip(pack, errors.split(sizes), strict=True):
            totals[each.kind, each.stratum, 0] += error.double().sum()
            totals[each.kind, each.stratum, 1] += each.sample.latent.numel()
        return totals


def plan_validation(
    samples: Sequence[Sample],
    flow: FlowConfig,
    model: ModelConfig,
    pack_tokens: int,
    *,
    levels: int,
    seed: int,
) -> Validation:
    """Every clip at `levels` stratified noise levels of the training distribution."""
    strata = stratified_levels(flow, levels)
    places: list[Place] = []
    items: list[Item] = []
    for sample in samples:
        T, _, H, W = sample.latent.shape
        count = visual_tokens(model, T, H, W)
        for stratum, level in enumerate(strata):
            size = min(count + len(sample.text), pack_tokens)  # a larger one has its own pack
            items.append(Item(len(places), 0, size, 0.0))
            places.append(Place(sample, stratum, shifted(level, flow, count)))
    plan = packs_of(items, Limits(pack_tokens))
    packs = tuple(tuple(places[part.row] for part in pack.parts) for pack in plan)
    return Validation(packs, tuple(strata), model, seed)


def _means(totals: Tensor) -> dict[str, float]:
    """Sums and counts (kinds, levels, 2) -> the means that there are elements for."""
    named = {"all": totals.sum((0, 1))}
    named |= {kind: totals[index].sum(0) for index, kind in enumerate(KINDS)}
    for stratum in range(totals.shape[1]):
        level = f"level_{stratum}"
        named[level] = totals[:, stratum].sum(0)
        named |= {f"{kind}_{level}": totals[i, stratum] for i, kind in enumerate(KINDS)}
    means = ((name, *total.tolist()) for name, total in named.items())
    return {name: error / count for name, error, count in means if count}
