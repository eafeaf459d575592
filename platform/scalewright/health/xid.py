"""XIDs, the error numbers of NVIDIA's driver: what each asks for, and what their history means.

The classes are those of NVIDIA's XID catalogue ("Xid Errors", GPU deployment guide). The rules over
history are those that NVSentinel publishes: bursts of three minutes count once, the same fatal
XID five times in 24 hours is for a person, 13 or 31 twice on one GPU is the GPU and on several GPUs
the workload.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scalewright.health.finding import Remedy, Verdict

DAY_S = 86_400.0
BURST_S = 180.0
FATAL_REPEATS = 5
APP_REPEATS = 2
RECENT_S = 600.0  # how long an event that asks for no more than a restart is told

_LINE = re.compile(r"Xid \(PCI:([0-9a-fA-F]+):([0-9a-fA-F]+:[0-9a-fA-F]+)[^)]*\): (\d+)")


@dataclass(frozen=True)
class XidEvent:
    """An XID at a wall time; `gpu` None where the GPU's UUID is not known."""

    time_s: float
    gpu: str | None
    xid: int


class XidClass(StrEnum):
    """What NVIDIA's catalogue asks for."""

    INFORMATIONAL = "informational"
    RESTART_APP = "restart_app"
    RESET_GPU = "reset_gpu"
    REBOOT = "reboot"
    READ_ACTION = "read_action"  # 154: the recovery action changed, which is read anyway
    SUPPORT = "support"


_CLASSES: dict[XidClass, Sequence[int]] = {
    XidClass.RESTART_APP: (8, 11, 13, 25, 31, 32, 39, 40, 41, 69, 80, 94),
    # 48 (double-bit error), 74 and 144 to 150 (NVLink) have workflows of their own, which begin
    # with a reset. 64: rows could not be remapped.
    XidClass.RESET_GPU: (
        *(46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143),
        *(144, 145, 146, 147, 148, 149, 150, 155, 156, 158),
    ),
    XidClass.REBOOT: (79, 151),
    # 45 is the driver's cleaning up after another error or after a process that was killed.
    XidClass.INFORMATIONAL: (
        *(14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108),
        *(121, 137, 141, 152, 153, 157, 160, 161),
    ),
    XidClass.READ_ACTION: (154,),
}
_CLASS_OF = {xid: kind for kind, xids in _CLASSES.items() for xid in xids}
_WORKLOAD = frozenset({13, 31})  # a program's error, or a GPU's: where it repeats tells which
_MEANING = {
    13: "graphics engine exception, mostly an access out of bounds",
    31: "memory page fault",
    48: "double-bit ECC error",
    63: "a row of memory was remapped",
    64: "a row of memory could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
}


@dataclass(frozen=True)
class Assessment:
    """What the events of one GPU ask for. `event` is the one that asks for most."""

    verdict: Verdict
    remedy: Remedy
    reason: str
    event: XidEvent
    xids: tuple[int, ...]


def xid_class(xid: int) -> XidClass:
    """The class of an XID; what the catalogue does not name is a case for support."""
    return _CLASS_OF.get(xid, XidClass.SUPPORT)


def xid_of_line(line: str) -> tuple[str, int] | None:
    """PCI address (`0000:c1:00`) and XID of a line of the kernel's log, None if it has none."""
    match = _LINE.search(line)
    return None if match is None else (f"{match[1][-4:]}:{match[2]}".lower(), int(match[3]))


def bursts(events: Iterable[XidEvent], window_s: float = BURST_S) -> list[XidEvent]:
    """Events without those that repeat one counted less than `window_s` before, on the same GPU.

    One fault logs many lines, and NVML and the kernel's log both tell of it.
    """
    counted: list[XidEvent] = []
    last: dict[tuple[str | None, int], float] = {}
    for event in sorted(events, key=lambda one: one.time_s):
        key = (event.gpu, event.xid)
        if key not in last or event.time_s - last[key] >= window_s:
            counted.append(event)
            last[key] = event.time_s
    return counted


def blames_workload(events: Iterable[XidEvent], now_s: float) -> bool:
    """Whether 13 or 31 came from several GPUs within a day: then the program is at fault.

    Give it the events of all nodes of a run.
    """
    seen: dict[int, set[str | None]] = {}
    for event in _of_a_day(events, now_s):
        if event.xid in _WORKLOAD:
            seen.setdefault(event.xid, set()).add(event.gpu)
    return any(len(gpus) > 1 for gpus in seen.values())


def assess(
    gpu: str | None, events: Sequence[XidEvent], since_s: float, now_s: float, action: int | None
) -> Assessment | None:
    """What the events since `since_s` ask for on `gpu`; None if there are none that still matter.

    `events` may go back further and hold other GPUs: history decides what repeats. `action` is the
    GPU's own recovery action (NVML field 230) where it has one, and wins over the catalogue.
    """
    day = bursts(_of_a_day(events, now_s))
    recent = [one for one in day if one.gpu == gpu and one.time_s >= since_s]
    told = [
        (*_ask(event, day, now_s, action), event)
        for event in recent
        if action is None or xid_class(event.xid) is not XidClass.READ_ACTION
    ]
    current = [one for one in told if one[0] is Verdict.FAIL or now_s - one[3].time_s <= RECENT_S]
    if not current:
        return None
    severity = (Verdict.PASS, Verdict.WARN, Verdict.FAIL)
    verdict, remedy, reason, event = max(
        current, key=lambda one: (severity.index(one[0]), one[3].time_s)
    )
    xids = tuple(dict.fromkeys(one[3].xid for one in current))
    return Assessment(verdict, remedy, reason, event, xids)


def _ask(
    event: XidEvent, day: Sequence[XidEvent], now_s: float, action: int | None
) -> tuple[Verdict, Remedy, str]:
    """What one event asks for, given the bursts of a day."""
    name = f"XID {event.xid}" + (f", {_MEANING[event.xid]}" if event.xid in _MEANING else "")
    times = sum(one.gpu == event.gpu and one.xid == event.xid for one in day)
    match xid_class(event.xid):
        case XidClass.INFORMATIONAL:
            return Verdict.PASS, Remedy.NONE, name
        case XidClass.RESTART_APP:
            return _ask_app(event, day, now_s, name, times)
        case XidClass.RESET_GPU | XidClass.REBOOT as kind:
            if times >= FATAL_REPEATS:
                return Verdict.FAIL, Remedy.INSPECT, f"{name}, {times} times within a day"
            if action == 0:
                calm = f"{name}; the GPU itself asks for no recovery"
                return Verdict.WARN, Remedy.RESTART_APP, calm
            reset = kind is XidClass.RESET_GPU
            return Verdict.FAIL, Remedy.RESET_GPU if reset else Remedy.REBOOT, name
        case _:
            return Verdict.WARN, Remedy.INSPECT, f"{name}, for NVIDIA's support"


def _ask_app(
    event: XidEvent, day: Sequence[XidEvent], now_s: float, name: str, times: int
) -> tuple[Verdict, Remedy, str]:
    if event.xid in _WORKLOAD:
        if blames_workload((one for one in day if one.xid == event.xid), now_s):
            return Verdict.WARN, Remedy.RESTART_APP, f"{name}, on several GPUs: the workload's"
        if times >= APP_REPEATS:
            return Verdict.WARN, Remedy.INSPECT, f"{name}, {times} times and on this GPU alone"
    return Verdict.WARN, Remedy.RESTART_APP, name


def _of_a_day(events: Iterable[XidEvent], now_s: float) -> list[XidEvent]:
    return [event for event in events if now_s - event.time_s <= DAY_S]
