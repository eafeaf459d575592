"""What goodput a run of N nodes has to expect, and how many spares it needs.

    python -m scalewright.cluster.simulate --nodes 64 --spares 4 --elastic 0.75 --trace FILE

Replays a trace of node faults, or faults at random, with the policies of real runs; see
docs/goodput.md for the model. Intervals hold 90 % of the seeds.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from scalewright.cluster.node_faults import DAY_S, Rates, Trace, read_trace
from scalewright.cluster.simulation import Job, Outcome, simulate
from scalewright.command import run
from scalewright.errors import ConfigError
from scalewright.train.interval import young_s

LEAST_INTERVAL_S = 300.0
DAYS = 348
WITHIN = (0.05, 0.95)  # the quantiles over seeds that an interval spans
_CLOSE = 0.001  # of goodput: what the last spares, up to one for every node, are worth


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, and the interval that holds 90 % of them."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:8.3%}  [{self.low:.3%}, {self.high:.3%}]"


@dataclass(frozen=True)
class Found:
    """The fewest spares with which 19 of 20 runs reach `goodput`, or None if no number does.

    `ceiling`: what 19 of 20 reach with a spare for every node. `enough`: the fewest spares that
    come within a tenth of a percent of that; what is missing then is not for want of nodes.
    """

    goodput: float
    spares: int | None
    ceiling: float
    enough: int


def run_seeds(
    job: Job, spares: int, faults: Trace | Rates, duration_s: float, seeds: int
) -> list[Outcome]:
    """One outcome a seed. A seed's first nodes are the same however many spares there are."""
    return [
        simulate(job, faults.draw(job.nodes + spares, seed, duration_s), duration_s, seed)
        for seed in range(seeds)
    ]


def estimate(values: Sequence[float]) -> Estimate:
    low, high = np.quantile(values, WITHIN)
    return Estimate(float(np.mean(values)), float(low), float(high))


def fewest_spares(goodput: float, nodes: int, goodput_with: Callable[[int], float]) -> Found:
    """Search the fewest spares; `goodput_with` tells what 19 of 20 runs reach with so many."""
    if not 0 < goodput < 1:
        raise ConfigError(f"--find-spares {goodput:g}: a goodput between 0 and 1, such as 0.99")
    ceiling = goodput_with(nodes)
    enough = _fewest(nodes, lambda spares: goodput_with(spares) >= ceiling - _CLOSE)
    spares = None
    if ceiling >= goodput:
        spares = _fewest(nodes, lambda spares: goodput_with(spares) >= goodput)
    return Found(goodput, spares, ceiling, enough)


def _fewest(most: int, suffices: Callable[[int], bool]) -> int:
    """The least number that suffices, of which `most` does, by doubling and halving."""
    if suffices(0):
        return 0
    too_few, enough = 0, 1
    while enough < most and not suffices(enough):
        too_few, enough = enough, min(2 * enough, most)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means and intervals over the seeds, as plain values."""
    names = ("effective_time", "goodput", "availability")
    badput = {
        cause: estimate([outcome.badput[cause] for outcome in outcomes])
        for cause in outcomes[0].badput
    }
    return {
        **{name: estimate([getattr(o, name) for o in outcomes]) for name in names},
        "badput": dict(sorted(badput.items(), key=lambda item: -item[1].mean)),
        "failures": estimate([o.failures for o in outcomes]),
    }


def as_json(numbers: dict[str, Any]) -> dict[str, Any]:
    """Means under the plain names, so that they read like a real run's; intervals apart."""
    badput = numbers["badput"]
    flat = {name: value for name, value in numbers.items() if name != "badput"}
    return {
        **{name: value.mean for name, value in flat.items()},
        "badput": {cause: value.mean for cause, value in badput.items()},
        "intervals": {
            **{name: [value.low, value.high] for name, value in flat.items()},
            "badput": {cause: [value.low, value.high] for cause, value in badput.items()},
        },
    }


def as_text(numbers: dict[str, Any], found: Found | None) -> str:
    rows = [f"{name:<15}{numbers[name]}" for name in ("effective_time", "goodput", "availability")]
    rows.append("badput:")
    rows += [f"  {cause:<13}{value}" for cause, value in numbers["badput"].items() if value.high]
    failures = numbers["failures"]
    rows.append(f"failures       {failures.mean:8.1f}  [{failures.low:.0f}, {failures.high:.0f}]")
    if found is not None:
        rows.append(_found_text(found))
    return "\n".join(rows)


def _found_text(found: Found) -> str:
    best = f"{found.enough} spares come within {_CLOSE:.1%} of the most, {found.ceiling:.3%}"
    if found.spares is None:
        return (
            f"spares         no number reaches a goodput of {found.goodput:.3%}: {best}; what is "
            "missing is the cost of each failure, and not nodes"
        )
    return f"spares         {found.spares} for a goodput of {found.goodput:.3%}; {best}"


