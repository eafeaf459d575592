"""The `planner` command. Only click is imported here: `planner --help` must be there at once."""

import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

from planner.cli_design import design
from planner.cli_options import HELP, ManyValues, fitting, planning, reading
from planner.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_UNTRUSTED,
    InputError,
    PlannerError,
)

FIT_EXAMPLES = """\b
Examples:
  planner fit sweeps/demo
  planner fit runs.csv --map params="Model Size" flops="Training FLOP" --target 1e22 --json
  planner fit mlflow:my-sweep --gpus 64 --days 14
"""
REPORT_EXAMPLES = """\b
Examples:
  planner report sweeps/demo
  planner report runs.csv --group model --out report/
"""


@click.group(context_settings=HELP)
def cli() -> None:
    """Scaling laws from small runs, and the hyperparameters they choose for a large one.

    \b
    Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 fit not trustworthy, 130 interrupted.
    """


cli.add_command(design)


@cli.command(cls=ManyValues, epilog=FIT_EXAMPLES)
@click.argument("path")
@reading
@planning
@fitting
def fit(path: str, **options: Any) -> None:
    """Fit scaling laws to the sweep at PATH and plan a run.

    PATH is a folder with one table or a file of JSONL, CSV or Parquet, or mlflow:EXPERIMENT. Writes
    laws.json (everything) and, for a sweep of this platform, plan.toml (the first target's, for
    jobs/pretrain.py --plan).
    """
    _run(path, options, with_report=False)


@cli.command(cls=ManyValues, epilog=REPORT_EXAMPLES)
@click.argument("path")
@reading
@planning
@fitting
def report(path: str, **options: Any) -> None:
    """Fit as `planner fit` does, and write report.html with every figure.

    One file that needs no network; the figures lie beside it as PNG and SVG.
    """
    _run(path, options, with_report=True)


def _run(path: str, options: dict[str, Any], with_report: bool) -> None:
    from planner.planning.cost import hardware_of
    from planner.reading.spec import ReadOptions
    from planner.session import Request, run

    gpus = ("peak_tflops", "utilisation", "price_per_gpu_hour", "gpus")
    if options["days"] is not None and options["gpus"] is None:
        raise click.UsageError("--days needs --gpus: together they make the target")
    request = Request(
        source=path,
        read=ReadOptions(*(options[name] for name in ("maps", "where", "group", "spec"))),
        target_flops=options["target_flops"],
        days=options["days"],
        hardware=hardware_of(options["gpu"], **{name: options[name] for name in gpus}),
        resamples=options["resamples"],
        seed=options["seed"],
        out=options["out"],
        force=options["force"],
        command=shlex.join(["planner", *sys.argv[1:]]),
    )
    outcome = run(request, with_report)
    click.echo(outcome.summary, err=options["as_json"])
    if options["as_json"]:
        click.echo(outcome.json, nl=False)
    if not outcome.trusted:
        raise click.exceptions.Exit(EXIT_UNTRUSTED)


def main() -> None:
    """Entry point: run, and turn every way to fail into its exit code."""
    sys.exit(_exit_code(lambda: cli.main(prog_name="planner", standalone_mode=False)))


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        return run() or 0
    except click.Abort:
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_INPUT
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_INPUT
    except (PlannerError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_FAILED
