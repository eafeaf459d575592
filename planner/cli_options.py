"""The options that commands share. Only click is imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
MANY = ("--map", "--where")
COMPARISONS = ("=", "<", ">")


class ManyValues(click.Command):
    """A command whose `--map` and `--where` take several values: `--map params=N loss=val`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_options(args))


def repeat_options(args: list[str]) -> list[str]:
    """`--map a=b c=d PATH` as `--map a=b --map c=d PATH`: what follows and compares, belongs."""
    spread: list[str] = []
    option = None
    for position, arg in enumerate(args):
        previous = args[position - 1] if position else None
        if arg in MANY:
            option = arg
        elif arg.startswith("-"):
            option = None
        elif option and previous != option:
            if any(sign in arg for sign in COMPARISONS):
                spread.append(option)
            else:
                option = None
        spread.append(arg)
    return spread


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how a table is to be read."""
    for option in reversed(
        (
            click.option(
                "--map",
                "maps",
                multiple=True,
                metavar="NAME=COLUMN...",
                help='Columns of the table: params="Model Size" batch_tokens="bs*2048".',
            ),
            click.option(
                "--where",
                multiple=True,
                metavar="CONDITION...",
                help="Rows to use: 'loss<5' model=base.",
            ),
            click.option("--group", metavar="COLUMN", help="Fit each value of this column apart."),
            click.option(
                "--spec",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="TOML file to use in place of a sweep.toml beside the data.",
            ),
        )
    ):
        command = option(command)
    return command


def planning(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what to plan for, and what it costs."""
    for option in reversed(
        (
            click.option(
                "--target",
                "target_flops",
                type=float,
                multiple=True,
                metavar="FLOPS",
                callback=_positive,
                help="Training FLOPs to plan for; repeatable.  [10x, 30x, 100x the largest]",
            ),
            click.option(
                "--gpus",
                type=click.IntRange(min=1),
                metavar="COUNT",
                help="GPUs of the planned run; with --days they make the target.  [8]",
            ),
            click.option(
                "--days",
                type=float,
                metavar="DAYS",
                callback=_positive,
                help="Days of the planned run.",
            ),
            click.option(
                "--gpu", default="H100", show_default=True, help="H100, H200, B200, A100."
            ),
            click.option(
                "--gpu-peak-tflops",
                "peak_tflops",
                type=float,
                metavar="TFLOPS",
                callback=_positive,
                help="Dense bf16 peak of a GPU that has no name here.",
            ),
            click.option(
                "--utilisation",
                type=click.FloatRange(0, 1, min_open=True),
                metavar="SHARE",
                help="Share of the GPU's peak FLOPs that training reaches.  [0.4]",
            ),
            click.option(
                "--price",
                "price_per_gpu_hour",
                type=float,
                metavar="PRICE",
                callback=_positive,
                help="Price of a GPU hour.  [the GPU's]",
            ),
        )
    ):
        command = option(command)
    return command


def fitting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a fit itself and of what it leaves behind."""
    for option in reversed(
        (
            click.option(
                "--resamples",
                type=click.IntRange(min=0),
                default=1000,
                show_default=True,
                help="Resamples for the intervals; 0: none.",
            ),
            click.option("--seed", default=0, show_default=True, help="Seed of the resamples."),
            click.option(
                "--out",
                type=click.Path(path_type=Path, file_okay=False),
                metavar="DIR",
                help="Folder for what is written.  [fit/ beside a sweep.toml, else ./fit]",
            ),
            click.option("--force", is_flag=True, help="Plan in spite of a refusal.  [off]"),
            click.option(
                "--json", "as_json", is_flag=True, help="JSON on stdout, the rest on stderr.  [off]"
            ),
        )
    ):
        command = option(command)
    return command


def _positive(_: click.Context, option: click.Parameter, given: Any) -> Any:
    for value in given if isinstance(given, tuple) else (given,):
        if value is not None and not 0 < value < float("inf"):
            raise click.BadParameter(f"{value} is not a finite number above 0", param=option)
    return given
