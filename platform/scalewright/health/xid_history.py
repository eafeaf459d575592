"""XIDs of all machines of a run, remembered over its attempts; pure.

Those who hear of them end with their attempt, and what an XID means depends on those of a day.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from scalewright.health.xid import DAY_S, XidEvent

History = Mapping[str, tuple[XidEvent, ...]]  # by machine, oldest first


def remembered(history: History, machine: str, new: Iterable[XidEvent], now_s: float) -> History:
    """The history with what a machine tells, each event once, without those older than a day."""
    of_day = {
        each: tuple(event for event in events if now_s - event.time_s <= DAY_S)
        for each, events in {**history, machine: _merged(history.get(machine, ()), new)}.items()
    }
    return {each: events for each, events in of_day.items() if events}


def known_to(machine: str, history: History) -> tuple[XidEvent, ...]:
    """What a machine is to know: its own events, and others' where the GPU is named."""
    return tuple(
        event
        for each, events in sorted(history.items())
        for event in events
        if each == machine or event.gpu is not None
    )


def to_record(history: History) -> dict[str, list[dict[str, Any]]]:
    """The history in JSON values; `from_record` reads it back."""
    return {machine: [asdict(event) for event in events] for machine, events in history.items()}


def from_record(record: Mapping[str, Iterable[Mapping[str, Any]]]) -> History:
    return {machine: tuple(XidEvent(**one) for one in told) for machine, told in record.items()}


def _merged(old: Iterable[XidEvent], new: Iterable[XidEvent]) -> tuple[XidEvent, ...]:
    return tuple(sorted({*old, *new}, key=lambda event: (event.time_s, event.xid, event.gpu or "")))
