#!/usr/bin/env python3
"""Goodput, spares and checkpoint interval of runs of 16 to 4,096 nodes on a real fault trace.

    benchmarks/simulate_fleet.py TRACE > benchmarks/simulate_fleet-MACHINE.md

TRACE is fault_trace.json of github.com/stepfun-ai/InfiniteHBD-Trace. Beside it: the simulator
against renewal theory, where faults come at random, and against a simulation of the same trace that
was written apart from it, with fixed policies.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import math
import time
from dataclasses import replace
from functools import partial

import click

from scalewright.cluster.node_faults import DAY_S, Rates, Trace, read_trace
from scalewright.cluster.simulate import (
    Estimate,
    best_interval_s,
    estimate,
    fewest_spares,
    least_nodes,
    reached_goodput,
    run_seeds,
)
from scalewright.cluster.simulation import Job, Outcome

TRACE_NODES = 400
# Seeds by size: what a few minutes allow.
SIZES = {16: 20, 32: 20, 64: 20, 128: 20, 256: 10, 512: 10, 1024: 5, 2048: 3, 4096: 2}
FIXED = 256  # up to so many nodes also at a fixed size
SEARCHED = 1024  # up to so many nodes spares are searched; larger runs get the same share of them
CAUSES = ("checkpoint", "recompute", "restart", "detect", "fewer_nodes", "queue", "stopped")

# (nodes, spares): goodput at a fixed size and elastic down to 75 %, as the other simulation has it.
OTHERS = {
    (16, 0): (0.70, 0.975), (16, 1): (0.935, 0.994), (16, 2): (0.982, 0.998),
    (64, 0): (0.31, 0.973), (64, 4): (0.923, 0.995), (64, 8): (0.994, 0.998),
    (128, 0): (0.118, 0.970), (128, 8): (0.923, 0.993), (128, 16): (0.994, 0.995),
}  # fmt: skip


def job_of(nodes: int, elastic: float, faults: Trace | Rates) -> Job:
    """A run with the defaults of the command."""
    interval_s = best_interval_s(nodes, 5.0, faults.faults_per_node_s)
    return Job(nodes=nodes, min_nodes=least_nodes(nodes, elastic), interval_s=interval_s)


def told(value: Estimate) -> str:
    return f"{value.mean:.2%} [{value.low:.2%}, {value.high:.2%}]"


def of(outcomes: list[Outcome], name: str) -> str:
    return told(estimate([getattr(outcome, name) for outcome in outcomes]))


def table(*head: str) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def enough(job: Job, trace: Trace, seeds: int) -> tuple[int, list[Outcome]]:
    """The fewest spares beyond which more bring next to nothing, and the runs with them."""
    reached = partial(reached_goodput, job, trace, trace.length_s, seeds)
    spares = fewest_spares(0.99, job.nodes, reached).enough
    return spares, run_seeds(job, spares, trace, trace.length_s, seeds)


def sizes(trace: Trace) -> None:
    print("\n## 16 to 4,096 nodes\n")
    print("Spares: the fewest with which 19 of 20 runs come within 0.1 % of the goodput that a")
    print("spare for every node would give, at a size that may shrink to 75 %, and at a fixed one;")
    print(f"above {SEARCHED:,} nodes the share of {SEARCHED:,}.")
    table("nodes", "interval", "spares, elastic", "effective time", "goodput", "availability",
          "failures", "spares, fixed", "goodput, fixed", "seeds")  # fmt: skip
    causes: dict[int, list[str]] = {}
    share = 0.0
    for nodes, seeds in SIZES.items():
        elastic = job_of(nodes, 0.75, trace)
        if nodes <= SEARCHED:
            spares, outcomes = enough(elastic, trace, seeds)
            share = spares / nodes
        else:
            spares = round(share * nodes)
            outcomes = run_seeds(elastic, spares, trace, trace.length_s, seeds)
        fixed = ["", ""]
        if nodes <= FIXED:
            count, others = enough(job_of(nodes, 1.0, trace), trace, seeds)
            fixed = [str(count), of(others, "goodput")]
        failures = estimate([outcome.failures for outcome in outcomes]).mean
        row(nodes, f"{elastic.interval_s:.0f} s", spares, of(outcomes, "effective_time"),
            of(outcomes, "goodput"), of(outcomes, "availability"), f"{failures:.0f}", *fixed,
            seeds)  # fmt: skip
        causes[nodes] = [
            f"{estimate([outcome.badput[cause] for outcome in outcomes]).mean:.3%}"
            for cause in CAUSES
        ]
    print("\nWhere the rest goes (elastic, with these spares):")
    table("nodes", *CAUSES)
    for nodes, shares in causes.items():
        row(nodes, *shares)


def target(trace: Trace) -> None:
    print("\n## 64 nodes, elastic down to 75 %\n")
    print("Twenty seeds; the target is an effective time of 99 % with 4 spares.")
    table("spares", "effective time", "goodput", "worst effective time of a seed")
    for spares in (0, 1, 2, 4, 8):
        outcomes = run_seeds(job_of(64, 0.75, trace), spares, trace, trace.length_s, 20)
        worst = min(outcome.effective_time for outcome in outcomes)
        row(spares, of(outcomes, "effective_time"), of(outcomes, "goodput"), f"{worst:.2%}")


def few_spares(trace: Trace) -> None:
    print("\n## 1,024 nodes with fewer spares\n")
    print("Elastic down to 75 %, 5 seeds. Missing: the share lost for want of nodes.")
    table("spares", "effective time", "goodput", "missing")
    for spares in (0, 16, 32, 48, 64, 83):
        outcomes = run_seeds(job_of(1024, 0.75, trace), spares, trace, trace.length_s, 5)
        missing = [outcome.badput["fewer_nodes"] + outcome.badput["queue"] for outcome in outcomes]
        row(spares, of(outcomes, "effective_time"), of(outcomes, "goodput"),
            told(estimate(missing)))  # fmt: skip


def levers(trace: Trace) -> None:
    print("\n## What a change is worth\n")
    print("Goodput at 64 nodes with 4 spares and at 1,024 with 60, elastic; 5 seeds.")
    table("change", "64 nodes", "1,024 nodes")
    base = [(job_of(nodes, 0.75, trace), spares) for nodes, spares in ((64, 4), (1024, 60))]
    changes: dict[str, dict[str, float]] = {
        "none": {},
        "restart in 60 s, not 180 s": {"restart_s": 60.0},
        "a hang is noticed after 640 s, not 60 s": {"detect_s": 640.0},
        "a person begins each attempt, within 4 h": {"max_restarts": 0},
        "ten restarts without a checkpoint, not 3": {"max_restarts": 10},
        "the preflight finds no bad repair": {"caught": 0.0},
        "the preflight finds every bad repair": {"caught": 1.0},
    }
    for name, change in changes.items():
        cells = []
        for job, spares in base:
            changed = replace(job, **change)  # type: ignore[arg-type]
            cells.append(of(run_seeds(changed, spares, trace, trace.length_s, 5), "goodput"))
        row(name, *cells)
    cells = []
    for job, spares in base:
        interval_s = best_interval_s(job.nodes, 0.5, trace.faults_per_node_s)
        changed = replace(job, stall_s=0.5, interval_s=interval_s)
        cells.append(of(run_seeds(changed, spares, trace, trace.length_s, 5), "goodput"))
    row("a save stalls for 0.5 s, not 5 s, and its interval", *cells)


def theory() -> None:
    print("\n## Against renewal theory\n")
    print(
        "Poisson faults, a spare for every node, fixed size, 100 days, 10 seeds, failures without"
    )
    print("end. Expected: T / (exp(λ(T + C)) - 1) over 1/λ + E[recovery], λ as it fell out.")
    table("nodes", "faults per 1,000 node-days", "expected goodput", "simulated", "differs by")
    for nodes, per_1000 in ((16, 40.0), (64, 4.2), (64, 40.0), (256, 20.0)):
        faults = Rates(per_1000)
        job = replace(job_of(nodes, 1.0, faults), max_restarts=1000)
        outcomes = run_seeds(job, nodes, faults, 100 * DAY_S, 10)
        failures = sum(outcome.failures for outcome in outcomes)
        rate = failures / (10 * 100 * DAY_S - failures * job.detect_s)
        kept_s = job.interval_s / math.expm1(rate * (job.interval_s + job.stall_s))
        once_s = job.detect_s - math.expm1(-rate * job.restart_s) / rate
        expected = kept_s / (1 / rate + once_s * math.exp(rate * job.restart_s))
        mean = estimate([outcome.goodput for outcome in outcomes]).mean
        row(nodes, per_1000, f"{expected:.3%}", of(outcomes, "goodput"), f"{mean - expected:+.3%}")


def others(trace: Trace) -> None:
    print("\n## Against another simulation of the trace\n")
    print("Goodput with a save each 30 min that stalls nothing, as there; 20 seeds.")
    table("nodes", "spares", "fixed, there", "fixed", "elastic, there", "elastic")
    for (nodes, spares), (fixed, elastic) in OTHERS.items():
        cells = []
        for share in (1.0, 0.75):
            job = replace(job_of(nodes, share, trace), interval_s=1800.0, stall_s=0.0)
            cells.append(of(run_seeds(job, spares, trace, trace.length_s, 20), "goodput"))
        row(nodes, spares, f"{fixed:.1%}", cells[0], f"{elastic:.1%}", cells[1])
    print(
        "\nA run of a fixed size waits out whole repairs: a few long ones decide, so seeds differ."
    )


@click.command(help=__doc__)
@click.argument("trace", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(trace: Path) -> None:
    begin_s = time.process_time()
    faults = read_trace(trace, TRACE_NODES)
    print("# Runs on fleets that fail, simulated\n")
    print(f"The fault trace of {TRACE_NODES} nodes over {faults.length_s / DAY_S:.0f} days,")
    print(f"{faults.faults_per_node_s * DAY_S * 1000:.2f} faults per 1,000 node-days; histories of")
    print(
        "nodes drawn with replacement. Intervals hold 90 % of the seeds. Unless said otherwise: a"
    )
    print("fault is noticed in 60 s, a restart takes 180 s, a save stalls for 5 s.")
    target(faults)
    others(faults)
    theory()
    levers(faults)
    sizes(faults)
    few_spares(faults)
    print(f"\nAll of it took {(time.process_time() - begin_s) / 60:.0f} min of one core.")


if __name__ == "__main__":
    main()
