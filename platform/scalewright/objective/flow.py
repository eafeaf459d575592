"""Rectified flow: noise levels, timestep shift, the noised pack and its loss.

x_t = (1 - t)·x0 + t·e, the model predicts v = e - x0 (Liu et al. 2022; Esser et al. 2024, eq. 13).
Everything random is keyed by (seed, sample, step): the same at every world size.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from scalewright.data.sample import Missing, Sample
from scalewright.errors import ConfigError
from scalewright.model.packed import PackedBatch, PackItem, pack, patchify
from scalewright.model.shape import ModelConfig, visual_tokens


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How clips are noised. `shift_tokens`: visual tokens of a clip at which the shift is 1.

    `score_dropout`: share of a clip's quality scores that the model is not told.
    `image_to_video`: share of videos whose first latent frame has a noise level of its own, and
    `clean_first_frame` the share of those in which it is clean, as when a picture is given.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift_tokens: int | None = None
    text_dropout: float = 0.1
    score_dropout: float = 0.1
    image_to_video: float = 0.0
    clean_first_frame: float = 0.5

    def __post_init__(self) -> None:
        if self.logit_std <= 0:
            raise ConfigError(f"flow.logit_std = {self.logit_std}; it must be positive")
        for name in ("text_dropout", "score_dropout", "image_to_video", "clean_first_frame"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"flow.{name} = {getattr(self, name)}; allowed: 0 to 1")
        if self.shift_tokens is not None and self.shift_tokens < 1:
            raise ConfigError(
                f"flow.shift_tokens = {self.shift_tokens}; at least 1, or leave it out"
            )


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator whose stream depends on the whole `key` and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def shifted(t: float, config: FlowConfig, visual_tokens: int) -> float:
    """Move a noise level towards noise for clips of many tokens (Esser et al. 2024, eq. 23).

    t' = a·t / (a·t + 1 - t) with a = sqrt(tokens / shift_tokens): the more tokens share a
    picture, the more noise it takes to hide it.
    """
    if config.shift_tokens is None:
        return t
    a = math.sqrt(visual_tokens / config.shift_tokens)
    return a * t / (a * t + (1 - t))


def noise_level(config: FlowConfig, generator: torch.Generator, visual_tokens: int) -> float:
    """A logit-normal noise level in (0, 1), shifted for the clip's token count."""
    normal = torch.randn((), generator=generator, dtype=torch.float64).item()
    t = 1 / (1 + math.exp(-(config.logit_mean + config.logit_std * normal)))
    return shifted(t, config, visual_tokens)


def stratified_levels(config: FlowConfig, count: int) -> list[float]:
    """`count` noise levels at the middle of equally likely strata of the training distribution."""
    normal = NormalDist(config.logit_mean, config.logit_std)
    logits = [normal.inv_cdf((index + 0.5) / count) for index in range(count)]
    return [1 / (1 + math.exp(-logit)) for logit in logits]


@dataclass(frozen=True)
class NoisedPack:
    """A pack ready for the model, and the velocity (Nv, patch_dim) it should predict.

    `weight` (Nv,) is 0 for tokens that are given clean or are missing, where nothing is to be
    predicted; None where there are none. `elements`: numbers of the target that count.
    """

    batch: PackedBatch
    target: Tensor
    weight: Tensor | None
    elements: int

    def to(self, device: torch.device) -> "NoisedPack":
        weight = None if self.weight is None else self.weight.to(device, non_blocking=True)
        target = self.target.to(device, non_blocking=True)
        return replace(self, batch=self.batch.to(device), target=target, weight=weight)


