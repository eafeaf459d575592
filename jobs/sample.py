#!/usr/bin/env python3
"""Make a picture or a video from a prompt and a trained run."""

import sys
from pathlib import Path

# Run the submitted tree, not an older install.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import logging

import click
import torch
from safetensors.torch import load_file

from scalewright import command
from scalewright.config import merge
from scalewright.data.codec import codec_for
from scalewright.data.text import text_encoder_for
from scalewright.errors import CheckpointError, ConfigError
from scalewright.model.attention import attention_for
from scalewright.model.mup import meta_model
from scalewright.objective.sampler import LatentShape, Prompt, sample
from scalewright.train.checkpoint import (
    MANIFEST,
    Manifest,
    load_weights,
    newest_verified,
    verify,
)
from scalewright.train.run import RunConfig
from scalewright.train.samples import write_frames
from scalewright.train.worker import CHECKPOINTS, NULL_TEXT

EPILOG = """\b
Examples:
  jobs/sample.py "a red circle moves right on a dark background" --run runs/demo
  jobs/sample.py "a blue square on a white background" --run runs/demo --frames 1 --size 64x96
"""

# Pixels of a latent position, and frames of a latent frame after the first, of both codecs.
SPACE_PX, TIME_FRAMES = 8, 4


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt")
@click.option(
    "--run",
    "source",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Run folder (its newest verified checkpoint is taken) or one checkpoint.",
)
@click.option("--size", default="64x64", show_default=True, help="HEIGHTxWIDTH in pixels.")
@click.option("--frames", default=17, show_default=True, help="Frames: 1 + 4k; 1 is a picture.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write [sample.png or .mp4].")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--steps", default=32, show_default=True, help="Euler steps.")
@click.option("--guidance", default=2.0, show_default=True, help="Guidance; 1 is none.")
@click.option(
    "--codec-weights",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of weights of a codec that needs them.",
)
@click.option(
    "--text-weights",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of weights of a text encoder that needs them.",
)
def main(
    prompt: str,
    source: Path,
    size: str,
    frames: int,
    out: Path | None,
    seed: int,
    steps: int,
    guidance: float,
    codec_weights: Path | None,
    text_weights: Path | None,
) -> None:
    """Make a picture (--frames 1) or a video for PROMPT."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    if steps < 1:
        raise ConfigError(f"--steps {steps}: at least 1")
    path, manifest = find_checkpoint(source.resolve())
    config = merge(RunConfig(), manifest.run["config"], where=str(path / MANIFEST))
    codec = codec_for(manifest.run["identity"]["codec"], codec_weights)
    encoder = text_encoder_for(manifest.run["identity"]["text_encoder"], text_weights)
    shape = latent_shape(size, frames, codec.latent_channels, config.model.patch)
    stem = output_stem(out, frames)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention, _ = attention_for(device, compute)
    model = meta_model(config.model, attention).to_empty(device=device)
    load_weights(path, model)
    model = model.to(compute)
    with torch.no_grad():
        (latent,) = sample(
            model,
            [Prompt(encoder.encode([prompt])[0], shape, seed)],
            load_file(path / NULL_TEXT)["text"],
            config.flow,
            config.model,
            steps=steps,
            guidance=guidance,
            device=device,
        )
    written = write_frames(codec.decode(latent).clamp(-1, 1), stem)
    click.echo(f"{written}: {prompt!r} after step {manifest.step} of {path.parents[1].name}")


def find_checkpoint(source: Path) -> tuple[Path, Manifest]:
    """The checkpoint at `source`, or the newest verified one of the run there."""
    if (source / MANIFEST).exists():
        return source, verify(source)
    found = newest_verified(source / CHECKPOINTS)
    if found is None:
        raise CheckpointError(
            f"{source}: no checkpoint that verifies, nor a run with one; train first with "
            "jobs/pretrain.py, or give another --run"
        )
    return found


def latent_shape(size: str, frames: int, channels: int, patch: tuple[int, int, int]) -> LatentShape:
    """The latent (T, C, H, W) of a picture or video of `size` pixels and `frames` frames."""
    try:
        height, width = (int(part) for part in size.lower().split("x"))
    except ValueError:
        raise ConfigError(f"--size {size!r}: expected HEIGHTxWIDTH, such as 64x96") from None
    for side, patch_side in zip((height, width), patch[1:], strict=True):
        step = SPACE_PX * patch_side
        if side < step or side % step:
            raise ConfigError(f"--size {size}: {side} must be a multiple of {step} pixels")
    latent_frames = 1 + frames // TIME_FRAMES
    if frames < 1 or frames % TIME_FRAMES != 1 or latent_frames % patch[0]:
        raise ConfigError(
            f"--frames {frames}: the codec takes 1, 5, 9, 13, ... frames, and the model "
            f"{patch[0]} latent frames at a time"
        )
    return latent_frames, channels, height // SPACE_PX, width // SPACE_PX


def output_stem(out: Path | None, frames: int) -> Path:
    """The output path without its ending, which must fit the number of frames."""
    ending = ".png" if frames == 1 else ".mp4"
    if out is None:
        return Path("sample")
    if out.suffix != ending:
        raise ConfigError(f"--out {out}: {frames} frames are written as {ending}")
    return out.with_suffix("")


if __name__ == "__main__":
    command.run(main)
