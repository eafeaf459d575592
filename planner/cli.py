"""The `planner` command. Only click is imported here: `planner --help` must be there at once."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.errors import (
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_UNTRUSTED,
    InputError,
    PlannerError,
)

if TYPE_CHECKING:
    from planner.fit import Fit
    from planner.plan import Outcome

OUTPUTS = ("laws.json", "plan.toml", "isoflop.png", "isoflop.svg", "laws.png", "laws.svg")
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
FIT_EXAMPLES = """\b
Examples:
  planner fit sweeps/demo
  planner fit sweeps/demo --target 3e12 --target 1e13 --json > laws.json
"""


@click.group(context_settings=HELP)
def cli() -> None:
    """Scaling laws from small runs, and the hyperparameters they choose for a large one.

    \b
    Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 fit not trustworthy, 130 interrupted.
    """


def _positive_flops(_: click.Context, option: click.Parameter, values: tuple[float, ...]) -> Any:
    for value in values:
        if not 0 < value < float("inf"):
            raise click.BadParameter(
                f"{value} is not a finite number of FLOPs above 0", param=option
            )
    return values


@cli.command(epilog=FIT_EXAMPLES)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    type=float,
    multiple=True,
    metavar="FLOPS",
    callback=_positive_flops,
    help="Training FLOPs to plan for; repeatable.  [10x largest]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for what is written.  [fit/ in the sweep's folder]",
)
@click.option("--force", is_flag=True, help="Plan beyond 300x the largest budget.  [off]")
@click.option(
    "--json", "as_json", is_flag=True, help="laws.json on stdout, the rest on stderr.  [off]"
)
def fit(
    path: Path, targets: tuple[float, ...], out: Path | None, force: bool, as_json: bool
) -> None:
    """Fit scaling laws to the sweep at PATH and plan a run.

    PATH is a sweep folder (runs.jsonl and sweep.toml), a runs.jsonl, or a folder with one sweep.
    Writes laws.json (everything), plan.toml (for jobs/pretrain.py --plan; the first target's)
    and the figures isoflop and laws (PNG, SVG).
    """
    from planner.fit import fit_sweep
    from planner.plan import Refusal, default_target, make_plan
    from planner.records import read_sweep

    sweep = read_sweep(path)
    result = fit_sweep(sweep)
    wanted = targets or (default_target(result),)
    outcomes = [make_plan(result, target, force) for target in wanted]
    written = _write(result, outcomes, out or sweep.folder / "fit")
    _show(result, outcomes, written, as_json)
    if any(isinstance(outcome, Refusal) for outcome in outcomes):
        raise click.exceptions.Exit(EXIT_UNTRUSTED)


def _write(result: "Fit", outcomes: "list[Outcome]", folder: Path) -> list[Path]:
    """Write everything into `folder`; what an earlier fit left there does not outlive this one."""
    from planner.figures import write_figures
    from planner.plan import Plan
    from planner.results import document, plan_tables, write_json, write_toml

    folder.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    written = [folder / "laws.json"]
    write_json(written[0], document(result, outcomes))
    first = outcomes[0]
    if isinstance(first, Plan):
        written.append(folder / "plan.toml")
        write_toml(written[-1], plan_tables(first, result))
    return written + write_figures(result, outcomes, folder)


def _show(result: "Fit", outcomes: "list[Outcome]", written: list[Path], as_json: bool) -> None:
    from planner.tables import summary

    click.echo(summary(result, outcomes), err=as_json)
    click.echo(f"\nWritten: {', '.join(map(str, written))}", err=as_json)
    if as_json:
        click.echo(written[0].read_text(encoding="utf-8"), nl=False)


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
