#!/usr/bin/env python3
"""Run a grid of small muP models under Ray: one record a run in SWEEPS/NAME/runs.jsonl."""

import sys
from pathlib import Path

# Run the submitted tree, not an older install on the cluster.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
import tomli_w

from scalewright import command
from scalewright.cluster import launch
from scalewright.cluster.trials import run_trials
from scalewright.config import assign, read_toml, to_dict
from scalewright.errors import ConfigError, ScalewrightError
from scalewright.prepare.embedded import ensure_shapes
from scalewright.recipes import SHAPES, recipe
from scalewright.train.inputs import Inputs, open_inputs
from scalewright.train.run import RunConfig
from scalewright.train.trial import Trial, steps_for_budget

EPILOG = """\b
Examples:
  jobs/sweep.py --name demo
  jobs/sweep.py --name big --widths 64,128,256 --budgets 1e12,3e12,1e13 --lrs 4e-3,8e-3,16e-3
"""


class Numbers(click.ParamType):
    """A list such as 1e10,3e10,1e11: positive, different numbers."""

    name = "A,B,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> list[float]:
        if isinstance(value, list):
            return value
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers with commas between them, such as 1e10,3e10")
        if any(not 0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r}: every number must be positive and finite")
        if len(set(numbers)) < len(numbers):
            self.fail(f"{value!r}: a number is there twice")
        return numbers


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--name", default="demo", help="Name of the sweep [demo].")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of sweeps [HOME/sweeps].")
@click.option("--recipe", "recipe_name", default="demo", help="Recipe all trials share [demo].")
@click.option(
    "--widths", type=Numbers(), default="32,48,64,96,128", show_default=True, help="Model widths."
)
@click.option(
    "--budgets",
    type=Numbers(),
    default="3e10,1e11,3e11,1e12",
    show_default=True,
    help="Budgets in FLOPs.",
)
@click.option(
    "--lrs",
    type=Numbers(),
    default="4e-3,8e-3,16e-3,32e-3",
    show_default=True,
    help="Peak learning rates, base (before muP's multipliers).",
)
@click.option("--seeds", type=int, default=1, show_default=True, help="Seeds of every cell.")
def main(
    assignments: Sequence[str],
    name: str,
    out: Path | None,
    recipe_name: str,
    widths: list[float],
    budgets: list[float],
    lrs: list[float],
    seeds: int,
) -> None:
    """Run widths x budgets x learning rates x seeds; what has a record is not run again."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    base = assign(recipe(recipe_name), assignments)
    home = launch.home()
    folder = (out.resolve() if out else home / "sweeps") / name
    data = (home / base.data.path).resolve()
    if fractions := [width for width in widths if width != int(width)]:
        raise ConfigError(f"--widths {fractions}: widths are whole numbers")
    if base.data.path == SHAPES:
        ensure_shapes(data)
    trials = [
        Trial(int(width), budget, lr, base.seed + seed)
        for width, budget, lr, seed in itertools.product(widths, budgets, lrs, range(seeds))
    ]
    if len({trial.key for trial in trials}) < len(trials):
        raise ConfigError("two cells differ by less than six digits; space the grid wider")
    inputs = check(base, trials, data)
    write_settings(folder, base, inputs)
    launch.connect()
    result = run_trials(base, trials, data, folder, lambda line: click.echo(line, err=True))
    click.echo(f"{folder}: {result.ran} runs done now, {result.already} were there before")
    if result.failed:
        raise ScalewrightError(
            f"{len(result.failed)} trials failed ({', '.join(result.failed)}); the first: "
            f"{next(iter(result.failed.values()))}. Run the same command again to try them again"
        )


def check(base: RunConfig, trials: Sequence[Trial], data: Path) -> Inputs:
    """Open the data and refuse, before Ray starts, any cell that could not run."""
    for width in sorted({trial.width for trial in trials}):
        config = replace(base, model=replace(base.model, width=width))
        inputs = open_inputs(config, data)
        steps_for_budget(inputs, min(trial.budget_flops for trial in trials))
    return inputs


def write_settings(folder: Path, base: RunConfig, inputs: Inputs) -> None:
    """Write sweep.toml, which the planner reads; a sweep keeps the base it was begun with."""
    pinned = replace(base.data, codec=inputs.info.codec, text_encoder=inputs.info.text_encoder)
    settings = {"base": to_dict(replace(base, data=pinned)), "clips": clip_sizes(inputs)}
    path = folder / "sweep.toml"
    if path.exists():
        if read_toml(path) != settings:
            raise ConfigError(
                f"{path} was written for other settings or other data; its runs cannot be compared "
                "with new ones. Choose another --name, or go back to the old settings"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".toml.part")
    part.write_text(tomli_w.dumps(settings))
    os.replace(part, path)


def clip_sizes(inputs: Inputs) -> dict[str, list[int]]:
    """The distinct token sizes of the training clips, and how often each occurs."""
    counts = inputs.work.stages[0].order.sizes()
    sizes = sorted(counts)
    return {
        "visual": [visual for visual, _ in sizes],
        "text": [text for _, text in sizes],
        "count": [counts[size] for size in sizes],
    }


if __name__ == "__main__":
    command.run(main)
