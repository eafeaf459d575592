"""A small model learns what can be known of its clips: judged by the exact optimum of the task.

Every clip is the mean of its word plus noise, so that the best possible velocity is known, with
the caption and without it.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from scalewright.data.sample import Sample
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, optimizer_groups, param_rules
from scalewright.model.packed import patchify, unpatchify
from scalewright.model.shape import ModelConfig
from scalewright.objective.flow import FlowConfig, evaluation_pack, squared_error, training_pack
from scalewright.train.optimizer import OptimizerConfig, lr_at, set_lr

CPU = torch.device("cpu")
MODEL = ModelConfig(
    width=64, depth=2, head_dim=16, rope_axes=(4, 6, 6), time_freq_dim=64, time_dim=64,
    text_dim=8, latent_channels=4, mup_base_width=64,
)  # fmt: skip
FLOW = FlowConfig(text_dropout=0.25)
WORDS, SHAPE, SPREAD = 4, (1, 4, 4, 4), 0.3
STEPS, CLIPS = 400, 32
# Where the words can hardly be told apart from the noised clip alone.
LEVELS = (0.8, 0.9, 0.95)

_generator = torch.Generator().manual_seed(11)
MEANS = torch.randn(WORDS, 1, 4, 1, 1, generator=_generator)
TEXTS = torch.randn(WORDS, 2, MODEL.text_dim, generator=_generator)
NULL = torch.zeros(1, MODEL.text_dim)


def clips(first: int, count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(first)
    return [
        Sample(
            first + index,
            MEANS[index % WORDS] + SPREAD * torch.randn(SHAPE, generator=generator),
            TEXTS[index % WORDS],
        )
        for index in range(count)
    ]


def best_velocity(x: Tensor, t: float, words: Sequence[int]) -> Tensor:
    """E[noise - clip | x] for a clip of one of `words`, all as likely: a mixture of Gaussians."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    away = [x - (1 - t) * MEANS[word] for word in words]
    weights = torch.tensor([-part.square().sum() / (2 * variance) for part in away]).softmax(0)
    gain = (t - (1 - t) * SPREAD**2) / variance
    each = [gain * part - MEANS[word] for part, word in zip(away, words, strict=True)]
    return sum((w * v for w, v in zip(weights, each, strict=True)), torch.zeros(SHAPE))


def losses(model: MMDiT, t: float, samples: Sequence[Sample]) -> dict[str, float]:
    """Mean squared errors at a noise level: of the model and of the two optima."""
    told = evaluation_pack(samples, [t] * len(samples), MODEL, seed=0)
    untold = evaluation_pack(
        [Sample(s.id, s.latent, NULL) for s in samples], [t] * len(samples), MODEL, seed=0
    )
    tokens = told.batch.visual.chunk(len(samples))
    noised = [unpatchify(part, SHAPE, MODEL.patch) for part in tokens]
    optima = {
        "best": [best_velocity(one, t, [i % WORDS]) for i, one in enumerate(noised)],
        "best without text": [best_velocity(one, t, range(WORDS)) for one in noised],
    }
    with torch.no_grad():
        found = {
            "model": squared_error(model(told.batch).velocity, told),
            "model without text": squared_error(model(untold.batch).velocity, untold),
        }
    for name, velocities in optima.items():
        guess = torch.cat([patchify(velocity, MODEL.patch) for velocity in velocities])
        found[name] = squared_error(guess, told)
    return {name: float(value) / told.elements for name, value in found.items()}


@pytest.fixture(scope="module")
def trained() -> MMDiT:
    schedule = OptimizerConfig(lr_peak=8e-3, warmup_steps=40, schedule="cosine")
    model, rules = meta_model(MODEL), param_rules(MODEL)
    materialise(model, rules, seed=0, device=CPU)
    optimizer = torch.optim.AdamW(
        optimizer_groups(model.named_parameters(), rules, lr=schedule.lr_peak, weight_decay=0.0,
                         eps=schedule.eps),
        betas=(schedule.beta1, schedule.beta2),
    )  # fmt: skip
    for step in range(STEPS):
        samples = clips(1000 + CLIPS * step, CLIPS)
        pack = training_pack(samples, NULL, FLOW, MODEL, seed=0, step=step)
        optimizer.zero_grad()
        (squared_error(model(pack.batch).velocity, pack) / pack.elements).backward()
        set_lr(optimizer, lr_at(step, STEPS, schedule))
        optimizer.step()
    return model


@pytest.mark.slow
def test_it_beats_what_can_be_known_without_text_and_nears_what_can_be_known(
    trained: MMDiT,
) -> None:
    samples = clips(0, 400)
    found = [losses(trained, t, samples) for t in LEVELS]
    for t, loss in zip(LEVELS, found, strict=True):
        assert loss["model"] < 1.5 * loss["best"], t
        # Nothing can be better than the optimum: else the optimum is wrong, or text leaks.
        assert loss["model"] > 0.99 * loss["best"], t
        assert loss["model without text"] > 0.99 * loss["best without text"], t
    mean = {name: math.fsum(loss[name] for loss in found) / len(found) for name in found[0]}
    assert mean["model"] < 0.6 * mean["best without text"]
    assert mean["model without text"] < 1.3 * mean["best without text"]
