"""The ledger as text of 100 columns, and as JSON values."""

import dataclasses
import re
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from scalewright.cluster.breaker import Breaker
from scalewright.cluster.evidence import Event, Evidence, FleetSize, Order, Thaw, to_record
from scalewright.cluster.standing import RULES, Standing, State, usable

COLUMNS = 100
_WORST_FIRST: tuple[State, ...] = ("retired", "quarantined", "probation", "suspect", "healthy")
_PROGRAM = "python -m scalewright.cluster.ledger"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_SHOWN = 10  # events of `why`


def duration(seconds: float) -> str:
    """A time in its two largest units, such as "1 d 4 h"."""
    whole = round(max(0.0, seconds))
    for index, (unit_s, name) in enumerate(_UNITS):
        if whole < unit_s:
            continue
        count, rest = divmod(whole, unit_s)
        below_s, below = (*_UNITS, (1, "s"))[index + 1]
        return f"{count} {name}" + (f" {rest // below_s} {below}" if rest // below_s else "")
    return f"{whole} s"


def standings_text(
    standings: Mapping[str, Standing], breaker: Breaker, fleet: int, now_s: float, everything: bool
) -> str:
    """The machines as a table, worst first; healthy ones only where `everything` is wanted."""
    counts = Counter(standing.state for standing in standings.values())
    tally = ", ".join(f"{counts[state]} {state}" for state in _WORST_FIRST[::-1] if counts[state])
    lines = [f"{len(standings)} machines known{f' of {fleet}' if fleet else ''}: {tally or 'none'}"]
    lines += _breaker_lines(breaker, now_s)
    shown = [
        (machine, standing)
        for machine, standing in standings.items()
        if everything or standing.state != "healthy"
    ]
    if shown:
        shown.sort(key=lambda one: (_WORST_FIRST.index(one[1].state), -one[1].score, one[0]))
        lines += ["", *_table(shown, now_s)]
    return "\n".join(lines)


def _breaker_lines(breaker: Breaker, now_s: float) -> list[str]:
    if breaker.frozen_since_s is None:
        return []
    return [
        f"VERDICTS ARE FROZEN since {_clock(breaker.frozen_since_s)} "
        f"({duration(now_s - breaker.frozen_since_s)}): {len(breaker.refused)} machines more were "
        "to be held;",
        _cut(f"  in use all the same: {', '.join(sorted(breaker.refused))}"),
        f'  look at them, then: {_PROGRAM} thaw --reason "..."',
    ]


def _table(shown: Sequence[tuple[str, Standing]], now_s: float) -> list[str]:
    rows = [("machine", "state", "score", "since", "ends", "why")]
    for machine, one in shown:
        since = "" if one.since_s is None else f"{duration(now_s - one.since_s)} ago"
        why = _short(one.reasons[0]) if one.reasons else ""
        rows.append((machine, one.state, f"{one.suspicion:.1f}", since, _end(one, now_s), why))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        _cut(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]
            )
        )
        for row in rows
    ]


def _end(standing: Standing, now_s: float) -> str:
    if standing.until_s is not None:
        return f"in {duration(standing.until_s - now_s)}"
    return "" if standing.state == "healthy" else "by order"


def why_text(machine: str, standing: Standing, history: Sequence[Event], now_s: float) -> str:
    """One machine: its state, why, what comes next, the last events, and what to do."""
    state = "on probation" if standing.state == "probation" else standing.state
    lines = [f"{machine} is {state}{_span(standing, now_s)}"]
    rank = usable(standing)
    use = ("used as any", "used after healthy ones", "used where no other is left")
    lines.append(f"  use        {'not used' if rank is None else use[rank]}")
    lines.append(f"  next       {_next(standing)}")
    lines.append(
        f"  score      {standing.score:.2f} of confident evidence (held from "
        f"{RULES.hold_points:g}), {standing.suspicion:.2f} of all"
    )
    for index, reason in enumerate(standing.reasons):
        begin = f"  {'' if index else 'because':<11}"
        lines += textwrap.wrap(reason, COLUMNS, initial_indent=begin, subsequent_indent=" " * 15)
    if history:
        count = f", the last {_SHOWN} of {len(history)}" if len(history) > _SHOWN else ""
        lines += ["", f"noted{count}", *event_lines(history[-_SHOWN:], of=machine)]
    if rank is None or standing.state == "probation":
        quoted = shlex.quote(machine)
        lines += [
            "",
            f'  it was repaired:          {_PROGRAM} repaired {quoted} --reason "..."',
            f'  nothing is wrong with it: {_PROGRAM} release {quoted} --reason "..."',
        ]
    return "\n".join(lines)


def _span(standing: Standing, now_s: float) -> str:
    if standing.since_s is None:
        return ""
    age = duration(now_s - standing.since_s)
    return f" since {_clock(standing.since_s)} ({age} ago){', by order' * standing.by_order}"


def _next(standing: Standing) -> str:
    probation = f"then on probation for {duration(RULES.probation_s)}"
    if standing.state == "healthy":
        return "nothing"
    if standing.until_s is None:
        return f"held until a person releases it or says that it is repaired, {probation}"
    end = f"until {_clock(standing.until_s)}"
    if standing.state == "quarantined":
        passed = "" if standing.by_order else " or until a full preflight passes"
        return f"{end}{passed}, {probation}"
    if standing.state == "probation":
        return f"{end}, then healthy; one fault before that retires it"
    return f"{end} unless more is seen, then healthy"


def event_lines(events: Sequence[Event], of: str | None = None) -> list[str]:
    """One line each: when, which machine unless all are `of` one, what, and why."""
    lines = []
    for event in events:
        machine = getattr(event, "machine", None) if of is None else None
        what = [_clock(event.time_s), *([machine] if machine else []), _short(_event_text(event))]
        lines.append(_cut("  " + "  ".join(what)))
    return lines


def _event_text(event: Event) -> str:
    if isinstance(event, Evidence):
        sure = f" ({event.confidence:.0%} sure)" if event.confidence < 1 else ""
        seen = f" [{event.run} attempt {event.attempt}]" if event.run else ""
        gpu = f" {event.gpu}:" if event.gpu else ""
        return f"{event.kind}{sure}:{gpu} {event.reason}{seen}"
    if isinstance(event, Order):
        limit = "" if event.ttl_s is None else f" for {duration(event.ttl_s)}"
        return f"{event.action}{limit} by {event.who}: {event.reason}"
    if isinstance(event, FleetSize):
        return f"fleet of {event.machines} machines, says {event.who}"
    if isinstance(event, Thaw):
        return f"thaw by {event.who}: {event.reason}"
    assert_never(event)


def standing_record(machine: str, standing: Standing) -> dict[str, Any]:
    """A standing as plain JSON values, with the rank for placement."""
    return {"machine": machine, **dataclasses.asdict(standing), "rank": usable(standing)}


def event_record(event: Event) -> dict[str, Any]:
    """An event as plain JSON values."""
    name, fields = to_record(event)
    return {"type": name, **fields}


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(time_s))


def _short(text: str) -> str:
    """The text with the first digits of each GPU's UUID: they tell those of a machine apart."""
    return re.sub(r"\b((?:GPU|MIG)-[0-9a-f]{8})-[0-9a-f-]{27}\b", r"\1", text)


def _cut(line: str) -> str:
    line = " ".join(line.splitlines()).rstrip()
    return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…"
