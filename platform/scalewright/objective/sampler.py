"""From noise to latents: Euler steps along the learnt flow with classifier-free guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalewright.model.packed import PackedBatch, PackItem, pack, unpatchify
from scalewright.model.shape import ModelConfig, visual_tokens
from scalewright.objective.flow import FlowConfig, keyed_generator, shifted

LatentShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Prompt:
    """What to make: text (S, text_dim), a latent shape (T, C, H, W), and the key of its noise."""

    text: Tensor
    shape: LatentShape
    seed: int


def sample(
    velocity: Callable[[PackedBatch], Tensor],
    prompts: Sequence[Prompt],
    null_text: Tensor,
    flow: FlowConfig,
    model: ModelConfig,
    *,
    steps: int,
    guidance: float,
    device: torch.device,
) -> list[Tensor]:
    """Latents for `prompts`; guided = unconditional + guidance·(conditional - unconditional).

    All prompts advance together in one pack. The noise levels are equally spaced, then shifted
    for each clip's tokens as in training (Ho and Salimans 2022; Esser et al. 2024).
    """
    latents = [
        torch.randn(prompt.shape, generator=keyed_generator("sample", prompt.seed))
        for prompt in prompts
    ]
    for index in range(steps):
        now, after = (1 - index / steps, 1 - (index + 1) / steps)
        velocities = _guided(
            velocity, prompts, latents, null_text, flow, model, now, guidance, device
        )
        for row, (prompt, v) in enumerate(zip(prompts, velocities, strict=True)):
            tokens = _tokens(prompt.shape, model)
            step = shifted(now, flow, tokens) - shifted(after, flow, tokens)
            latents[row] = latents[row] - step * v
    return latents


def _guided(
    velocity: Callable[[PackedBatch], Tensor],
    prompts: Sequence[Prompt],
    latents: Sequence[Tensor],
    null_text: Tensor,
    flow: FlowConfig,
    model: ModelConfig,
    level: float,
    guidance: float,
    device: torch.device,
) -> list[Tensor]:
    levels = [shifted(level, flow, _tokens(prompt.shape, model)) for prompt in prompts]
    texts = [prompt.text for prompt in prompts] + [null_text] * len(prompts)
    items = [
        PackItem(latent, text, level)
        for latent, text, level in zip([*latents, *latents], texts, levels * 2, strict=True)
    ]
    flat = velocity(pack(items, model).to(device)).float().cpu()
    sizes = [_tokens(prompt.shape, model) for prompt in prompts] * 2
    parts = [
        unpatchify(tokens, prompt.shape, model.patch)
        for tokens, prompt in zip(flat.split(sizes), [*prompts, *prompts], strict=True)
    ]
    conditional, unconditional = parts[: len(prompts)], parts[len(prompts) :]
    return [u + guidance * (c - u) for c, u in zip(conditional, unconditional, strict=True)]


def _tokens(shape: LatentShape, model: ModelConfig) -> int:
    T, _, H, W = shape
    return visual_tokens(model, T, H, W)
