"""Sampling: order of the solvers, guidance, what is given, the same result in any company."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scalewright.errors import ConfigError
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, param_rules
from scalewright.model.packed import PackedBatch, patchify
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig, keyed_generator
from scalewright.objective.sampler import (
    Prompt,
    SamplerConfig,
    Velocity,
    noise_grid,
    sample,
)
from scalewright.objective.solvers import SOLVERS, Latents, Levels, SolverName, evaluations

CPU = torch.device("cpu")
MODEL = ModelConfig(
    width=32, depth=2, head_dim=16, rope_axes=(4, 6, 6), time_dim=16, text_dim=8,
    latent_channels=4, time_freq_dim=32, mup_base_width=16, scores=("motion",),
)  # fmt: skip
FLOW = FlowConfig(shift_tokens=4)
NULL = torch.zeros(1, 8)
SHAPES = ((1, 4, 4, 4), (3, 4, 4, 8), (2, 4, 8, 4))


@pytest.fixture(scope="module")
def model() -> MMDiT:
    """A model in which everything acts."""
    made = meta_model(MODEL)
    materialise(made, param_rules(MODEL), seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def velocity_of(model: MMDiT) -> Velocity:
    def velocity(batch: PackedBatch) -> Tensor:
        found: Tensor = model(batch).velocity
        return found

    return velocity


def prompt(index: int = 1, **changes: object) -> Prompt:
    generator = torch.Generator().manual_seed(index)
    text = torch.randn(1 + index, 8, generator=generator)
    return replace(Prompt(text, SHAPES[index % 3], seed=index), **changes)  # type: ignore[arg-type]


def made_by(velocity: Velocity, prompts: Sequence[Prompt], **config: object) -> Latents:
    sampler = SamplerConfig(**{"steps": 3, **config})  # type: ignore[arg-type]
    with torch.no_grad():
        return sample(velocity, prompts, NULL, FLOW, MODEL, sampler, device=CPU)


# Data N(mean, s²): x_t is N((1 - t)·mean, (1 - t)²·s² + t²), and the flow scales its deviation.
MEAN, S = 0.7, 0.4


def deviation(t: float) -> float:
    return math.sqrt((1 - t) ** 2 * S**2 + t**2)


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    return -MEAN + (x - (1 - t) * MEAN) * (t - (1 - t) * S**2) / deviation(t) ** 2


def error(solver: SolverName, steps: int, scale: float) -> float:
    """Largest error at the data end, from noise through levels that are shifted or not."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    grid = [[t * scale / (1 + (scale - 1) * t)] for t in torch.linspace(1, 0, steps + 1).tolist()]

    def field(latents: Latents, levels: Levels) -> Latents:
        return [gaussian_velocity(x, t) for x, t in zip(latents, levels, strict=True)]

    (found,) = SOLVERS[solver](field, [noise], grid)
    return (found - (MEAN + S * noise)).abs().max().item()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("adams", 2), ("heun", 2)])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(
    solver: SolverName, order: int, scale: float
) -> None:
    errors = [error(solver, steps, scale) for steps in (512, 1024, 2048)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_those_made(solver: SolverName) -> None:
    calls: list[float] = []

    def field(latents: Latents, levels: Levels) -> Latents:
        calls.extend(levels)
        return latents

    SOLVERS[solver](field, [torch.ones(1)], [[1.0], [0.6], [0.3], [0.0]])
    assert len(calls) == evaluations(solver, 3)
    assert min(calls) > 0  # no model was trained at level 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(0.2, 5), st.sampled_from(sorted(SOLVERS)))
def test_straight_flows_end_where_they_should(
    steps: int, shift_scale: float, solver: SolverName
) -> None:
    """Whatever the steps: towards a single point the velocity of a trajectory is constant."""
    prompts = [prompt(0), prompt(1)]
    sampler = SamplerConfig(steps=steps, shift_scale=shift_scale)
    grid = noise_grid(prompts, FLOW, MODEL, sampler)
    assert grid[0] == pytest.approx([1, 1])
    assert grid[-1] == [0, 0]
    for now, after in pairwise(grid):
        assert all(a > b for a, b in zip(now, after, strict=True))

    def field(latents: Latents, levels: Levels) -> Latents:
        return [(x - 0.3) / t for x, t in zip(latents, levels, strict=True)]

    start = [torch.ones(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    for latent in SOLVERS[solver](field, start, grid):
        assert torch.allclose(latent, torch.full_like(latent, 0.3), atol=1e-8)


def test_the_scale_of_the_shift_is_a_shift_by_more_tokens() -> None:
    doubled = noise_grid([prompt()], FLOW, MODEL, SamplerConfig(shift_scale=2))
    quarter = noise_grid([prompt()], replace(FLOW, shift_tokens=1), MODEL, SamplerConfig())
    assert [row[0] for row in doubled] == pytest.approx([row[0] for row in quarter])


def test_levels_are_those_of_training() -> None:
    """A model is asked at the shifted level of each clip, first and last of the batch alike."""
    seen: list[list[float]] = []

    def velocity(batch: PackedBatch) -> Tensor:
        seen.append(batch.noise_level.tolist())
        return torch.zeros_like(batch.visual)

    made_by(velocity, [prompt(0), prompt(1)], steps=2, solver="euler")
    # 4 tokens: unshifted; 24 tokens: a = sqrt(6).
    a = math.sqrt(6)
    assert seen[1] == pytest.approx([0.5, a / (a + 1)] * 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_packed_or_alone_and_every_time(model: MMDiT, solver: SolverName) -> None:
    first = torch.randn(1, 4, 8, 4, generator=torch.Generator().manual_seed(3))
    prompts = [
        prompt(0),
        prompt(1, negative=torch.ones(3, 8), scores={"motion": 0.5}),
        prompt(2, first_frame=first),
    ]
    velocity = velocity_of(model)
    together = made_by(velocity, prompts, solver=solver)
    again = made_by(velocity, prompts, solver=solver)
    for found, repeated, each in zip(together, again, prompts, strict=True):
        (alone,) = made_by(velocity, [each], solver=solver)
        assert (found - alone).abs().max() < 1e-5
        assert torch.equal(found, repeated)
        (other,) = made_by(velocity, [replace(each, seed=99)], solver=solver)
        assert (found - other).abs().max() > 0.1


def test_guidance_moves_away_from_the_unconditional(model: MMDiT) -> None:
    """One Euler step: what is made is linear in the guidance."""
    made = {
        g: made_by(velocity_of(model), [prompt()], steps=1, guidance=g)[0]
        for g in (0.0, 1.0, 2.0, 5.0)
    }
    (without,) = made_by(velocity_of(model), [prompt(text=NULL)], steps=1, guidance=1.0)
    assert torch.allclose(made[0.0], without, atol=1e-5)
    along = made[1.0] - made[0.0]
    assert along.abs().max() > 1e-3
    for g in (2.0, 5.0):
        assert torch.allclose(made[g], made[0.0] + g * along, atol=1e-4)


def test_no_guidance_costs_half(model: MMDiT) -> None:
    sizes: list[int] = []

    def velocity(batch: PackedBatch) -> Tensor:
        sizes.append(len(batch.visual))
        return torch.zeros_like(batch.visual)

    for guidance in (1.0, 3.0):
        made_by(velocity, [prompt()], steps=1, guidance=guidance)
    assert sizes[1] == 2 * sizes[0]


def test_a_negative_prompt_takes_the_place_of_the_null_text(model: MMDiT) -> None:
    velocity, away = velocity_of(model), torch.ones(4, 8)
    plain, negative, null = (
        made_by(velocity, [prompt(negative=text)], guidance=3.0)[0] for text in (None, away, NULL)
    )
    assert torch.equal(plain, null)
    assert (plain - negative).abs().max() > 1e-3
    # Away from the prompt itself is nowhere: guidance has no effect.
    itself = made_by(velocity, [prompt(negative=prompt().text)], guidance=7.0)[0]
    assert torch.allclose(itself, made_by(velocity, [prompt()], guidance=1.0)[0], atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_given_first_frame_stays_and_is_followed(model: MMDiT, solver: SolverName) -> None:
    levels: list[list[float]] = []

    def velocity(batch: PackedBatch) -> Tensor:
        levels.append(batch.noise_level.tolist())
        return velocity_of(model)(batch)

    frames = [
        torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)
    ]
    one, other = (
        made_by(velocity, [prompt(first_frame=frame)], solver=solver)[0] for frame in frames
    )
    assert torch.equal(one[:1], frames[0])
    assert torch.equal(other[:1], frames[1])
    assert (one[1:] - other[1:]).abs().max() > 1e-3
    assert all(row[0] == row[2] == 0 and row[1] == row[3] > 0 for row in levels)


@pytest.mark.parametrize("shift", [None, 4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_known_flow_is_followed_to_its_end(solver: SolverName, shift: int | None) -> None:
    """With the true velocity of a single point the flow of each clip ends in its point."""
    points = [torch.full((1, 4, 4, 4), 0.7), torch.full((2, 4, 4, 2), -0.2)]
    prompts = [Prompt(torch.ones(2, 8), tuple(x.shape), 9) for x in points]  # type: ignore[arg-type]

    def velocity(batch: PackedBatch) -> Tensor:
        tokens = [patchify(x, MODEL.patch) for x in points]
        t = batch.noise_level.repeat_interleave(torch.tensor([len(x) for x in tokens] * 2))
        return ((batch.visual - torch.cat(tokens * 2)) / t[:, None]).float()

    sampler, flow = SamplerConfig(steps=7, solver=solver), FlowConfig(shift_tokens=shift)
    made = sample(velocity, prompts, NULL, flow, MODEL, sampler, device=CPU)
    for latent, x in zip(made, points, strict=True):
        assert torch.allclose(latent, x, atol=1e-5)


def test_scores_reach_the_model(model: MMDiT) -> None:
    unknown, low, high = (
        made_by(velocity_of(model), [prompt(scores=scores)])[0]
        for scores in (None, {"motion": 0.0}, {"motion": 1.0})
    )
    assert (low - high).abs().max() > 1e-4
    assert (low - unknown).abs().max() > 1e-4


def test_noise_is_keyed_by_the_seed() -> None:
    def still(batch: PackedBatch) -> Tensor:
        return torch.zeros_like(batch.visual)

    (made,) = made_by(still, [prompt(seed=8)])
    assert torch.equal(made, torch.randn(SHAPES[1], generator=keyed_generator("sample", 8)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps = 0; at least 1"),
        ({"guidance": -1.0}, "guidance = -1.0; at least 0"),
        ({"shift_scale": 0.0}, "shift_scale = 0.0; it must be positive"),
        ({"solver": "dopri"}, "solver = 'dopri'; known: euler, heun, adams"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SamplerConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": {"clarity": 1.0}}, "'clarity'.*known: motion"),
        ({"first_frame": torch.zeros(1, 4, 8, 8)}, r"\(1, 4, 8, 8\).*\(1, 4, 4, 8\)"),
        ({"first_frame": torch.zeros(1, 4, 4, 8), "shape": (1, 4, 4, 8)}, "5 frames or more"),
        ({"shape": (3, 4, 5, 8)}, "height = 5"),
    ],
)
def test_prompts_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made_by(lambda batch: batch.visual, [prompt(**changes)])


def test_a_first_frame_needs_a_level_of_its_own() -> None:
    thick = replace(MODEL, patch=(2, 2, 2))
    wanted = prompt(shape=(2, 4, 4, 8), first_frame=torch.zeros(1, 4, 4, 8))
    with pytest.raises(ConfigError, match="2 latent frames at a time"):
        sample(lambda b: b.visual, [wanted], NULL, FLOW, thick, SamplerConfig(), device=CPU)
