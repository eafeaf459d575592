#!/usr/bin/env python3
"""Make a picture or a video from a prompt and a trained run."""

import sys
from pathlib import Path

# Run the submitted tree, not an older install.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import logging
import math
import typing

import click
import torch
from safetensors.torch import load_file

from scalewright import command
from scalewright.config import merge
from scalewright.data.codec import codec_for
from scalewright.data.text import text_encoder_for
from scalewright.errors import CheckpointError, ConfigError
from scalewright.objective.sampler import Prompt, SamplerConfig
from scalewright.objective.solvers import SolverName
from scalewright.train.generate import (
    DeviceType,
    Request,
    check_request,
    generate,
    launched_rank,
    launched_ranks,
)
from scalewright.train.geometry import Geometry, fitted, read_frame
from scalewright.train.manifest import CHECKPOINTS, MANIFEST, Manifest, newest_verified, verify
from scalewright.train.place import NULL_TEXT
from scalewright.train.run import RunConfig
from scalewright.train.samples import write_frames

EPILOG = """\b
Examples:
  jobs/sample.py "a red circle moves right on a dark background" --run runs/demo
  jobs/sample.py "a blue square on a white background" --run runs/demo --frames 1 --size 64x96
  jobs/sample.py "the circle moves left" --run runs/videos --first-frame start.png
  jobs/sample.py "a red circle" --run runs/demo --negative "a blue square" --aspect 16:9
  jobs/sample.py "a red circle" --run runs/demo --tensor-parallel 2
  torchrun --nproc-per-node 8 -- jobs/sample.py "a red circle" --run runs/demo
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt")
@click.option(
    "--run",
    "source",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Run folder (its newest verified checkpoint is taken) or one checkpoint.",
)
@click.option("--size", help="HEIGHTxWIDTH in pixels [64x64, or the aspect of --first-frame].")
@click.option("--aspect", help="WIDTH:HEIGHT, such as 16:9, with about the area of --size.")
@click.option("--frames", default=17, show_default=True, help="Frames: 1 + 4k; 1 is a picture.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write [sample.png or .mp4].")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise.")
@click.option("--steps", default=32, show_default=True, help="Steps of the solver.")
@click.option(
    "--solver",
    type=click.Choice(typing.get_args(SolverName)),
    default="adams",
    show_default=True,
    help="euler: first order; adams: second, at the same cost; heun: second, at twice the cost.",
)
@click.option("--guidance", default=2.0, show_default=True, help="Guidance; 1 is none.")
@click.option("--negative", help="Text that guidance moves away from, instead of no text.")
@click.option(
    "--first-frame",
    type=click.Path(path_type=Path, exists=True),
    help="Picture that the video begins with, cropped to its aspect; for runs with "
    "flow.image_to_video.",
)
@click.option("--score", "scores", multiple=True, help="NAME=VALUE of a quality score the run has.")
@click.option(
    "--shift-scale",
    default=1.0,
    show_default=True,
    help="Times the training's shift of noise levels; above 1, more steps at high noise.",
)
@click.option("--stage", default=-1, help="Stage of the run whose attention to take [the last].")
@click.option(
    "--weights",
    type=click.Choice(("average", "last")),
    default="average",
    show_default=True,
    help="The moving average of the weights, if the run has one, or those of the last step.",
)
@click.option(
    "--tensor-parallel",
    "ranks",
    type=int,
    help="GPUs, or processes without any, that share out the model [1, or torchrun's].",
)
@click.option(
    "--device",
    type=click.Choice(typing.get_args(DeviceType)),
    help="Where to compute [cuda where there is one]; bf16 on CUDA, fp32 on the CPU.",
)
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
    size: str | None,
    aspect: str | None,
    frames: int,
    out: Path | None,
    seed: int,
    steps: int,
    solver: SolverName,
    guidance: float,
    negative: str | None,
    first_frame: Path | None,
    scores: tuple[str, ...],
    shift_scale: float,
    stage: int,
    weights: str,
    ranks: int | None,
    device: DeviceType | None,
    codec_weights: Path | None,
    text_weights: Path | None,
) -> None:
    """Make a picture (--frames 1) or a video for PROMPT."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    sampler = SamplerConfig(steps=steps, guidance=guidance, solver=solver, shift_scale=shift_scale)
    if negative is not None and guidance == 1:
        raise ConfigError(
            f"--negative {negative!r}: has no effect with --guidance 1; raise the guidance"
        )
    if first_frame is not None and frames == 1:
        raise ConfigError(f"--first-frame {first_frame}: a picture has no frames after it; drop it")
    stem = output_stem(out, frames)
    path, manifest = find_checkpoint(source.resolve())
    config = merge(RunConfig(), manifest.run["config"], where=str(path / MANIFEST))
    config = config.at_stage(stage)
    if first_frame is not None and not config.flow.image_to_video:
        raise ConfigError(
            f"--first-frame {first_frame}: {path.parents[1].name} was not trained to continue a "
            "picture (flow.image_to_video = 0); drop it, or train with flow.image_to_video=0.2"
        )
    given = None if first_frame is None else read_frame(first_frame)
    geometry = Geometry.of(config.model)
    height, width = geometry.size(size, aspect, given)
    codec = codec_for(manifest.run["identity"]["codec"], codec_weights)
    encoder = text_encoder_for(manifest.run["identity"]["text_encoder"], text_weights)
    wanted = Prompt(
        text=encoder.encode([prompt])[0],
        shape=geometry.latent(frames, height, width, codec.latent_channels),
        seed=seed,
        negative=None if negative is None else encoder.encode([negative])[0],
        first_frame=None if given is None else codec.encode(fitted(given, height, width)),
        scores=parse_scores(scores),
    )
    null_text = load_file(path / NULL_TEXT)["text"]
    request = Request(
        checkpoint=path,
        config=config,
        null_text=null_text,
        prompts=(wanted,),
        sampler=sampler,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        averaged=weights == "average",
    )
    ranks = ranks if ranks is not None else launched_ranks() or 1
    check_request(request, ranks)
    (latent,) = generate(request, ranks)
    if launched_rank() == 0:
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


def parse_scores(assignments: tuple[str, ...]) -> dict[str, float] | None:
    """{"motion": 0.5} of ("motion=0.5",); None of nothing."""
    scores = {}
    for text in assignments:
        name, _, value = text.partition("=")
        try:
            scores[name] = float(value)
        except ValueError:
            raise ConfigError(
                f"--score {text!r}: expected NAME=VALUE, such as motion=0.5"
            ) from None
        if not math.isfinite(scores[name]):
            raise ConfigError(f"--score {text}: the value must be finite")
    return scores or None


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
