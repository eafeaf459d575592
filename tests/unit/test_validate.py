"""Validation: which errors are counted where, and the same numbers at any world size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from scalewright.data.sample import Sample
from scalewright.model.mmdit import Prediction
from scalewright.model.packed import PackedBatch, patchify
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig, keyed_generator, shifted, stratified_levels
from scalewright.train.parallel import World
from scalewright.train.validate import Validation, plan_validation

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU, sharded=False, shard_size=1)
MODEL = ModelConfig(text_dim=5, latent_channels=3)
FLOW = FlowConfig(shift_tokens=4)
NO_AUTOCAST = torch.autocast("cpu", enabled=False)


def clips(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(7)
    return [
        Sample(
            index,
            torch.randn(1 + index % 3, 3, 4, 4 + 2 * (index % 2), generator=generator),
            torch.randn(2, 5, generator=generator),
        )
        for index in range(count)
    ]


class Guess(nn.Module):
    """Predicts the noise level of each token as its velocity, whatever the width of a token."""

    def forward(self, batch: PackedBatch) -> Prediction:
        rows = batch.modulation_rows[batch.visual_places]
        level = batch.noise_level[rows].float()
        return Prediction(level[:, None].expand_as(batch.visual), ())


class Peers(World):
    """Rank `rank` of a world whose other ranks report into `others` when it sums."""

    def sum(self, values: Tensor) -> Tensor:
        SEEN.append(values.clone())
        return values


SEEN: list[Tensor] = []


def plan(samples: list[Sample], levels: int = 8, pack_tokens: int = 40) -> Validation:
    return plan_validation(samples, FLOW, MODEL, pack_tokens, levels=levels, seed=3)


def expected(sample: Sample, level: float) -> tuple[float, int]:
    """Sum of squared errors of `Guess` on a clip at a level, and its elements."""
    generator = keyed_generator("evaluate", 3, sample.id, round(level, 9))
    noise = torch.randn(sample.latent.shape, generator=generator)
    target = patchify(noise - sample.latent, MODEL.patch)
    return (level - target).double().square().sum().item(), target.numel()


def test_every_error_is_counted_at_its_level_and_kind() -> None:
    samples = clips(7)
    found = plan(samples).loss(Guess(), ALONE, NO_AUTOCAST)
    sums: dict[str, list[float]] = {}
    for sample in samples:
        frames, _, H, W = sample.latent.shape
        kind = "video" if frames > 1 else "picture"
        for index, t in enumerate(stratified_levels(FLOW, 8)):
            level = shifted(t, FLOW, frames * H * W // 4)
            for name in ("all", kind, f"level_{index}", f"{kind}_level_{index}"):
                total = sums.setdefault(name, [0.0, 0])
                error, count = expected(sample, level)
                total[0], total[1] = total[0] + error, total[1] + count
    assert found == pytest.approx({name: e / n for name, (e, n) in sums.items()}, rel=1e-5)
    assert len(found) == 3 + 3 * 8


def test_a_kind_without_clips_is_left_out() -> None:
    pictures = [replace(clip, latent=clip.latent[:1]) for clip in clips(3)]
    found = plan(pictures, levels=2).loss(Guess(), ALONE, NO_AUTOCAST)
    assert set(found) == {
        "all", "picture", "level_0", "level_1", "picture_level_0", "picture_level_1"
    }  # fmt: skip


def test_packs_hold_every_clip_at_every_level_once() -> None:
    validation = plan(clips(5))
    pairs = [(place.sample.id, place.stratum) for pack in validation.packs for place in pack]
    assert sorted(pairs) == [(clip, level) for clip in range(5) for level in range(8)]
    assert list(validation.levels) == sorted(validation.levels)


@pytest.mark.parametrize("size", [2, 3, 5, 100])
def test_any_world_size_gives_the_same_bits(size: int) -> None:
    """Each rank's part, added up as a reduction would, is what one process finds."""
    validation = plan(clips(5))
    SEEN.clear()
    whole = validation.loss(Guess(), Peers(0, 1, CPU, sharded=True, shard_size=1), NO_AUTOCAST)
    alone = SEEN.pop()
    for rank in range(size):
        world = Peers(rank, size, CPU, sharded=True, shard_size=size)
        validation.loss(Guess(), world, NO_AUTOCAST)
    assert torch.equal(torch.stack(SEEN).sum(0), alone)
    assert torch.equal(torch.stack(SEEN[::-1]).sum(0), alone)
    assert whole == validation.loss(Guess(), ALONE, NO_AUTOCAST)


def test_ranks_make_the_same_number_of_passes() -> None:
    """Weights are gathered from all ranks in every pass, so none may stay away."""
    validation = plan(clips(5))
    size = len(validation.packs) + 1
    passes = []
    for rank in range(size):
        calls = []
        model = Guess()
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        world = Peers(rank, size, CPU, sharded=True, shard_size=size)
        validation.loss(model, world, NO_AUTOCAST)
        passes.append(len(calls))
    assert passes == [1] * size
