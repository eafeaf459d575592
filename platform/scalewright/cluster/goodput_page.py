"""The goodput of a run as one HTML page that needs no other file and no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scalewright.cluster.goodput import RECOVERY, Shares, duration, lost_s, recoveries, shares
from scalewright.cluster.timeline import Interval, Phase, Setback, Timeline

COLUMNS = 480  # of the strip; each is stacked by the phases of its slice of time
MAX_SETBACKS = 500  # rows of the table, the costliest

MEANING = {
    Phase.STEP: "steps that were kept",
    Phase.RECOMPUTE: "steps done again after a setback, or lost before any line told of them",
    Phase.DATA_WAIT: "steps that waited for data",
    Phase.STRAGGLER: "steps that waited for the slowest rank",
    Phase.CHECKPOINT: "training stood still to save",
    Phase.VALIDATION: "held-out clips and samples",
    Phase.QUEUE: "back-off, and waiting for nodes",
    Phase.PREFLIGHT: "checks of the nodes before an attempt",
    Phase.INIT: "workers launched, their loop not begun",
    Phase.RESTORE: "from the begin of the loop to the first step: weights, data, compilation",
    Phase.DETECT: "from the last sign of progress until that was noticed",
    Phase.TEARDOWN: "from the notice to the end of the attempt",
    Phase.STOPPED: "nobody supervised the run: it waited for a human",
    Phase.UNKNOWN: "no line explains it",
}


@dataclass(frozen=True)
class Bar:
    """A rectangle of the strip in columns and percent from the top, with its hint."""

    x: float
    width: float
    y: float
    height: float
    kind: str
    hint: str


def page(name: str, line: Timeline) -> str:
    """The page of a run called `name`, self-contained HTML."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"share": _share, "duration": duration, "when": _when}
    numbers = shares(line.intervals)
    rows = _setback_rows(line)
    return environment.get_template("goodput.html.j2").render(
        name=name,
        line=line,
        style=(here / "goodput.css").read_text(encoding="utf-8"),
        numbers=numbers,
        recovery=recoveries(line.setbacks),
        begin_s=line.intervals[0].begin_s,
        end_s=line.intervals[-1].end_s,
        bars=columns(line.intervals, COLUMNS),
        attempts=attempt_bars(line.intervals, COLUMNS),
        marks=_marks(line, COLUMNS),
        columns=COLUMNS,
        parts=_parts(numbers),
        recovery_phases=[phase for phase in RECOVERY if any(phase in row[1] for row in rows)],
        setbacks=rows[:MAX_SETBACKS],
        left_out=len(rows) - len(rows[:MAX_SETBACKS]),
    )


def columns(intervals: Sequence[Interval], count: int) -> list[Bar]:
    """`count` equal slices of time, each stacked by phase; equal neighbours are one bar."""
    begin_s, end_s = intervals[0].begin_s, intervals[-1].end_s
    slice_s = (end_s - begin_s) / count
    parts: list[dict[Phase, float]] = [{} for _ in range(count)]
    for each in intervals:
        first = min(int((each.begin_s - begin_s) / slice_s), count - 1)
        last = min(math.ceil((each.end_s - begin_s) / slice_s), count)
        for place in range(first, last):
            left_s = max(each.begin_s, begin_s + place * slice_s)
            right_s = min(each.end_s, begin_s + (place + 1) * slice_s)
            if right_s > left_s:
                parts[place][each.phase] = parts[place].get(each.phase, 0.0) + right_s - left_s
    bars: list[Bar] = []
    for place, part in enumerate(parts):
        bars += _column(place, part, begin_s + place * slice_s)
    return _joined(bars)


def attempt_bars(intervals: Sequence[Interval], count: int) -> list[Bar]:
    """Where each attempt begins and ends, in columns."""
    begin_s, end_s = intervals[0].begin_s, intervals[-1].end_s
    scale = count / (end_s - begin_s)
    spans: dict[int, tuple[float, float]] = {}
    for each in intervals:
        spans[each.attempt] = (spans.get(each.attempt, (each.begin_s, 0))[0], each.end_s)
    return [
        Bar((b - begin_s) * scale, (e - b) * scale, 0, 100, "even" if attempt % 2 == 0 else "odd",
            f"attempt {attempt}: {_when(b)}, {duration(e - b)}")
        for attempt, (b, e) in spans.items()
    ]  # fmt: skip


def _column(place: int, part: dict[Phase, float], time_s: float) -> list[Bar]:
    total_s = math.fsum(part.values())
    hint = f"{_when(time_s)}: " + ", ".join(
        f"{_words(phase)} {_share(s / total_s)}" for phase, s in part.items()
    )
    bars, y = [], 0.0
    for phase in reversed(Phase):  # steps at the bottom
        if height := 100 * part.get(phase, 0.0) / total_s if total_s else 0.0:
            bars.append(Bar(place, 1, y, height, str(phase), hint))
            y += height
    return bars


def _joined(bars: Sequence[Bar]) -> list[Bar]:
    """Whole columns of one phase, side by side, as one."""
    joined: list[Bar] = []
    for bar in bars:
        last = joined[-1] if joined else None
        whole = last is not None and last.kind == bar.kind and min(last.height, bar.height) > 99.999
        if last is not None and whole:
            joined[-1] = Bar(last.x, last.width + 1, 0, 100, last.kind, last.hint)
        else:
            joined.append(bar)
    return joined


def _marks(line: Timeline, count: int) -> list[tuple[float, str]]:
    begin_s, end_s = line.intervals[0].begin_s, line.intervals[-1].end_s
    scale = count / (end_s - begin_s)
    return [
        ((each.began_s - begin_s) * scale, f"{each.cause}, {_when(each.began_s)}")
        for each in line.setbacks
    ]


def _parts(numbers: Shares) -> list[tuple[Phase, float, float, str]]:
    """Every phase that took time: name, share, seconds, meaning; the largest first."""
    parts = sorted(numbers.parts_s.items(), key=lambda item: -item[1])
    return [(p, s / numbers.wall_s, s, MEANING[p]) for p, s in parts if s or p is Phase.UNKNOWN]


def _setback_rows(line: Timeline) -> list[tuple[Setback, dict[Phase, float], float]]:
    """Setbacks with what they cost, the costliest first."""
    rows = [
        (setback, lost, math.fsum(lost.values()))
        for setback, lost in zip(line.setbacks, lost_s(line), strict=True)
    ]
    return sorted(rows, key=lambda row: -row[2])


def _share(share: float) -> str:
    """A share with the digits that tell 99.5 % from 99.9 %."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %"


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _words(phase: Phase) -> str:
    return str(phase).replace("_", " ")
