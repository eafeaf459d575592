"""The command `planner design`. Only click is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from planner.cli_options import (
    DECADES,
    FLOPS,
    GRID,
    HELP,
    NEXT,
    NOISE,
    PRECISION,
    SEED,
    SMALLEST,
    SWEEPS,
    ManyValues,
    reading,
)
from planner.errors import EXIT_UNTRUSTED, InputError

EXAMPLES = """\b
Examples:
  planner design --cost 1e21 --target 1e22
  planner design --cost 3e20 --target 1e22 --mup --lrs 5 --batches 3 --precision 1.1 --json
  planner design --cost 3e13 --target 1e14 --spec sweeps/demo/sweep.toml --noise 3e-3
  planner design sweeps/demo --next 6 --target 1e13
"""
BEFORE = (
    "cost_flops", "precision", "prior", "budgets", "decades", "lrs", "batches", "mup", "smallest",
    "sweeps", "seed",
)  # fmt: skip
AFTER = ("count", "cap_flops", "per", "maps", "where", "group", "force")
FEWEST_BUDGETS, MOST_BUDGETS = 3, 12


class BudgetCount(click.ParamType):
    """How many budgets: 5, or from 3 to 8 as 3..8."""

    name = "N|N..M"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, dots, high = value.partition("..")
        try:
            found = int(low), int(high if dots else low)
        except ValueError:
            self.fail(f"{value!r}: expected a count such as 5, or a range such as 3..8")
        if not FEWEST_BUDGETS <= found[0] <= found[1] <= MOST_BUDGETS:
            self.fail(f"{value!r}: counts go from {FEWEST_BUDGETS} to {MOST_BUDGETS}")
        return found


@dataclass(frozen=True)
class Told:
    """For people and for machines, and whether the data are to be trusted."""

    text: str
    document: dict[str, Any]
    trusted: bool = True


@click.command(cls=ManyValues, epilog=EXAMPLES, context_settings=HELP)
@click.argument("path", required=False)
@click.option("--cost", "cost_flops", type=FLOPS, metavar="FLOPS", help="What the sweep may cost.")
@click.option(
    "--target",
    "target_flops",
    type=FLOPS,
    metavar="FLOPS",
    help="Training FLOPs of the run to be planned.  [with PATH: 10x the largest]",
)
@click.option(
    "--precision",
    type=PRECISION,
    metavar="FACTOR",
    default=1.2,
    show_default=True,
    help="Wanted: N* at the target within this factor (90%).",
)
@click.option(
    "--prior",
    default="kling",
    metavar="NAME|FILE",
    help="Law to design for: kling (video), chinchilla, or a laws.json of planner fit.  [kling]",
)
@click.option(
    "--noise",
    type=NOISE,
    metavar="SHARE",
    help="Relative standard deviation of a loss.  [3e-4; with PATH: the sweep's]",
)
@click.option(
    "--budgets",
    type=BudgetCount(),
    default="3..8",
    show_default=True,
    help="Counts of budgets to choose from.",
)
@click.option(
    "--decades",
    type=DECADES,
    metavar="DECADES",
    default=2.5,
    show_default=True,
    help="Widest range of budgets to choose from.",
)
@click.option(
    "--lrs",
    type=GRID,
    metavar="COUNT",
    default=4,
    show_default=True,
    help="Learning rates at an (N, D).",
)
@click.option(
    "--batches",
    type=GRID,
    metavar="COUNT",
    default=1,
    show_default=True,
    help="Batches at an (N, D).",
)
@click.option(
    "--mup",
    is_flag=True,
    help="Full grids at the 2 smallest sizes of a budget only; muP serves the rest.  [off]",
)
@click.option(
    "--smallest",
    type=SMALLEST,
    default=1e6,
    metavar="PARAMS",
    help="Smallest model worth training, where no --spec gives the sizes.  [1e6]",
)
@click.option("--next", "count", type=NEXT, metavar="K", help="Runs to add to PATH.")
@click.option(
    "--budget-cap",
    "cap_flops",
    type=FLOPS,
    metavar="FLOPS",
    help="Most that one next run may cost.  [3x the largest]",
)
@click.option(
    "--per",
    type=click.Choice(["flops", "run"]),
    default="run",
    show_default=True,
    help="Choose next runs by what a FLOP or a run tells.",
)
@reading
@click.option(
    "--sweeps",
    type=SWEEPS,
    metavar="COUNT",
    default=400,
    show_default=True,
    help="Sweeps to simulate for each of the best few designs.",
)
@click.option(
    "--seed",
    type=SEED,
    metavar="SEED",
    default=0,
    show_default=True,
    help="Seed of the simulated sweeps.",
)
@click.option("--force", is_flag=True, help="Advise in spite of a refusal: exit 0.  [off]")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, the rest on stderr.  [off]")
@click.pass_context
def design(context: click.Context, path: str | None, as_json: bool, **options: Any) -> None:
    """Say which runs to do: before a sweep, or next.

    Without PATH: the budgets, sizes and learning rates that tell most about the target for --cost,
    chosen on a prior law and confirmed by simulated sweeps. --spec with a [base] (the sweep.toml of
    jobs/sweep.py) takes sizes from the platform's ladder and prints the commands.

    With PATH, a sweep as for `planner fit`: the --next runs that shrink the interval of the best
    size at the target most. Where `planner fit` refuses the data the exit code is 3.
    """
    _check_mode(context, path)
    told = _before(options) if path is None else _after(path, options)
    click.echo(told.text, err=as_json)
    if as_json:
        from planner.showing.results import to_json

        click.echo(to_json(told.document), nl=False)
    if not told.trusted and not options["force"]:
        raise click.exceptions.Exit(EXIT_UNTRUSTED)


def _check_mode(context: click.Context, path: str | None) -> None:
    """An option of the other mode is not passed over in silence."""
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    foreign = [given[name] for name in (AFTER if path is None else BEFORE) if name in given]
    if foreign and path is None:
        raise InputError(f"{', '.join(foreign)}: for a sweep that is there; give its PATH")
    if foreign:
        raise InputError(
            f"{', '.join(foreign)}: for a design before a sweep; leave out PATH ({path}), or these"
        )
    needed = (("cost_flops", "--cost"), ("target_flops", "--target"))
    missing = [flag for name, flag in needed if name not in given] if path is None else []
    if path is not None and "count" not in given:
        missing = ["--next"]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} missing: before a sweep give --cost and --target, after one "
            "PATH and --next"
        )


def _before(options: dict[str, Any]) -> Told:
    from planner.designing.advice import Wish, advise
    from planner.designing.design import Tuning
    from planner.designing.design_results import design_document
    from planner.designing.design_runs import base_of, commands, sweep_name
    from planner.designing.design_text import design_text
    from planner.designing.prior import read_prior

    spec: Path | None = options["spec"]
    base = None if spec is None else base_of(spec)
    wish = Wish(
        cost_flops=options["cost_flops"],
        target_flops=options["target_flops"],
        precision=options["precision"],
        noise=3e-4 if options["noise"] is None else options["noise"],
        budgets=options["budgets"],
        decades=options["decades"],
        smallest_params=options["smallest"],
        tuning=Tuning(options["lrs"], options["batches"], options["mup"]),
        sweeps=options["sweeps"],
        seed=options["seed"],
    )
    advice = advise(wish, read_prior(options["prior"]), base)
    lines = None
    if base is not None and spec is not None:
        lines = commands(advice.settings, base, sweep_name(spec))
    return Told(design_text(advice, lines), design_document(advice, lines))


def _after(path: str, options: dict[str, Any]) -> Told:
    from planner.designing.design_results import next_document
    from planner.designing.design_text import next_text
    from planner.designing.next_advice import NextWish, advise_next
    from planner.designing.next_runs import Per
    from planner.fitting.fit import FitOptions, fit_sweep
    from planner.reading.records import read_sweeps
    from planner.reading.spec import ReadOptions

    read = ReadOptions(*(options[name] for name in ("maps", "where", "group", "spec")))
    sweeps = read_sweeps(path, read)
    if len(sweeps) > 1:
        raise InputError(
            f"{path} holds {len(sweeps)} groups by --group {read.group}; next runs are for one "
            "sweep: choose it with --where"
        )
    wish = NextWish(
        count=options["count"],
        target_flops=options["target_flops"],
        cap_flops=options["cap_flops"],
        noise=options["noise"],
        per=Per(options["per"]),
    )
    # The intervals come from the delta method: nothing needs resampling.
    advice = advise_next(fit_sweep(sweeps[0], FitOptions(resamples=0)), wish)
    return Told(next_text(advice), next_document(advice), advice.trusted)
