#!/usr/bin/env python3
"""Turn a folder of pictures and videos with captions into data to train on."""

import sys
from pathlib import Path

# Run the submitted tree, not an older install on the cluster.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import dataclasses
import json
import logging

import click

from scalewright import command
from scalewright.data.codec import Codec, HaarCodec
from scalewright.data.media import Sampling
from scalewright.data.text import ByteNgramEncoder, TextEncoder
from scalewright.prepare.encode import PrepareConfig, Summary, prepare
from scalewright.prepare.scores import ScoreColumn, parse_score_columns
from scalewright.prepare.static import StaticConfig

SHOWN = 10  # names in the summary; --json and the catalogue have all

EPILOG = """\b
Examples:
  jobs/prepare.py clips --captions clips/captions.csv --out data/clips
  jobs/prepare.py clips --captions some.csv --out data/clips-4s --max-frames 33 --clips-per-file all
  jobs/prepare.py clips --captions scored.csv --out data/scored --scores motion,aesthetics=1:10
  jobs/prepare.py clips --captions some.csv --out data/with-static --static-share 0.05
Run the same command again to go on with what an earlier run left undone.
"""

FOLDER = click.Path(path_type=Path)


def _clips_per_file(context: click.Context, option: click.Parameter, value: str) -> int | None:
    if value != "all" and not (value.isdecimal() and int(value) > 0):
        raise click.BadParameter(f"{value!r}; give a number from 1, or all")
    return None if value == "all" else int(value)


def _scores(context: click.Context, option: click.Parameter, value: str) -> tuple[ScoreColumn, ...]:
    return parse_score_columns(value)


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=FOLDER)
@click.option(
    "--captions", type=FOLDER, required=True, help="CSV file with path,caption[,collection]."
)
@click.option("--out", type=FOLDER, required=True, help="Data folder to make or go on with.")
@click.option("--area-px", default=4096, show_default=True, help="Pixels of a frame, about.")
@click.option("--fps", default=8.0, show_default=True, help="Sampled frames a second, at most.")
@click.option("--max-frames", default=17, show_default=True, help="Longest clip, 1 + 4k frames.")
@click.option(
    "--clips-per-file",
    default="1",
    show_default=True,
    callback=_clips_per_file,
    help="Consecutive clips taken from a video: a number, or all.",
)
@click.option(
    "--validation-share", default=0.1, show_default=True, help="Share of files put aside."
)
@click.option(
    "--max-broken-share",
    default=0.05,
    show_default=True,
    help="Stop when more of the files than this cannot be used.",
)
@click.option(
    "--scores",
    metavar="NAME[=LOW:HIGH],...",
    default="",
    callback=_scores,
    help="Columns of the captions file that hold quality scores, such as motion,aesthetics=1:10. "
    "They are kept as shares of their range, 0:1 if not stated; an empty cell is unknown.",
)
@click.option(
    "--static-share",
    default=0.0,
    show_default=True,
    help="Share of files that give a static clip too: their first frame, repeated. Never from "
    "files put aside, always without scores.",
)
@click.option("--static-frames", type=int, help="Frames of static clips [--max-frames].")
@click.option(
    "--static-prefix",
    default=StaticConfig.prefix,
    show_default=True,
    help="Goes before the caption of a static clip, with a comma.",
)
@click.option("--codec-weights", type=FOLDER, help="Folder of a CogVideoX VAE [Haar wavelets].")
@click.option("--text-weights", type=FOLDER, help="Folder of a T5 encoder [byte n-grams].")
@click.option("--workers", default=2, show_default=True, help="Threads that decode and encode.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(
    source: Path,
    captions: Path,
    out: Path,
    area_px: int,
    fps: float,
    max_frames: int,
    clips_per_file: int | None,
    validation_share: float,
    max_broken_share: float,
    scores: tuple[ScoreColumn, ...],
    static_share: float,
    static_frames: int | None,
    static_prefix: str,
    codec_weights: Path | None,
    text_weights: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Turn pictures and videos under SOURCE into latents and text embeddings to train on.

    Reads the files that the captions name, samples, resizes and cuts them into clips, encodes
    them, and writes a catalogue and shards. Files that cannot be used are named and left out.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sampling = Sampling(
        fps=fps, max_frames=max_frames, area_px=area_px, clips_per_file=clips_per_file
    )
    config = PrepareConfig(
        sampling=sampling,
        validation_share=validation_share,
        scores=scores,
        static=StaticConfig(share=static_share, frames=static_frames, prefix=static_prefix),
    )
    summary = prepare(
        source,
        captions,
        out,
        config=config,
        codec=_codec(codec_weights),
        text_encoder=_text_encoder(text_weights),
        max_broken_share=max_broken_share,
        workers=workers,
    )
    click.echo(
        json.dumps(dataclasses.asdict(summary), indent=2) if as_json else _text(summary, out)
    )


def _codec(weights: Path | None) -> Codec:
    if weights is None:
        return HaarCodec()
    from scalewright.data.cogvideox import CogVideoXCodec

    return CogVideoXCodec(weights)


def _text_encoder(weights: Path | None) -> TextEncoder:
    if weights is None:
        return ByteNgramEncoder()
    from scalewright.data.t5 import T5Encoder

    return T5Encoder(weights)


def _text(summary: Summary, out: Path) -> str:
    lines = [
        f"{out}: {summary.clips} clips, {summary.new_clips} of them new, "
        f"in {summary.seconds:.1f} s",
        f"  {summary.pictures} pictures, {summary.videos} videos"
        f"{f', {summary.static_clips} of them static' if summary.static_clips else ''}; "
        f"{summary.validation_clips} put aside for validation",
        f"  {summary.latent_positions} latent positions, {summary.text_tokens} text tokens, "
        f"{summary.shard_bytes / 1e6:.1f} MB",
    ]
    if summary.rejected:
        lines.append(f"  {len(summary.rejected)} files left out:")
        lines += _listed([f"{name}: {reason}" for name, reason in summary.rejected])
    if summary.uncaptioned:
        lines.append(f"  {len(summary.uncaptioned)} files without a caption:")
        lines += _listed(summary.uncaptioned)
    return "\n".join(lines)


def _listed(names: list[str]) -> list[str]:
    more = [f"... and {len(names) - SHOWN} more, see --json"] if len(names) > SHOWN else []
    return [f"    {name}" for name in names[:SHOWN] + more]


if __name__ == "__main__":
    command.run(main)
