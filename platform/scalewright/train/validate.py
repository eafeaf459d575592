"""Validation loss: the same clips, noise and stratified noise levels at every evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scalewright.data.packing import plan_epoch
from scalewright.data.sample import Sample
from scalewright.model.shape import ClipTokens, ModelConfig, visual_tokens
from scalewright.objective.flow import (
    FlowConfig,
    evaluation_pack,
    shifted,
    stratified_levels,
)
from scalewright.train.parallel import World


@dataclass(frozen=True)
class Validation:
    """Clips, each at its levels, laid out in packs once; `loss` evaluates a model on them."""

    packs: tuple[tuple[tuple[Sample, float], ...], ...]
    model: ModelConfig
    seed: int

    def loss(self, network: nn.Module, world: World, autocast: torch.autocast) -> dict[str, float]:
        """Mean squared error of the velocity, over all clips and for pictures and videos apart.

        Keys `all`, `picture`, `video`; a kind without clips is left out. Every rank must call it.
        """
        totals = torch.zeros(2, 2, device=world.device, dtype=torch.float64)
        rounds = -(-len(self.packs) // world.size)
        with torch.no_grad(), autocast:
            for index in range(rounds):
                place = index * world.size + world.rank
                # A rank without a pack still takes part in the gathering of weights.
                counted = place < len(self.packs)
                pack = self.packs[place if counted else 0]
                totals += counted * self._errors(network, pack, world)
        world.sum(totals)
        return _means(totals)

    def _errors(
        self, network: nn.Module, pack: Sequence[tuple[Sample, float]], world: World
    ) -> torch.Tensor:
        samples, levels = [item[0] for item in pack], [item[1] for item in pack]
        noised = evaluation_pack(samples, levels, self.model, seed=self.seed).to(world.device)
        errors = (network(noised.batch).velocity.float() - noised.target.float()).square().sum(1)
        sizes = [sample.latent.numel() // noised.target.shape[1] for sample in samples]
        totals = torch.zeros(2, 2, device=world.device, dtype=torch.float64)
        for sample, error in zip(samples, errors.split(sizes), strict=True):
            kind = int(sample.latent.shape[0] > 1)
            totals[kind, 0] += error.double().sum()
            totals[kind, 1] += sample.latent.numel()
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
    pairs, tokens = [], []
    for sample in samples:
        T, _, H, W = sample.latent.shape
        count = visual_tokens(model, T, H, W)
        for level in stratified_levels(flow, levels):
            pairs.append((sample, shifted(level, flow, count)))
            tokens.append(ClipTokens(count, len(sample.text)))
    plan = plan_epoch(tokens, pack_tokens, seed=seed, epoch=0)
    packs = tuple(tuple(pairs[index] for index in pack) for pack in plan)
    return Validation(packs, model, seed)


def _means(totals: torch.Tensor) -> dict[str, float]:
    (picture, pictures), (video, videos) = totals.tolist()
    means: Mapping[str, tuple[float, float]] = {
        "all": (picture + video, pictures + videos),
        "picture": (picture, pictures),
        "video": (video, videos),
    }
    return {kind: error / count for kind, (error, count) in means.items() if count}
