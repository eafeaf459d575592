"""Pictures and videos from the model in training, made from captions of validation clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scalewright.data.codec import Codec
from scalewright.data.media import write_picture, write_video
from scalewright.data.sample import Sample
from scalewright.objective.sampler import Prompt, sample
from scalewright.train.run import RunConfig

SAMPLE_FPS = 8


@dataclass(frozen=True)
class SampleSet:
    """The prompts that are drawn again and again, so that progress can be seen."""

    prompts: tuple[Prompt, ...]
    null_text: Tensor
    codec: Codec

    def draw(
        self, model: nn.Module, config: RunConfig, device: torch.device, autocast: torch.autocast
    ) -> list[Tensor]:
        """A latent for every prompt. Every rank must call it: weights are gathered from all."""

        def velocity(batch):  # type: ignore[no-untyped-def]
            with autocast:
                return model(batch).velocity

        with torch.no_grad():
            return sample(
                velocity,
                self.prompts,
                self.null_text,
                config.flow,
                config.model,
                steps=config.log.sample_steps,
                guidance=config.log.guidance,
                device=device,
            )


def sample_set(samples: Sequence[Sample], null_text: Tensor, codec: Codec, seed: int) -> SampleSet:
    """Prompts with the text and shape of `samples`."""
    prompts = tuple(
        Prompt(clip.text, tuple(clip.latent.shape), seed + index)  # type: ignore[arg-type]
        for index, clip in enumerate(samples)
    )
    return SampleSet(prompts, null_text, codec)


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
