"""The options that commands share. Only click is imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
MANY = ("--map", "--where")
COMPARISONS = ("=", "<", ">")


class Within(click.ParamType):
    """A number from `low` to `high`, for an error message: `of` what, with an example.

    The ranges are what runs and GPUs can be with much room to spare; beyond them are slips of the
    hand, and numbers that arithmetic does not carry.
    """

    name = "number"

    def __init__(self, low: float, high: float, of: str, whole: bool = False) -> None:
        self.low, self.high, self.of, self.whole = low, high, of, whole

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = (click.INT if self.whole else click.FLOAT).convert(value, param, ctx)
        if self.low <= number <= self.high:
            return number
        return self.fail(
            f"{value} is not in the range {self.low:.15g} to {self.high:.15g}: give {self.of}",
            param,
            ctx,
        )


FLOPS = Within(1, 1e32, "the training FLOPs of a run or a sweep, such as 1e22")
SEED = Within(0, 2**32 - 1, "a whole number such as 0", whole=True)
DAYS = Within(1e-3, 3650, "days of training, such as 14")
GPUS = Within(1, 1_000_000, "a count of GPUs, such as 64", whole=True)
PEAK_TFLOPS = Within(0.1, 1e6, "the dense bf16 peak of one GPU in TFLOP/s, such as 989")
UTILISATION = Within(0.001, 1, "the share of the peak that training reaches, such as 0.4")
PRICE = Within(1e-4, 1e6, "the price of one GPU for one hour, such as 2.5")
RESAMPLES = Within(0, 100_000, "a count such as 1000, or 0 for no intervals", whole=True)
PRECISION = Within(1.001, 1000, "a factor above 1, such as 1.2 for x/÷1.2")
NOISE = Within(1e-9, 1, "the relative standard deviation of a loss between seeds, such as 0.002")
DECADES = Within(0.5, 6, "decades between the smallest and the largest budget, such as 2.5")
GRID = Within(1, 100, "a count of settings, such as 4", whole=True)
SMALLEST = Within(1, 1e13, "parameters of a model, such as 1e6")
NEXT = Within(1, 10_000, "a count of runs, such as 6", whole=True)
SWEEPS = Within(20, 100_000, "a count of simulated sweeps, such as 400", whole=True)


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
                type=FLOPS,
                multiple=True,
                metavar="FLOPS",
                help="Training FLOPs to plan for; repeatable.  [10x, 30x, 100x the largest]",
            ),
            click.option(
                "--gpus",
                type=GPUS,
                metavar="COUNT",
                help="GPUs of the planned run; with --days they make the target.  [8]",
            ),
            click.option(
                "--days",
                type=DAYS,
                metavar="DAYS",
                help="Days of the planned run.",
            ),
            click.option(
                "--gpu", default="H100", show_default=True, help="H100, H200, B200, A100."
            ),
            click.option(
                "--gpu-peak-tflops",
                "peak_tflops",
                type=PEAK_TFLOPS,
                metavar="TFLOPS",
                help="Dense bf16 peak of a GPU that has no name here.",
            ),
            click.option(
                "--utilisation",
                type=UTILISATION,
                metavar="SHARE",
                help="Share of the GPU's peak FLOPs that training reaches.  [0.4]",
            ),
            click.option(
                "--price",
                "price_per_gpu_hour",
                type=PRICE,
                metavar="PRICE",
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
                type=RESAMPLES,
                metavar="COUNT",
                default=1000,
                show_default=True,
                help="Resamples for the intervals; 0: none.",
            ),
            click.option(
                "--seed",
                type=SEED,
                metavar="SEED",
                default=0,
                show_default=True,
                help="Seed of the resamples.",
            ),
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
