"""A design as runs: learning rates and batches at each (N, D), and the commands that run them."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from planner.designing.design import Design, Problem
from planner.designing.prior import PowerLaw
from planner.errors import InputError
from planner.fitting.base import Base, read_base
from planner.reading.records import Sweep
from planner.reading.runs import Accounting
from planner.reading.spec import SWEEP_FILE, ReadOptions, read_spec

SPACING = 2.0  # between learning rates, and between batches


@dataclass(frozen=True)
class Setting:
    """One (N, D) of the sweep with its learning rates and batches, None where not known before.

    `tuned` where it carries the whole grid; `runs` is how many there are.
    """

    budget_flops: float
    params: float
    tokens: float
    tuned: bool
    lrs: tuple[float, ...] | None
    batches: tuple[float, ...] | None
    runs: int

    @property
    def flops(self) -> float:
        """Of all its runs."""
        return self.runs * self.budget_flops


def settings(design: Design, problem: Problem, base: Base | None) -> Iterator[Setting]:
    """Every (N, D) of the design, smallest budget and size first.

    Rates and batches lie about the prior's; on the platform rates lie about that of the config,
    which muP scales to every width, and the batch is the config's.
    """
    prior, tuning = problem.prior, problem.tuning
    peak = None if base is None else PowerLaw(peak_rate(base), 0.0, 0.0)
    lr_law = prior.lr if peak is None else peak
    batch_law = prior.batch_tokens if base is None else None
    columns = (design.budgets_flops, design.params, design.tokens, design.runs)
    for flops, n, d, runs in zip(*(column.tolist() for column in columns), strict=True):
        tuned = runs >= tuning.grid
        yield Setting(
            budget_flops=flops,
            params=n,
            tokens=d,
            tuned=tuned,
            lrs=spaced(lr_law.value(n, d), tuning.lrs) if lr_law and tuned else None,
            batches=spaced(batch_law.value(n, d), tuning.batches) if batch_law and tuned else None,
            runs=int(runs),
        )


def spaced(centre: float, number: int) -> tuple[float, ...]:
    """`number` values in steps of 2 about the centre, in proportion."""
    return tuple(centre * SPACING ** (i - (number - 1) / 2) for i in range(number))


def base_of(path: Path) -> Base:
    """The [base] of a sweep.toml without its runs; `InputError` where there is none."""
    found = read_spec(None, ReadOptions(spec=path)).settings
    no_runs = Sweep(
        source=str(path), folder=None, group=None, sha256="", rows=0, runs=(), stopped=(),
        rejections=(), accounting=Accounting(), noise=None, findings=(), settings=found,
    )  # fmt: skip
    base = read_base(no_runs)
    if base is None:
        raise InputError(
            f"{path}: no table [base], from which the sizes come; give the sweep.toml that "
            "jobs/sweep.py wrote, or leave --spec out"
        )
    return base


def peak_rate(base: Base) -> float:
    """The learning rate of the config, at muP's base width."""
    optimizer = base.tables.get("optimizer")
    rate = optimizer.get("lr_peak") if isinstance(optimizer, Mapping) else None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise InputError(
            f"[base.optimizer] lr_peak is {rate!r}; expected a learning rate above 0, about which "
            "the design lays its grid"
        )
    return float(rate)


def sweep_name(path: Path) -> str:
    """The sweep that a sweep.toml belongs to."""
    return path.resolve().parent.name if path.name == SWEEP_FILE else "design"


def commands(planned: Sequence[Setting], base: Base, name: str) -> list[str]:
    """jobs/sweep.py for each budget and grid of rates, cheapest first; all of one sweep.

    Sizes that run once (muP) follow those that show the best rate, and stand at the config's rate.
    """
    width_of = {size.block_params: size.model.width for size in base.ladder}
    told = []
    for (budget, lrs), alike in groupby(planned, key=lambda one: (one.budget_flops, one.lrs)):
        widths = ",".join(str(width_of[round(one.params)]) for one in alike)
        rates = ",".join(f"{rate:.4g}" for rate in lrs or (peak_rate(base),))
        options = ("--name", name, "--widths", widths, "--budgets", f"{budget:.4g}", "--lrs", rates)
        told.append(shlex.join(["jobs/sweep.py", *options]))
    return told
