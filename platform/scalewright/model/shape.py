"""Sizes of an MMDiT -> its parameters and FLOPs. Pure Python: the planner uses it too.

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
    """Sizes of the MMDiT. Width grows by heads; `mup_base_width` is where muP multipliers are 1.

    `attention` "local_global": blocks attend by turns within contiguous and within strided groups
    of a clip's tokens, `groups` of them along (t, h, w), each with all of the text. `rope_scale`
    divides positions along (t, h, w), so that longer axes stay within those trained on. `scores`
    names conditions beside the text, such as "aesthetics". With `mup_base_depth` every branch is
    multiplied by base depth over depth (CompleteP, arXiv 2505.01618).
    """

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
    attention: Literal["full", "local_global"] = "full"
    groups: tuple[int, int, int] = (1, 2, 2)
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scores: tuple[str, ...] = ()
    mup_base_width: int = 64
    mup_base_depth: int | None = None

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
        if min(self.rope_scale) <= 0:
            raise ConfigError(f"model.rope_scale = {list(self.rope_scale)}; it must be positive")
        if min(self.groups) < 1:
            raise ConfigError(f"model.groups = {list(self.groups)}; every axis at least 1")
        if self.attention == "local_global" and self.depth % 2:
            raise ConfigError(
                f"model.depth = {self.depth} is odd, but model.attention = 'local_global' takes "
                f"blocks in pairs; use {self.depth + 1}"
            )
        if len(set(self.scores)) < len(self.scores) or not all(self.scores):
            raise ConfigError(f"model.scores = {list(self.scores)}; names, each of them once")
        if self.mup_base_depth is not None and self.mup_base_depth < 1:
            raise ConfigError(f"model.mup_base_depth = {self.mup_base_depth}; at least 1")

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

    @property
    def branch_multiplier(self) -> float:
        """What every attention and feed-forward branch is multiplied by: 1 without depth muP."""
        return 1.0 if self.mup_base_depth is None else self.mup_base_depth / self.depth

    @property
    def group_count(self) -> int:
        """Groups that share out a clip's visual tokens in every block; 1 is full attention."""
        return math.prod(self.groups) if self.attention == "local_global" else 1


@dataclass(frozen=True)
class ClipTokens:
    """Tokens of one clip after patchifying; the unit in which work is counted.

    `noise_rows`: 2 where the first latent frame has a noise level of its own.
    """

    visual: int
    text: int
    noise_rows: int = 1


def visual_tokens(config: ModelConfig, latent_frames: int, height: int, width: int) -> int:
    """Visual tokens of a latent of (frames, height, width); each must divide by the patch."""
    for value, patch, axis in zip(
        (latent_frames, height, width), config.patch, ("frames", "height", "width"), strict=True
    ):
        if value % patch:
            raise ConfigError(f"latent {axis} = {value} does not divide by the patch size {patch}")
    check_groups(config, (latent_frames, height, width))
    return (latent_frames * height * width) // math.prod(config.patch)


def check_groups(config: ModelConfig, latent: tuple[int, int, int]) -> None:
    """Refuse a latent (frames, height, width) that local/global groups do not share evenly."""
    if config.group_count == 1:
        return
    for value, patch, groups, axis in zip(
        latent, config.patch, config.groups, ("frames", "height", "width"), strict=True
    ):
        if value % (patch * groups):
            raise ConfigError(
                f"latent {axis} = {value} does not share out over {groups} groups of patches of "
                f"{patch}; use multiples of {patch * groups}, other model.groups, or "
                "model.attention='full'"
            )


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
    if config.scores:
        linear("score_in", 2 * len(config.scores), td)
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

    Linear layers cost 2·fan_in·fan_out a token; attention 4·d·n² a layer and group of n tokens, the
    text being in every group. Modulation runs once a noise level. 6ND is off by -51% to -80% for
    video, so nothing is planned with it.
    """
    d, td, L, G = config.width, config.time_dim, config.depth, config.group_count
    grouped = clip.visual // G + clip.text
    linear = 2 * (4 + 2 * config.ff_mult) * L * d * d * (clip.visual + clip.text)
    attention = 4 * L * d * G * grouped * grouped
    ends = 2 * 2 * config.patch_dim * d * clip.visual + 2 * config.text_dim * d * clip.text
    conditions = config.time_freq_dim * td + td * td + 2 * len(config.scores) * td
    modulation = 2 * (conditions + 12 * d * td * L + 2 * d * td)
    return linear + attention + ends + modulation * clip.noise_rows


def train_flops(config: ModelConfig, clips: Iterable[ClipTokens]) -> int:
    """FLOPs of forward and backward (twice the forward) over `clips`; recomputation not counted."""
    return sum(3 * forward_flops(config, clip) for clip in clips)


def width_ladder(base: ModelConfig, largest_width: int) -> list[ModelConfig]:
    """The sizes a plan may choose from: `base` at every width up to `largest_width`, by heads.

    Depth stays that of the sweep: muP carries the learning rate over width.
    """
    widths = range(base.head_dim, largest_width + 1, base.head_dim)
    return [replace(base, width=width) for width in widths]