@click.command(help=__doc__)
@click.option("--nodes", type=click.IntRange(1), required=True, help="Nodes the run wants.")
@click.option("--spares", type=click.IntRange(0), default=0, show_default=True)
@click.option("--elastic", default=1.0, show_default=True, help="Share it may shrink to.")
@click.option("--trace", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--trace-nodes", default=400, show_default=True, help="Nodes the trace watched.")
@click.option("--faults-per-1000-node-days", default=4.2, show_default=True, help="No trace.")
@click.option("--burst-shape", default=1.0, show_default=True, help="1: Poisson; 0.3: bursts.")
@click.option("--days", type=float, help=f"Of the run; the trace's, or {DAYS}.")
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--interval-s", type=float, help="Between saves; Young's, at least 300.")
@click.option("--stall-s", default=5.0, show_default=True, help="Training stands still to save.")
@click.option("--detect-s", default=60.0, show_default=True)
@click.option("--restart-s", default=180.0, show_default=True, help="Decision to first step.")
@click.option("--cooldown-s", default=1800.0, show_default=True, help="Before it grows.")
@click.option("--max-restarts", default=3, show_default=True, help="Without a checkpoint.")
@click.option("--caught", default=0.5, show_default=True, help="Bad repairs preflight finds.")
@click.option("--human-s", default=4 * 3600.0, show_default=True, help="To begin by hand.")
@click.option("--find-spares", type=float, help="The fewest spares for this goodput.")
@click.option("--json", "json_", is_flag=True, help="Print the numbers as JSON.")
def main(
    nodes: int, spares: int, elastic: float, trace: Path | None, trace_nodes: int,
    faults_per_1000_node_days: float, burst_shape: float, days: float | None, seeds: int,
    interval_s: float | None, stall_s: float, detect_s: float, restart_s: float, caught: float,
    cooldown_s: float, max_restarts: int, human_s: float, find_spares: float | None, json_: bool,
) -> None:  # fmt: skip
    faults: Trace | Rates = Rates(faults_per_1000_node_days, burst_shape)
    if trace is not None:
        faults = read_trace(trace, trace_nodes)
    if interval_s is None:
        interval_s = best_interval_s(nodes, stall_s, faults.faults_per_node_s)
    job = Job(
        nodes=nodes, min_nodes=least_nodes(nodes, elastic), interval_s=interval_s,
        stall_s=stall_s, detect_s=detect_s, restart_s=restart_s, cooldown_s=cooldown_s,
        max_restarts=max_restarts, caught=caught, human_s=human_s,
    )  # fmt: skip
    duration_s = _duration_s(days, faults)
    found = None
    if find_spares is not None:
        reached = partial(reached_goodput, job, faults, duration_s, seeds)
        found = fewest_spares(find_spares, nodes, reached)
        spares = found.enough if found.spares is None else found.spares
    numbers = summary(run_seeds(job, spares, faults, duration_s, seeds))
    asked = {
        "nodes": nodes, "spares": spares, "min_nodes": job.min_nodes, "interval_s": interval_s,
        "days": duration_s / DAY_S, "seeds": seeds,
    }  # fmt: skip
    if json_:
        told = {**as_json(numbers), **asked, "found": asdict(found) if found else None}
        click.echo(json.dumps(told, indent=1))
        return
    click.echo(
        f"{nodes} nodes, at least {job.min_nodes}, and {spares} spares for "
        f"{asked['days']:g} days, a checkpoint each {interval_s:.0f} s; {seeds} seeds\n"
        + as_text(numbers, found)
    )


def least_nodes(nodes: int, elastic: float) -> int:
    """Nodes that the run can shrink to."""
    if not 0 < elastic <= 1:
        raise ConfigError(f"--elastic {elastic:g}: a share of the nodes, above 0 and at most 1")
    return math.ceil(elastic * nodes - 1e-9)


def best_interval_s(nodes: int, stall_s: float, faults_per_node_s: float) -> float:
    """Young's interval of a run of `nodes` nodes, at least five minutes."""
    if not 0 <= stall_s < math.inf:
        raise ConfigError(f"--stall-s {stall_s:g}: at least 0, and finite")
    return max(LEAST_INTERVAL_S, young_s(stall_s, 1 / (nodes * faults_per_node_s)))


def reached_goodput(
    job: Job, faults: Trace | Rates, duration_s: float, seeds: int, spares: int
) -> float:
    """The goodput that 19 of 20 runs reach with so many spares."""
    outcomes = run_seeds(job, spares, faults, duration_s, seeds)
    return estimate([outcome.goodput for outcome in outcomes]).low


def _duration_s(days: float | None, faults: Trace | Rates) -> float:
    if days is None:
        return faults.length_s if isinstance(faults, Trace) else DAYS * DAY_S
    if not 0 < days < math.inf:
        raise ConfigError(f"--days {days}: more than 0, and finite")
    return days * DAY_S


if __name__ == "__main__":
    run(main)
