#!/usr/bin/env python3
"""A run for half an hour, with a fault every few minutes or with nothing but noise.

    benchmarks/soak.py faults --data CLIPS > benchmarks/soak_faults-MACHINE.md
    benchmarks/soak.py healthy --data CLIPS > benchmarks/soak_healthy-MACHINE.md

`faults` disturbs a run on raylets of this machine and prints what each fault cost, the run's
goodput, and whether its losses and clips are those of a run that nothing disturbs. `healthy` takes
the processors away in bursts, and prints every verdict that there was: there should be none.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT), str(ROOT / "tests")]

import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

import click
import psutil
import torch
from storm import Storm, storm

from benchmarks.faults import FAULTS, Seen, disturb
from scalewright.cluster.node_faults import Fault as FaultOfNode
from scalewright.cluster.node_faults import History
from scalewright.cluster.simulation import Job, Outcome, simulate

SETTINGS = ("data.audit=true",)
CALM_S = 240.0
NODES = 3  # for two ranks
SAVED_EVERY = 20  # steps, as the storm's run is set


@click.group()
def main() -> None:
    """See above."""


@main.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--every-s", default=180.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def faults(data: Path, minutes: float, every_s: float, seed: int) -> None:
    """A fault every `--every-s` seconds, of every kind in turn, in an order by `--seed`."""
    head(f"Faults every {every_s:g} s for {minutes:g} minutes")
    with tempfile.TemporaryDirectory() as folder:
        with storm(Path(folder) / "home", data, NODES, *SETTINGS) as run:
            run.settle()
            begin_s = time.time()
            seen = list(series(run, begin_s + 60 * minutes, every_s, random.Random(seed)))
            time.sleep(max(0.0, begin_s + 60 * minutes - time.time()))
            steps = losses(run)
            goodput = told_goodput(run.folder)
            standings = {name: s.state for name, s in run.ledger.standings().items()}
            consumed = clips(run)
            step_s = [step.values["perf/step_s"] for step in run.steps()]
            stall_s = [save.fields["stall_s"] for save in run.notices("save")]
        with storm(Path(folder) / "calm", data, 2, *SETTINGS) as calm:
            calm.wait(lambda: len(calm.steps()) > 0, 300)
            time.sleep(CALM_S)
            undisturbed, expected = losses(calm), clips(calm)
    print("| fault | noticed, s | next step, s | steps done again | blamed | right |")
    print("|---|---|---|---|---|---|")
    for each in seen:
        print(
            f"| {each.fault.name} | {each.detected_s:.1f} | {each.first_step_s:.1f} | "
            f"{max(0, each.lost_steps)} | {each.blamed or 'nobody'} | "
            f"{'yes' if each.right else 'no'} |"
        )
    gaps = [each.first_step_s for each in seen]
    print(
        f"\n{len(seen)} faults; next step after {statistics.median(gaps):.1f} s (median), "
        f"{max(gaps):.1f} s (worst). Blamed right: {sum(s.right for s in seen)} of {len(seen)}. "
        f"Machines in the end: {json.dumps(standings)}.\n"
    )
    print(f"Goodput of the run: {json.dumps(goodput)}\n")
    job = Job(
        nodes=2, min_nodes=1, interval_s=SAVED_EVERY * statistics.mean(step_s),
        stall_s=statistics.mean(stall_s), detect_s=statistics.mean(s.detected_s for s in seen),
        restart_s=statistics.mean(s.first_step_s - s.detected_s for s in seen),
    )  # fmt: skip
    told = simulated(job, [each.at_s - begin_s for each in seen], 60 * minutes)
    print(
        f"The simulator, told the times of the faults and the means of what they cost ({job}): "
        f"goodput {told.goodput:.3f}, effective time {told.effective_time:.3f}, {told.failures} "
        "failures.\n"
    )
    compare(steps, undisturbed, consumed, expected)


def simulated(job: Job, faults_s: Sequence[float], duration_s: float) -> Outcome:
    """The same half hour in the simulator: each fault takes a node that it uses then.

    There are as many nodes as it takes: here, too, another takes the place of one that is gone.
    """
    histories: list[History] = [()] * (NODES + len(faults_s))
    for index, at_s in enumerate(faults_s):
        fault = FaultOfNode(at_s, duration_s, hardware=False)
        for node, history in enumerate(histories):
            tried = [*histories[:node], (*history, fault), *histories[node + 1 :]]
            if not history and simulate(job, tried, duration_s).failures == index + 1:
                histories = tried
                break
    return simulate(job, histories, duration_s)


def series(run: Storm, end_s: float, every_s: float, chance: random.Random) -> Iterator[Seen]:
    """Disturb until the end; each kind comes once before any comes again."""
    left: list[int] = []
    next_s = time.time()
    while next_s + every_s < end_s:
        next_s += every_s
        left = left or chance.sample(range(len(FAULTS)), len(FAULTS))
        while sum(node.alive for node in run.nodes.values()) < NODES:
            run.add_node()
            time.sleep(5)
        time.sleep(max(0.0, next_s - time.time()))
        seen = disturb(run, FAULTS[left.pop()])
        print(f"{seen.fault.name}: {seen.first_step_s:.1f} s, {seen.blamed}", file=sys.stderr)
        yield seen


@main.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def healthy(data: Path, minutes: float, seed: int) -> None:
    """No fault, but other processes on the same cores for up to half of the time."""
    head(f"No fault for {minutes:g} minutes, with noise")
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        storm(Path(folder) / "home", data, NODES, *SETTINGS) as run,
    ):
        run.settle()
        end_s, noisy_s = time.time() + 60 * minutes, 0.0
        while time.time() < end_s:
            burst_s = chance.uniform(5, 30)
            burn(chance.randint(1, 4), burst_s)
            noisy_s += burst_s
            time.sleep(chance.uniform(5, 30))
        verdicts = {
            kind: len(run.notices(kind))
            for kind in ("slow", "data_stall", "detected", "attempt_failed", "paused")
        }
        evidence = [
            f"{event.machine}: {event.reason}" for event in run.ledger.history()
            if hasattr(event, "machine") and hasattr(event, "reason")
        ]  # fmt: skip
        print(
            f"{len(run.steps())} steps by {len({s.attempt for s in run.steps()})} attempt, "
            f"{noisy_s:.0f} s of noise.\n\nVerdicts: {json.dumps(verdicts)}. "
            f"Noted of machines: {json.dumps(evidence)}.\n"
        )
        print(f"Goodput of the run: {json.dumps(told_goodput(run.folder))}")


def burn(processes: int, seconds: float) -> None:
    code = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    for process in running:
        process.wait()


def losses(run: Storm) -> dict[int, set[float]]:
    """All losses that were told of each step: one, if attempts agree."""
    told: dict[int, set[float]] = {}
    for step in run.steps():
        told.setdefault(step.step, set()).add(step.values["loss/train"])
    return told


def clips(run: Storm) -> dict[tuple[str, int], set[str]]:
    """What each rank consumed in each step, by the names of the clips."""
    told: dict[tuple[str, int], set[str]] = {}
    for path in sorted((run.folder / "consumed").iterdir()):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            record.pop("attempt")
            told.setdefault((path.name, record["step"]), set()).add(json.dumps(record))
    return told


def told_goodput(folder: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "scalewright.cluster.goodput", str(folder), "--json"],
        env={"PYTHONPATH": str(ROOT / "platform"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    return {name: told[name] for name in ("effective_time", "goodput", "availability", "badput")}


def compare(
    steps: dict[int, set[float]],
    undisturbed: dict[int, set[float]],
    consumed: dict[tuple[str, int], set[str]],
    expected: dict[tuple[str, int], set[str]],
) -> None:
    """Print whether the disturbed run took the same steps as the other, as far as that came."""
    common = steps.keys() & undisturbed.keys()
    differ = [step for step in common if len(steps[step] | undisturbed[step]) > 1]
    again = sum(len(told) > 1 for told in steps.values())
    missing = set(range(1, max(steps) + 1)) - steps.keys()
    both = consumed.keys() & expected.keys()
    other = [at for at in both if len(consumed[at] | expected[at]) > 1]
    print(
        f"Steps 1 to {max(steps)}: {len(missing)} without a loss, {again} with another loss when "
        f"done again. Beside {len(common)} steps of a run that nothing disturbed: {len(differ)} "
        f"losses differ in any bit; of {len(both)} shares of ranks, {len(other)} had other clips."
    )


def head(title: str) -> None:
    print(
        f"# {title}\n\n{platform.machine()}, {psutil.cpu_count()} cores, torch "
        f"{torch.__version__}; two ranks on {NODES} raylets, a checkpoint every 20 steps.\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
