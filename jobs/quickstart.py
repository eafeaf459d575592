#!/usr/bin/env python3
"""All of Scalewright on one machine: clips, latents, sweep, fit, plan, training, videos."""

import sys
from pathlib import Path

# Run this tree, not an older install.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import click
import torch

from scalewright import command
from scalewright.cluster.launch import home
from scalewright.config import merge, read_toml
from scalewright.errors import ScalewrightError
from scalewright.model.mup import meta_model
from scalewright.prepare.shapes import render_shapes
from scalewright.recipes import demo
from scalewright.train.checkpoint import load_weights
from scalewright.train.inputs import open_inputs
from scalewright.train.judge import Judgement, judge
from scalewright.train.manifest import CHECKPOINTS, newest_verified
from scalewright.train.place import SNAPSHOT

NAME = "quickstart"
PATIENCE_S = 60
WIDTHS, BUDGETS, LRS = "48,64,96,128", "3e10,1e11,3e11", "8e-3,16e-3,32e-3"
TARGET_FLOPS = "6e12"
PROMPTS = (
    ("a red circle moves right on a dark background", 17),
    ("a yellow square moves up on a blue background", 17),
    ("a green triangle on a white background", 1),
)


@dataclass(frozen=True)
class Stage:
    """One command of the path, as a user would type it, and how long it took."""

    title: str
    words: tuple[str, ...]

    def run(self, folder: Path) -> float:
        """Run the command in `folder`; its output goes to this terminal."""
        click.secho(f"\n== {self.title}\n$ {shlex.join(self.words)}", bold=True, err=True)
        begin_s = time.monotonic()
        script, *arguments = self.words
        program = [str(ROOT / script)] if script.startswith("jobs/") else ["-m", script]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2])}
        code = _call([sys.executable, *program, *arguments], folder, environment)
        if code == command.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise ScalewrightError(
                f"{self.title}: {shlex.join(self.words)} ended with {code}; its message is above. "
                "Run the quickstart again to go on from there"
            )
        return time.monotonic() - begin_s


def _call(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command to its end; an interrupt is passed on, and waited for while it tidies up.

    In a session of its own it hears of Ctrl-C once, from here; twice would mean "at once" to it.
    """
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait(PATIENCE_S)
            raise


def stages() -> list[Stage]:
    """The commands of the path, in order."""
    data, sweep, run = f"runs/{NAME}/data", f"runs/{NAME}/sweep", f"runs/{NAME}"
    media = f"runs/{NAME}/media"
    samples = [
        Stage(
            f"Sample {index}",
            ("jobs/sample.py", prompt, "--run", run, "--frames", str(frames), "--out",
             f"{run}/prompt-{index}.{'png' if frames == 1 else 'mp4'}"),
        )
        for index, (prompt, frames) in enumerate(PROMPTS)
    ]  # fmt: skip
    return [
        Stage(
            "Encode the clips into latents",
            ("jobs/prepare.py", media, "--captions", f"{media}/captions.csv", "--out", data),
        ),
        Stage(
            "Sweep small muP models",
            ("jobs/sweep.py", "--out", f"runs/{NAME}", "--name", "sweep", "--widths", WIDTHS,
             "--budgets", BUDGETS, "--lrs", LRS, f"data.path={data}"),
        ),
        Stage(
            "Fit the laws and plan a run", ("planner", "report", sweep, "--target", TARGET_FLOPS)
        ),
        Stage(
            "Train the planned model on two workers",
            ("jobs/pretrain.py", "--plan", f"{sweep}/fit/plan.toml", f"name={NAME}",
             "--workers", "2"),
        ),
        *samples,
    ]  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the whole path on rendered moving shapes, in about ten minutes on two cores.

    Everything is written to HOME/runs/quickstart; what is done already is not done again.
    """
    folder = home() / "runs" / NAME
    begin_s = time.monotonic()
    if not (folder / "media" / "captions.csv").exists():
        render_shapes(folder / "media", videos=240, pictures=160, seed=0)
    times_s = {"Render the clips": time.monotonic() - begin_s}
    for stage in stages():
        times_s[stage.title] = stage.run(home())
    judgement = judge_run(folder)
    report(folder, judgement, times_s)
    if not judgement.learnt:
        raise ScalewrightError(
            "the run has not learnt its captions: its losses above must be below those without text"
        )


def judge_run(folder: Path) -> Judgement:
    """Load the trained model into this process and hold it against text-free predictions."""
    config = merge(demo(), read_toml(folder / "config.toml"), where="config.toml")
    found = newest_verified(folder / CHECKPOINTS)
    if found is None:
        raise ScalewrightError(f"{folder}: no checkpoint that verifies; run the quickstart again")
    model = meta_model(config.model).to_empty(device=torch.device("cpu"))
    load_weights(found[0], model)
    inputs = open_inputs(config, home() / config.data.path, folder / SNAPSHOT)
    training = inputs.read(inputs.work.stages[0].order.entries())
    validation = inputs.read(inputs.work.stages[0].validation)
    return judge(folder, config, model, training, validation, inputs.null_text)


def report(folder: Path, judgement: Judgement, times_s: dict[str, float]) -> None:
    """Print what was reached and where to look, and keep it as report.json."""
    minutes = sum(times_s.values()) / 60
    (folder / "report.json").write_text(
        json.dumps({"losses": asdict(judgement), "times_s": times_s}, indent=1)
    )
    lines: Sequence[str] = (
        "",
        *(f"{seconds:7.1f} s  {title}" for title, seconds in times_s.items()),
        "",
        f"training loss                   {judgement.train:.4f}",
        f"best linear without text        {judgement.linear:.4f}  "
        f"(the run is {1 - judgement.train / judgement.linear:.1%} below)",
        f"validation loss, own caption    {judgement.own_text:.4f}",
        f"  with another clip's caption   {judgement.other_text:.4f}",
        f"  without a caption             {judgement.no_text:.4f}",
        "",
        f"videos and pictures   {folder}/prompt-*.mp4, prompt-*.png, samples/",
        f"laws and the plan     {folder}/sweep/fit/report.html",
        f"the run in MLflow     mlflow ui --backend-store-uri sqlite:///{home()}/mlflow.db",
        f"quickstart done in {minutes:.1f} minutes",
    )
    click.echo("\n".join(lines))


if __name__ == "__main__":
    command.run(main)