def training_pack(
    samples: Sequence[Sample | Missing],
    null_text: Tensor,
    config: FlowConfig,
    model: ModelConfig,
    *,
    seed: int,
    step: int,
) -> NoisedPack:
    """Noise the clips of one pack for `step`; a share of them loses its text.

    What is missing has its tokens, of zeros, so that a pack is never empty; they count for nothing.
    """
    items, targets = [], []
    for sample in samples:
        if isinstance(sample, Missing):
            items.append(_nothing(sample, null_text, model))
            targets.append(patchify(items[-1].latent, model.patch))
            continue
        generator = keyed_generator("train", seed, sample.id, step)
        tokens = sample.latent.numel() // (sample.latent.shape[1] * math.prod(model.patch))
        level = noise_level(config, generator, tokens)
        dropped = torch.rand((), generator=generator).item() < config.text_dropout
        text = null_text if dropped else sample.text
        clip = sample.latent.float()
        noise = torch.randn(clip.shape, generator=generator)
        own = _first_frame_level(config, generator, sample, tokens)
        latent = _mix(clip, noise, level)
        if own is not None:
            latent[:1] = _mix(clip[:1], noise[:1], own)
        scores = _told_scores(config, generator, sample, model)
        items.append(PackItem(latent, text.float(), level, first_frame_level=own, scores=scores))
        targets.append(patchify(noise - clip, model.patch))
    missing = [isinstance(sample, Missing) for sample in samples]
    return _noised(items, targets, missing, model)


def _first_frame_level(
    config: FlowConfig, generator: torch.Generator, sample: Sample, tokens: int
) -> float | None:
    """The first frame's own noise level where it has one; drawn last, so that the rest stays."""
    if sample.latent.shape[0] == 1 or config.image_to_video == 0:
        return None
    chance, clean = torch.rand(2, generator=generator).tolist()
    if chance >= config.image_to_video:
        return None
    return 0.0 if clean < config.clean_first_frame else noise_level(config, generator, tokens)


def known_scores(sample: Sample, model: ModelConfig) -> dict[str, float]:
    """Those of the sample's scores that the model takes."""
    return {name: sample.scores[name] for name in model.scores if name in sample.scores}


def _told_scores(
    config: FlowConfig, generator: torch.Generator, sample: Sample, model: ModelConfig
) -> dict[str, float]:
    """Those of the sample's scores that the model knows, each dropped on its own."""
    if not model.scores:
        return {}
    chances = dict(
        zip(model.scores, torch.rand(len(model.scores), generator=generator).tolist(), strict=True)
    )
    known = known_scores(sample, model)
    return {name: x for name, x in known.items() if chances[name] >= config.score_dropout}


def _nothing(missing: Missing, null_text: Tensor, model: ModelConfig) -> PackItem:
    shape = (missing.frames, model.latent_channels, missing.entry.height, missing.entry.width)
    return PackItem(torch.zeros(shape), null_text, 0.5)


def _noised(
    items: Sequence[PackItem],
    targets: Sequence[Tensor],
    missing: Sequence[bool],
    model: ModelConfig,
) -> NoisedPack:
    target, weight = torch.cat(list(targets)), None
    if any(missing) or any(item.first_frame_level == 0 for item in items):
        parts = (_weight(item, model) for item in items)
        weight = torch.cat([w * (not gone) for w, gone in zip(parts, missing, strict=True)])
    counted = len(target) if weight is None else int(weight.sum())
    return NoisedPack(pack(items, model), target, weight, counted * target.shape[1])


def _weight(item: PackItem, model: ModelConfig) -> Tensor:
    T, _, H, W = item.latent.shape
    tokens = visual_tokens(model, T, H, W)
    weight = torch.ones(tokens)
    if item.first_frame_level == 0:
        weight[: tokens * model.patch[0] // T] = 0
    return weight


def evaluation_pack(
    samples: Sequence[Sample], levels: Sequence[float], model: ModelConfig, *, seed: int
) -> NoisedPack:
    """Noise each clip at its given level with noise that is the same at every evaluation."""
    items, targets = [], []
    for sample, level in zip(samples, levels, strict=True):
        generator = keyed_generator("evaluate", seed, sample.id, round(level, 9))
        noise = torch.randn(sample.latent.shape, generator=generator)
        latent, scores = _mix(sample.latent, noise, level), known_scores(sample, model)
        items.append(PackItem(latent, sample.text, level, scores=scores))
        targets.append(patchify(noise - sample.latent, model.patch))
    return _noised(items, targets, [False] * len(items), model)


def squared_error(prediction: Tensor, pack: NoisedPack) -> Tensor:
    """Sum of squared errors over the elements that count, in at least fp32."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    squares = (prediction.to(wide) - pack.target.to(wide)).square()
    return squares.sum() if pack.weight is None else (squares.sum(1) * pack.weight).sum()


def _mix(latent: Tensor, noise: Tensor, level: float) -> Tensor:
    return (1 - level) * latent + level * noise
