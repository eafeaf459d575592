"""Rectified flow: noise levels, shift, dropout and what can be said without text."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from scalewright.data.sample import Sample
from scalewright.model.packed import patchify
from scalewright.model.shape import ModelConfig
from scalewright.objective.baseline import linear_text_free_loss
from scalewright.objective.flow import (
    FlowConfig,
    NoisedPack,
    evaluation_pack,
    keyed_generator,
    noise_level,
    shifted,
    squared_error,
    stratified_levels,
    training_pack,
)

MODEL = ModelConfig(text_dim=5, latent_channels=3)
PATCH = MODEL.patch


def clip(index: int, frames: int = 1, scale: float = 1.0) -> Sample:
    generator = torch.Generator().manual_seed(index)
    latent = scale * torch.randn(frames, 3, 4, 4, generator=generator)
    return Sample(index, latent, torch.randn(2 + index % 3, 5, generator=generator))


NULL = torch.zeros(1, 5)


def test_noise_levels_are_logit_normal() -> None:
    config = FlowConfig(logit_mean=0.5, logit_std=0.8)
    levels = [noise_level(config, keyed_generator(index), 16) for index in range(2000)]
    logits = [math.log(t / (1 - t)) for t in levels]
    assert kstest(logits, norm(0.5, 0.8).cdf).pvalue > 0.01


@given(st.floats(0, 1), st.integers(1, 10**6), st.integers(1, 10**6))
def test_shift_keeps_the_ends_and_the_order(t: float, tokens: int, base: int) -> None:
    config = FlowConfig(shift_tokens=base)
    moved = shifted(t, config, tokens)
    assert 0 <= moved <= 1
    assert shifted(0.0, config, tokens) == 0
    assert shifted(1.0, config, tokens) == 1
    assert shifted(t, config, base) == pytest.approx(t)
    # More tokens, more noise; and Esser et al.'s other form of the same.
    assert moved >= t - 1e-12 if tokens >= base else moved <= t + 1e-12
    if 0 < t < 1:
        a = math.sqrt(tokens / base)
        assert moved == pytest.approx(a / (a + 1 / t - 1))


def test_strata_are_the_middles_of_equal_shares() -> None:
    config = FlowConfig(logit_mean=0.0, logit_std=1.0)
    levels = stratified_levels(config, 4)
    shares = [norm.cdf(math.log(t / (1 - t))) for t in levels]
    assert shares == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_a_clip_is_noised_alike_wherever_and_with_whom_it_is_packed() -> None:
    config = FlowConfig(text_dropout=0.5)
    together = training_pack([clip(0), clip(1)], NULL, config, MODEL, seed=1, step=3)
    alone = training_pack([clip(1)], NULL, config, MODEL, seed=1, step=3)
    assert torch.equal(together.batch.visual[4:], alone.batch.visual)
    assert torch.equal(together.target[4:], alone.target)
    assert together.batch.noise_level[1] == alone.batch.noise_level[0]
    for other in ({"seed": 2, "step": 3}, {"seed": 1, "step": 4}):
        moved = training_pack([clip(1)], NULL, config, MODEL, **other)
        assert not torch.equal(moved.target, alone.target)


def test_noised_and_target_belong_together() -> None:
    pack = training_pack([clip(2, frames=2)], NULL, FlowConfig(), MODEL, seed=0, step=0)
    t = pack.batch.noise_level[0].item()
    clean = patchify(clip(2, frames=2).latent, PATCH)
    noise = pack.target + clean
    assert torch.allclose(pack.batch.visual, (1 - t) * clean + t * noise, atol=1e-6)
    assert abs(noise.std().item() - 1) < 0.3


def test_text_is_dropped_as_often_as_asked() -> None:
    config = FlowConfig(text_dropout=0.3)
    dropped = sum(
        len(training_pack([clip(5)], NULL, config, MODEL, seed=0, step=step).batch.text) == 1
        for step in range(600)
    )
    assert 0.24 < dropped / 600 < 0.36


def test_linear_baseline_is_what_regression_reaches() -> None:
    """Ridge-free least squares on many noised patches comes to the closed form."""
    flow = FlowConfig()
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator)
    patches = torch.randn(4000, 12, generator=generator) @ mixing + 1.0
    clips = [
        Sample(index, p.reshape(1, 3, 2, 2), torch.zeros(1, 5)) for index, p in enumerate(patches)
    ]
    losses = []
    for t in stratified_levels(flow, 16):
        noise = torch.randn(patches.shape, generator=generator)
        x = torch.cat(((1 - t) * patches + t * noise, torch.ones(4000, 1)), 1).double()
        v = (noise - patches).double()
        solved = torch.linalg.lstsq(x, v).solution
        losses.append((x @ solved - v).square().mean().item())
    expected = sum(losses) / len(losses)
    assert linear_text_free_loss(clips, flow, PATCH) == pytest.approx(expected, rel=0.05)


def test_evaluation_tells_the_model_the_scores_that_it_takes() -> None:
    scored = replace(clip(0), scores={"motion": 0.75, "look": 0.5})
    model = replace(MODEL, scores=("motion", "clarity"))
    pack = evaluation_pack([scored], [0.5], model, seed=0)
    assert pack.batch.scores.tolist() == [[0.75, 1.0, 0.0, 0.0]]
    assert evaluation_pack([scored], [0.5], MODEL, seed=0).batch.scores.numel() == 0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 5))
def test_evaluation_noise_is_the_same_every_time(level: float, index: int) -> None:
    first, second = (evaluation_pack([clip(index)], [level], MODEL, seed=0) for _ in range(2))
    assert torch.equal(first.target, second.target)
    assert first.batch.noise_level[0] == pytest.approx(level)


def video_pack(clean: float, model: ModelConfig = MODEL) -> NoisedPack:
    config = FlowConfig(image_to_video=1.0, clean_first_frame=clean)
    clips = [clip(0), clip(1, frames=3)]
    return training_pack(clips, NULL, config, model, seed=0, step=0)


def test_a_first_frame_is_noised_by_its_own_level() -> None:
    plain = training_pack([clip(0), clip(1, frames=3)], NULL, FlowConfig(), MODEL, seed=0, step=0)
    own = video_pack(clean=0.0)
    assert len(own.batch.noise_level) == 3  # the picture's, the first frame's, the others'
    assert own.batch.noise_level[[0, 2]].tolist() == plain.batch.noise_level.tolist()
    level = own.batch.noise_level[1].item()
    frame = slice(4, 8)  # after the picture's four tokens
    clean = patchify(clip(1, frames=3).latent[:1], PATCH)
    mixed = (1 - level) * clean + level * (own.target[frame] + clean)
    assert torch.allclose(own.batch.visual[frame], mixed, atol=1e-6)
    rest = [0, 1, 2, 3, *range(8, 16)]
    assert torch.equal(own.batch.visual[rest], plain.batch.visual[rest])
    assert own.weight is None


def test_a_clean_first_frame_is_given_and_not_predicted() -> None:
    pack = video_pack(clean=1.0)
    assert pack.batch.noise_level[1] == 0
    assert torch.equal(pack.batch.visual[4:8], patchify(clip(1, frames=3).latent[:1], PATCH))
    assert pack.weight is not None
    assert pack.weight.tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 8
    assert pack.elements == 12 * pack.target.shape[1]
    wrong = torch.zeros_like(pack.target)
    wrong[4:8] = 100.0
    assert squared_error(pack.target + wrong, pack) == 0


def test_pictures_have_no_first_frame_of_their_own() -> None:
    config = FlowConfig(image_to_video=1.0)
    pack = training_pack([clip(0)], NULL, config, MODEL, seed=0, step=0)
    assert len(pack.batch.noise_level) == 1
