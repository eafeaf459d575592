"""Sizes of an MMDiT -> its parameters, FLOPs and memory. Pure Python: the planner uses it too.

The parameter table lists every tensor of the model by its name, so that the count is exact by
construction; a test holds it against the module on the meta device.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from scalewright.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the MMDiT. Width grows by heads; `mup_base_width` is where muP multipliers are 1."""

    width: int = 128
    depth: int = 4
    head_dim: int = 32
    ff_mult: int = 4
    patch: tuple[int, int, int] = (1, 2, 2)
    rope_axes: tuple[int, int, int] = (8, 12, 12)
    rope_theta: float = 1e4
    time_freq_dim: int = 256
    time_dim: int = 128
    text_dim: int = 64
    latent_channels: int = 32
    qk_norm: Literal["rms", "layer"] = "rms"
    norm_affine: bool = True
    mup_base_width: int = 64

    def __post_init__(self) -> None:
        for name in (
            "width",
            "depth",
            "head_dim",
            "ff_mult",
            "time_dim",
            "text_dim",
            "latent_channels",
            "mup_base_width",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} = {getattr(self, name)}; it must be at least 1")
        if self.width % self.head_dim:
            below = max(self.head_dim, self.width // self.head_dim * self.head_dim)
            raise ConfigError(
                f"model.width = {self.width} is not a multiple of model.head_dim = "
                f"{self.head_dim}; use {below} or {below + self.head_dim}"
            )
        if sum(self.rope_axes) != self.head_dim or any(a < 2 or a % 2 for a in self.rope_axes):
            raise ConfigError(
                f"model.rope_axes = {list(self.rope_axes)} must be even, positive and sum to "
                f"model.head_dim = {self.head_dim}"
            )
        if self.time_freq_dim < 2 or self.time_freq_dim % 2:
            raise ConfigError(f"model.time_freq_dim = {self.time_freq_dim}; even, at least 2")
        if self.mup_base_width % self.head_dim:
            raise ConfigError(
                f"model.mup_base_width = {self.mup_base_width} is not a multiple of "
                f"model.head_dim = {self.head_dim}: the base model must exist too"
            )
        if min(self.patch) < 1:
            raise ConfigError(f"model.patch = {list(self.patch)}; every side at least 1")
        if self.rope_theta <= 0:
            raise ConfigError(f"model.rope_theta = {self.rope_theta}; it must be positive")

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def patch_dim(self) -> int:
        """Numbers in one visual token: a patch of latent, flattened."""
        return math.prod(self.patch) * self.latent_channels

    @property
    def width_mult(self) -> float:
        """muP's n: width over base width."""
        return self.width / self.mup_base_width


@dataclass(frozen=True)
class ClipTokens:
    """Tokens of one clip after patchifying; the unit in which work is counted."""

    visual: int
    text: int


def visual_tokens(config: ModelConfig, latent_frames: int, height: int, width: int) -> int:
    """Visual tokens of a latent of (frames, height, width); each must divide by the patch."""
    for value, patch, axis in zip(
        (latent_frames, height, width), config.patch, ("frames", "height", "width"), strict=True
    ):
        if value % patch:
            raise ConfigError(f"latent {axis} = {value} does not divide by the patch size {patch}")
    return (latent_frames * height * width) // math.prod(config.patch)


def parameter_table(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its name in the module."""
    d, td = config.width, config.time_dim
    table: dict[str, tuple[int, ...]] = {}

    def linear(name: str, fan_in: int, fan_out: int) -> None:
        table[f"{name}.weight"] = (fan_out, fan_in)
        table[f"{name}.bias"] = (fan_out,)

    def layer_norm(name: str, size: int) -> None:
        if config.norm_affine:
            table[f"{name}.weight"] = (size,)
            table[f"{name}.bias"] = (size,)

    linear("visual_in", config.patch_dim, d)
    linear("text_in", config.text_dim, d)
    linear("time_in", config.time_freq_dim, td)
    linear("time_out", td, td)
    for index in range(config.depth):
        block = f"blocks.{index}"
        linear(f"{block}.visual_modulation", td, 6 * d)
        linear(f"{block}.text_modulation", td, 6 * d)
        layer_norm(f"{block}.attention_norm", d)
        linear(f"{block}.qkv", d, 3 * d)
        for side in ("query_norm", "key_norm"):
            table[f"{block}.{side}.weight"] = (config.head_dim,)
            if config.qk_norm == "layer":
                table[f"{block}.{side}.bias"] = (config.head_dim,)
        linear(f"{block}.attention_out", d, d)
        layer_norm(f"{block}.ff_norm", d)
        linear(f"{block}.ff_in", d, config.ff_mult * d)
        linear(f"{block}.ff_out", config.ff_mult * d, d)
    layer_norm("final_norm", d)
    linear("final_modulation", td, 2 * d)
    linear("visual_out", d, config.patch_dim)
    return table


def parameters(config: ModelConfig) -> int:
    """Every parameter of the model."""
    return sum(math.prod(shape) for shape in parameter_table(config).values())


def block_parameters(config: ModelConfig) -> int:
    """Parameters that every token passes in the blocks: N without embeddings and modulation.

    Embeddings, modulation and output grow with the width, not with its square, and dominate tiny
    models; scaling laws are fitted to this N.
    """
    per_token = ("qkv", "attention_out", "ff_in", "ff_out")
    return sum(
        math.prod(shape)
        for name, shape in parameter_table(config).items()
        if name.startswith("blocks.") and name.split(".")[2] in per_token
    )


def forward_flops(config: ModelConfig, clip: ClipTokens) -> int:
    """Matrix-multiply FLOPs of one forward pass of one clip, attention included.

    Linear layers cost 2·fan_in·fan_out a token; attention 4·d·n² a layer. Modulation runs once a
    clip. 6ND is off by -51% to -80% for video, so nothing is planned with it.
    """
    d, td, L = config.width, config.time_dim, config.depth
    n = clip.visual + clip.text
    linear = 2 * (4 + 2 * config.ff_mult) * L * d * d * n
    attention = 4 * L * d * n * n
    ends = 2 * 2 * config.patch_dim * d * clip.visual + 2 * config.text_dim * d * clip.text
    modulation = 2 * (config.time_freq_dim * td + td * td + 12 * d * td * L + 2 * d * td)
    return linear + attention + ends + modulation


def train_flops(config: ModelConfig, clips: Iterable[ClipTokens]) -> int:
    """FLOPs of forward and backward (twice the forward) over `clips`; recomputation not counted."""
    return sum(3 * forward_flops(config, clip) for clip in clips)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one worker needs at its peak, by what they are for."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    gathered_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.gathered_bytes
            + self.activations_bytes
        )


def memory_estimate(
    config: ModelConfig,
    *,
    workers: int,
    packs_per_worker: int,
    pack_tokens: int,
    compute_bytes: int,
    activation_checkpointing: bool,
) -> MemoryEstimate:
    """Memory of one of `workers` fully sharded workers that eats packs of `pack_tokens`.

    Weights, gradients and Adam's two moments are fp32 and sharded, but gradients are whole while
    several packs of a step are added up; two blocks are gathered at a time in the compute type
    (`compute_bytes` a number). A block keeps about 34·d numbers a token
    for its backward pass (its inputs to norms, modulation, qkv, attention, feed-forward), or only
    its input, d, with activation checkpointing plus one block being recomputed.
    """
    count = parameters(config)
    shard = math.ceil(count / workers)
    block = sum(
        math.prod(shape)
        for name, shape in parameter_table(config).items()
        if name.startswith("blocks.0.")
    )
    saved = 34 * config.width * pack_tokens * compute_bytes
    kept = config.width * pack_tokens * compute_bytes
    return MemoryEstimate(
        weights_bytes=4 * shard,
        gradients_bytes=4 * (shard if packs_per_worker == 1 else count),
        optimizer_bytes=8 * shard,
        gathered_bytes=2 * block * compute_bytes if workers > 1 else 0,
        activations_bytes=(
            saved + config.depth * kept if activation_checkpointing else config.depth * saved
        ),
    )


def width_ladder(base: ModelConfig, largest_width: int) -> list[ModelConfig]:
    """The sizes a plan may choose from: `base` at every width up to `largest_width`, by heads.

    Depth stays that of the sweep: muP carries the learning rate over width.
    """
    widths = range(base.head_dim, largest_width + 1, base.head_dim)
    return [replace(base, width=width) for width in widths]
