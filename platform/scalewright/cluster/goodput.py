"""How much of a run's wall time got it on, and where the rest went.

    python -m scalewright.cluster.goodput RUN_FOLDER [--json] [--html FILE] [--now]

Of the wall time from the first event to the last:
`effective_time`: all time in steps, also those done again and their waits, as the field reports it.
`goodput`: only steps that were kept, without waits for data or for a slow rank.
`availability`: a worker group lived and got on: steps, restore, checkpoints, validation.
`badput` is the rest of goodput by phase: goodput and all badput add up to 1.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from scalewright.cluster.timeline import Interval, Phase, Setback, Timeline, timeline
from scalewright.command import run
from scalewright.errors import DataError
from scalewright.events import EVENTS_FILE, Event, read_events

STEPPING = frozenset({Phase.STEP, Phase.RECOMPUTE, Phase.DATA_WAIT, Phase.STRAGGLER})
LIVING = STEPPING | {Phase.RESTORE, Phase.CHECKPOINT, Phase.VALIDATION}
# What a setback costs, until the next one.
RECOVERY = (
    *(Phase.DETECT, Phase.TEARDOWN, Phase.QUEUE, Phase.PREFLIGHT, Phase.INIT, Phase.RESTORE),
    *(Phase.RECOMPUTE, Phase.STOPPED),
)


@dataclass(frozen=True)
class Shares:
    """Seconds by phase, and the numbers that they make; all are shares of `wall_s`."""

    parts_s: Mapping[Phase, float]

    @cached_property
    def wall_s(self) -> float:
        return math.fsum(self.parts_s.values())

    @property
    def effective_time(self) -> float:
        return self._share(STEPPING)

    @property
    def goodput(self) -> float:
        return self._share({Phase.STEP})

    @property
    def availability(self) -> float:
        return self._share(LIVING)

    @property
    def badput(self) -> dict[str, float]:
        """The share of every phase but kept steps, the largest first."""
        shares = {str(p): self._share({p}) for p in self.parts_s if p is not Phase.STEP}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _share(self, phases: set[Phase] | frozenset[Phase]) -> float:
        return math.fsum(s for phase, s in self.parts_s.items() if phase in phases) / self.wall_s


@dataclass(frozen=True)
class Recoveries:
    """Seconds from the last sign of progress to the next step done, over setbacks that ended.

    Quantiles are observed values, the next above: of fewer than twenty, p95 is the longest.
    """

    count: int
    p50_s: float
    p95_s: float
    max_s: float


def shares(intervals: Sequence[Interval]) -> Shares:
    """Seconds by phase of `intervals`; every phase has a value."""
    by_phase: dict[Phase, list[float]] = {phase: [] for phase in Phase}
    for each in intervals:
        by_phase[each.phase].append(each.end_s - each.begin_s)
    return Shares({phase: math.fsum(parts) for phase, parts in by_phase.items()})


def recoveries(setbacks: Sequence[Setback]) -> Recoveries | None:
    """The median and the tail; None where nothing had to recover."""
    took_s = sorted(s.recovered_s - s.began_s for s in setbacks if s.recovered_s is not None)
    if not took_s:
        return None
    p50_s, p95_s = (took_s[math.ceil(q * len(took_s)) - 1] for q in (0.5, 0.95))
    return Recoveries(len(took_s), p50_s, p95_s, took_s[-1])


def lost_s(line: Timeline) -> list[dict[Phase, float]]:
    """What each setback of `line` cost by phase of `RECOVERY`: the time from it to the next."""
    lost: list[dict[Phase, float]] = [{} for _ in line.setbacks]
    borders_s = [*(each.began_s for each in line.setbacks), math.inf]
    index = 0
    spans = list(enumerate(pairwise(borders_s)))
    for interval in line.intervals:
        while index < len(spans) and spans[index][1][1] <= interval.begin_s:
            index += 1
        for place, (begin_s, end_s) in spans[index:]:
            if interval.end_s <= begin_s:
                break
            if interval.phase in RECOVERY:
                part_s = min(interval.end_s, end_s) - max(interval.begin_s, begin_s)
                lost[place][interval.phase] = lost[place].get(interval.phase, 0.0) + part_s
    return lost


def read_timeline(folder: Path, now_s: float | None = None) -> Timeline:
    """The timeline of the run in `folder`; `DataError` where there is nothing to measure yet."""
    path = folder / EVENTS_FILE
    if not path.exists():
        raise DataError(f"{path}: no such file; give the folder of a run that has begun")
    line = timeline(_all_events(path), now_s)
    if not line.intervals:
        raise DataError(f"{path}: its events span no time; measure it again when it has trained")
    return line


def _all_events(path: Path) -> Iterator[Event]:
    offset = 0
    while True:
        events, after = read_events(path, offset, max_bytes=1 << 20)
        if after == offset:
            return
        yield from events
        offset = after


def as_json(line: Timeline) -> dict[str, Any]:
    """All numbers of a run as plain values."""
    numbers = shares(line.intervals)
    recovery = recoveries(line.setbacks)
    return {
        "effective_time": numbers.effective_time,
        "goodput": numbers.goodput,
        "availability": numbers.availability,
        "badput": numbers.badput,
        "begin_s": line.intervals[0].begin_s,
        "end_s": line.intervals[-1].end_s,
        "wall_s": numbers.wall_s,
        "parts_s": {str(phase): seconds for phase, seconds in numbers.parts_s.items()},
        "done": line.done,
        "attempts": line.attempts,
        "last_step": line.last_step,
        "recovery": asdict(recovery) if recovery else None,
        "setbacks": [
            {**asdict(setback), "lost_s": {str(phase): s for phase, s in lost.items()}}
            for setback, lost in zip(line.setbacks, lost_s(line), strict=True)
        ],
        "stale_lines": line.stale_lines,
        "broken_lines": line.broken_lines,
        "clock_steps": line.clock_steps,
    }


def as_text(line: Timeline) -> str:
    """The numbers, and every part that took time."""
    numbers = shares(line.intervals)
    rows = [
        f"wall time       {duration(numbers.wall_s)}, {line.attempts} attempts, "
        f"step {line.last_step}",
        f"effective time  {numbers.effective_time:7.2%}   steps, also those done again",
        f"goodput         {numbers.goodput:7.2%}   steps that were kept, without their waits",
        f"availability    {numbers.availability:7.2%}   a worker group lived and got on",
    ]
    if recovery := recoveries(line.setbacks):
        rows.append(
            f"recovery        {duration(recovery.p50_s)} median, {duration(recovery.p95_s)} p95, "
            f"{duration(recovery.max_s)} longest of {recovery.count}"
        )
    rows.append("the rest:")
    for name, share in numbers.badput.items():
        if share:
            rows.append(f"  {name:<13} {share:7.2%}   {duration(share * numbers.wall_s)}")
    return "\n".join(rows)


def duration(seconds: float) -> str:
    """Seconds as a text with two units at most, such as `3 h 20 min`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds >= 0.001 else "< 1 ms" if seconds else "0 s"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller, small) in pairwise(units):
        if seconds >= size - small / 2 or name == "min":
            large, rest = divmod(round(seconds / small), size // small)
            return f"{large} {name} {rest} {smaller}" if rest else f"{large} {name}"
    raise AssertionError(seconds)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json_", is_flag=True, help="Print all numbers as JSON.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page.")
@click.option("--now", is_flag=True, help="Count the time since the last event, too.")
def main(folder: Path, as_json_: bool, html: Path | None, now: bool) -> None:
    line = read_timeline(folder, time.time() if now else None)
    if html is not None:
        from scalewright.cluster.goodput_page import page  # jinja2 is slow to import

        html.write_text(page(folder.resolve().name, line), encoding="utf-8")
    click.echo(json.dumps(as_json(line), indent=1) if as_json_ else as_text(line))


if __name__ == "__main__":
    run(main)
