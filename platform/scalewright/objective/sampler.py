"""From noise to latents: a solver along the learnt flow, with classifier-free guidance."""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scalewright.errors import ConfigError
from scalewright.model.packed import PackedBatch, PackItem, pack, unpatchify
from scalewright.model.shape import ModelConfig, visual_tokens
from scalewright.objective.flow import FlowConfig, keyed_generator, shifted
from scalewright.objective.solvers import SOLVERS, Latents, Levels, SolverName

LatentShape = tuple[int, int, int, int]
Velocity = Callable[[PackedBatch], Tensor]


@dataclass(frozen=True)
class Prompt:
    """What to make: text (S, text_dim), a latent shape (T, C, H, W), and the key of its noise.

    `negative` (S', text_dim): what guidance moves away from, instead of the null text.
    `first_frame` (1, C, H, W): the first latent frame, held clean; the rest is made to follow it.
    `scores`: quality scores by name, given to both branches, so that guidance is along the text.
    """

    text: Tensor
    shape: LatentShape
    seed: int
    negative: Tensor | None = None
    first_frame: Tensor | None = None
    scores: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How noise becomes latents.

    `guidance`: 1 is none, and costs half. `shift_scale` multiplies the shift of the noise levels
    that training had: above 1, more steps at high noise.
    """

    steps: int = 32
    guidance: float = 2.0
    solver: SolverName = "adams"
    shift_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}; at least 1")
        if self.guidance < 0:
            raise ConfigError(f"guidance = {self.guidance}; at least 0; 1 is none")
        if self.shift_scale <= 0:
            raise ConfigError(
                f"shift_scale = {self.shift_scale}; it must be positive; 1 changes nothing"
            )
        if self.solver not in typing.get_args(SolverName):
            known = ", ".join(typing.get_args(SolverName))
            raise ConfigError(f"solver = {self.solver!r}; known: {known}")


def check_prompt(prompt: Prompt, model: ModelConfig) -> None:
    """Refuse a prompt that `model` cannot follow: its shape, first frame or scores."""
    visual_tokens(model, prompt.shape[0], *prompt.shape[2:])
    unknown = sorted(set(prompt.scores or {}) - set(model.scores))
    if unknown:
        known = ", ".join(model.scores) or "none"
        raise ConfigError(
            f"score {unknown[0]!r}: the model was not trained with it; known: {known}"
        )
    if prompt.first_frame is None:
        return
    expected = (1, *prompt.shape[1:])
    if tuple(prompt.first_frame.shape) != expected:
        raise ConfigError(
            f"first frame: a latent of {tuple(prompt.first_frame.shape)}; it must be {expected}, "
            f"as the video's other frames"
        )
    if prompt.shape[0] == 1:
        raise ConfigError("first frame: a picture has no frames after it; ask for 5 frames or more")
    if model.patch[0] != 1:
        raise ConfigError(
            f"first frame: the model takes {model.patch[0]} latent frames at a time (model.patch), "
            f"so the first has no noise level of its own; leave the first frame out"
        )


def sample(
    velocity: Velocity,
    prompts: Sequence[Prompt],
    null_text: Tensor,
    flow: FlowConfig,
    model: ModelConfig,
    config: SamplerConfig,
    *,
    device: torch.device,
) -> Latents:
    """Latents for `prompts`, on the CPU in fp32; each is the same whatever is made beside it.

    All advance together in one pack. Noise levels are equally spaced, then shifted for each clip's
    tokens as in training (Esser et al. 2024, eq. 23).
    """
    for prompt in prompts:
        check_prompt(prompt, model)
    grid = noise_grid(prompts, flow, model, config)

    def field(latents: Latents, levels: Levels) -> Latents:
        items = [_item(*row) for row in zip(prompts, latents, levels, strict=True)]
        made = _guided(velocity, items, prompts, null_text, model, config.guidance, device)
        return [_held(v, prompt) for v, prompt in zip(made, prompts, strict=True)]

    return SOLVERS[config.solver](field, [_start(prompt) for prompt in prompts], grid)


def noise_grid(
    prompts: Sequence[Prompt], flow: FlowConfig, model: ModelConfig, config: SamplerConfig
) -> list[list[float]]:
    """Noise level of every prompt at each of the `steps` + 1 points, from 1 to 0."""
    tokens = [_tokens(prompt.shape, model) for prompt in prompts]
    points = [1 - index / config.steps for index in range(config.steps + 1)]
    return [[_scaled(shifted(t, flow, n), config.shift_scale) for n in tokens] for t in points]


def _scaled(t: float, scale: float) -> float:
    # Shifts compose by multiplication: by a and then by b is by a·b.
    return scale * t / (scale * t + 1 - t)


def _start(prompt: Prompt) -> Tensor:
    noise = torch.randn(prompt.shape, generator=keyed_generator("sample", prompt.seed))
    if prompt.first_frame is not None:
        noise[:1] = prompt.first_frame
    return noise


def _held(velocity: Tensor, prompt: Prompt) -> Tensor:
    """The velocity with a given first frame at rest."""
    if prompt.first_frame is None:
        return velocity
    return torch.cat((torch.zeros_like(velocity[:1]), velocity[1:]))


def _item(prompt: Prompt, latent: Tensor, level: float) -> PackItem:
    first = None if prompt.first_frame is None else 0.0
    return PackItem(latent, prompt.text, level, first, prompt.scores)


def _guided(
    velocity: Velocity,
    items: Sequence[PackItem],
    prompts: Sequence[Prompt],
    null_text: Tensor,
    model: ModelConfig,
    guidance: float,
    device: torch.device,
) -> Latents:
    """unconditional + guidance·(conditional - unconditional) (Ho and Salimans 2022)."""
    if guidance == 1:
        return _velocities(velocity, items, model, device)
    away = [
        replace(item, text=null_text if prompt.negative is None else prompt.negative)
        for item, prompt in zip(items, prompts, strict=True)
    ]
    both = _velocities(velocity, [*items, *away], model, device)
    conditional, unconditional = both[: len(items)], both[len(items) :]
    return [u + guidance * (c - u) for c, u in zip(conditional, unconditional, strict=True)]


def _velocities(
    velocity: Velocity, items: Sequence[PackItem], model: ModelConfig, device: torch.device
) -> Latents:
    shapes = [_shape(item.latent) for item in items]
    flat = velocity(pack(items, model).to(device)).float().cpu()
    parts = flat.split([_tokens(shape, model) for shape in shapes])
    return [unpatchify(part, s, model.patch) for part, s in zip(parts, shapes, strict=True)]


def _shape(latent: Tensor) -> LatentShape:
    T, C, H, W = latent.shape
    return T, C, H, W


def _tokens(shape: LatentShape, model: ModelConfig) -> int:
    T, _, H, W = shape
    return visual_tokens(model, T, H, W)
