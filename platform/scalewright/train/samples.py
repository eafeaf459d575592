"""Pictures and videos from the model in training, made from captions of validation clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scalewright.data.codec import Codec
from scalewright.data.media import write_picture, write_video
from scalewright.data.sample import Entry, Sample
from scalewright.model.packed import PackedBatch
from scalewright.model.shape import ModelConfig, visual_tokens
from scalewright.objective.flow import known_scores
from scalewright.objective.sampler import Prompt, SamplerConfig, sample
from scalewright.train.parallel import World
from scalewright.train.quality import QualityMetric
from scalewright.train.run import RunConfig

SAMPLE_FPS = 8


@dataclass(frozen=True)
class SampleSet:
    """The prompts that are drawn again and again, so that progress can be seen.

    `real`: the latents of the clips whose captions and shapes they have.
    """

    prompts: tuple[Prompt, ...]
    real: tuple[Tensor, ...]
    null_text: Tensor
    codec: Codec

    def draw(
        self,
        model: nn.Module,
        config: RunConfig,
        device: torch.device,
        autocast: torch.autocast,
        world: World | None = None,
    ) -> list[Tensor]:
        """A latent for every prompt. Every rank must call it: weights are gathered from all.

        With `world`, its ranks share out the prompts, and each of them gets all latents.
        """

        def velocity(batch: PackedBatch) -> Tensor:
            with autocast:
                found: Tensor = model(batch).velocity
            return found

        def make(prompts: Sequence[Prompt]) -> list[Tensor]:
            sampler = SamplerConfig(steps=config.log.sample_steps, guidance=config.log.guidance)
            return sample(
                velocity, prompts, self.null_text, config.flow, config.model, sampler, device=device
            )

        rank, ranks = (0, 1) if world is None else (world.rank, world.size)
        packs = self._packs(config)
        made = [torch.zeros(prompt.shape, device=device) for prompt in self.prompts]
        with torch.no_grad():
            for turn in range(0, len(packs), ranks):
                # A rank without a pack still takes part in the gathering of weights.
                counted = turn + rank < len(packs)
                rows = packs[turn + rank if counted else 0]
                latents = make([self.prompts[row] for row in rows])
                for row, latent in zip(rows, latents, strict=True):
                    made[row] += counted * latent.to(device)
        if world is not None:
            made = [world.sum(latent) for latent in made]  # zeros add exactly
        return [latent.cpu() for latent in made]

    def quality(
        self, latents: Sequence[Tensor], metrics: Sequence[QualityMetric]
    ) -> dict[str, float]:
        """What `metrics` say of drawn `latents` beside the real clips."""
        for real, made in zip(self.real, latents, strict=True):
            pair = [self.codec.decode(latent).clamp(-1, 1) for latent in (real, made)]
            for metric in metrics:
                metric.update(*pair)
        results: dict[str, float] = {}
        for metric in metrics:
            results |= metric.result()
        return results

    def _packs(self, config: RunConfig) -> list[list[int]]:
        """Prompts in order, together as long as they and their unconditional twins fit a pack."""
        packs: list[list[int]] = []
        filled = 0
        for row, prompt in enumerate(self.prompts):
            T, _, H, W = prompt.shape
            tokens = 2 * (visual_tokens(config.model, T, H, W) + len(prompt.text))
            if not packs or filled + tokens > config.data.pack_tokens:
                packs.append([])
                filled = 0
            packs[-1].append(row)
            filled += tokens
        return packs


def sample_set(
    samples: Sequence[Sample], null_text: Tensor, codec: Codec, model: ModelConfig, seed: int
) -> SampleSet:
    """Prompts with the text, the shape and the scores of `samples`."""
    prompts = tuple(
        Prompt(
            clip.text,
            tuple(clip.latent.shape),  # type: ignore[arg-type]
            seed + index,
            scores=known_scores(clip, model),
        )
        for index, clip in enumerate(samples)
    )
    return SampleSet(prompts, tuple(clip.latent for clip in samples), null_text, codec)


def write_frames(frames: Tensor, stem: Path) -> Path:
    """Write one frame as PNG, several as MP4; returns the path."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) == 1:
        path = stem.with_suffix(".png")
        write_picture(path, frames[0])
    else:
        path = stem.with_suffix(".mp4")
        write_video(path, frames, SAMPLE_FPS)
    return path


def sample_entries(entries: list[Entry], count: int) -> list[Entry]:
    """Clips whose captions are drawn: the longest videos first, then pictures, about half each."""
    videos = sorted((e for e in entries if e.is_video), key=lambda e: (-e.latent_frames, e.id))
    pictures = [e for e in entries if not e.is_video]
    chosen = videos[: max(-(-count // 2), count - len(pictures))]
    return chosen + pictures[: count - len(chosen)]
