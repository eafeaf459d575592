"""Which rank made the others wait: a pure judge of stacks and of recorded collectives.

In a hang nearly all ranks wait in a collective for the one that did not come. The error that ends
it names one of those that waited; here, the one that did not is looked for: stopped, in the kernel,
anywhere but in a collective, or behind by the number of its last collective.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from scalewright.health.stacks import Frame, Stack, Thread

Cause = Literal["hang", "storage", "data", "compile"]

# Frames that are on top of many others and say nothing.
_WRAPPERS = ("torch/utils/_contextlib.py", "torch/_ops.py", "torch/distributed/c10d_logger.py")
_COLLECTIVE = "/torch/distributed/"
_STORING = "/torch/distributed/checkpoint/"
_NATIVE_WAITS = ("gloo::", "c10d::", "nccl", "cudaStreamSync", "cudaEventSync", "cudaDeviceSync",
                 "cuStreamSync", "cuEventSync", "cuCtxSync")  # fmt: skip
_COMPILERS = ("/torch/_inductor/", "/torch/_functorch/", "/triton/")
_STORAGE = ("nfs", "rpc_", "fuse", "ceph", "lustre", "ll_", "cifs", "smb", "gpfs", "xfs", "ext4",
            "io_schedule", "blk", "folio", "page")  # fmt: skip


class Place(StrEnum):
    """What the loop of a rank is at, by its stack."""

    STOPPED = "is stopped"
    KERNEL = "waits uninterruptibly in the kernel"
    GONE = "is gone"
    UNSEEN = "shows no stack"
    WAITS = "waits in a collective or for its device"
    DATA = "waits for data"
    COMPILES = "compiles"
    RUNS = "is not in a collective"


@dataclass(frozen=True)
class Last:
    """The last collective of a group that a rank entered, counted from 1."""

    number: int
    operation: str


Trace = Mapping[str, Last]  # by the group


@dataclass(frozen=True)
class Blame:
    """`ranks` made the others wait, or none can be named. Below 0.7 nothing is held for it."""

    ranks: tuple[int, ...]
    confidence: float
    why: str
    cause: Cause = "hang"


def guilty(stacks: Mapping[int, Stack], traces: Mapping[int, Trace]) -> Blame:
    """Who made the others wait, by the stacks and traces of as many ranks as answered."""
    places = {rank: place_of(stack) for rank, stack in sorted(stacks.items())}
    places = _crowded(places, stacks)
    late = behind(traces)
    return (
        _by_state(places, stacks)
        or _by_place(places, stacks, late, traces)
        or _by_trace(late, traces)
        or Blame((), 0.1, f"{_counted(places)}, and no rank is behind by its collectives")
    )


def place_of(stack: Stack) -> Place:
    """What the loop of a rank is at."""
    if stack.state in ("", "T", "D"):
        return {"": Place.GONE, "T": Place.STOPPED, "D": Place.KERNEL}[stack.state]
    if stack.loop is None:
        return Place.UNSEEN
    if _waits(stack.loop):
        return Place.WAITS
    top = _top(stack.loop)
    # On a GPU, backward passes run in threads of their own.
    if top is not None and top.function == "_engine_run_backward":
        others = [thread for thread in stack.threads if thread is not stack.loop]
        if any(_waits(thread) for thread in others):
            return Place.WAITS
    files = [frame.file for frame in stack.loop.frames]
    if any(file.endswith("scalewright/train/ahead.py") for file in files[:5]):
        return Place.DATA
    if any(part in file for file in files for part in _COMPILERS):
        return Place.COMPILES
    return Place.RUNS


def behind(traces: Mapping[int, Trace]) -> tuple[int, ...]:
    """Ranks that others wait for and that wait for none, by the groups that they share.

    In each group those with the lowest number keep the others waiting. One that is ahead of another
    in some group waits itself.
    """
    late: set[int] = set()
    early: set[int] = set()
    for group in {name for trace in traces.values() for name in trace}:
        numbers = {rank: trace[group].number for rank, trace in traces.items() if group in trace}
        least = min(numbers.values())
        if least < max(numbers.values()):
            late |= {rank for rank, number in numbers.items() if number == least}
            early |= {rank for rank, number in numbers.items() if number > least}
    return tuple(sorted(late - early))


def parse_trace(recorded: bytes) -> Trace:
    """The last collective of each group from a flight recorder's JSON; none where it is no such."""
    try:
        record = json.loads(recorded)
        entries = record["entries"]
        members = {name: group["ranks"] for name, group in record.get("pg_config", {}).items()}
        last: dict[str, Last] = {}
        for entry in entries:
            if entry["is_p2p"]:
                continue
            name, description = entry["process_group"]
            group = f"{name} {description} {members.get(name, '')}"
            one = Last(int(entry["collective_seq_id"]), str(entry["profiling_name"]))
            if group not in last or last[group].number < one.number:
                last[group] = one
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return last


def _by_state(places: Mapping[int, Place], stacks: Mapping[int, Stack]) -> Blame | None:
    """Those that no waiting explains: stopped, gone, in the kernel."""
    for place in (Place.GONE, Place.STOPPED, Place.KERNEL):
        ranks = _at(places, place)
        if not ranks:
            continue
        functions = sorted({name for rank in ranks for name in stacks[rank].kernel})
        stored = any(name.startswith(part) for name in functions for part in _STORAGE)
        why = f"{_named(ranks)} {place}" + (f": {', '.join(functions)}" if functions else "")
        if stored and len(ranks) > max(1, len(places) // 2):
            return Blame((), 0.9, why, "storage")
        confidence = 0.95 if len(ranks) < len(places) or len(places) == 1 else 0.3
        return Blame(ranks, confidence, why, "storage" if stored else "hang")
    return None


def _by_place(
    places: Mapping[int, Place],
    stacks: Mapping[int, Stack],
    late: Sequence[int],
    traces: Mapping[int, Trace],
) -> Blame | None:
    """The minority that is not where the others wait."""
    away = tuple(rank for rank, place in places.items() if place is not Place.WAITS)
    if not away or (len(away) > len(places) - len(away)):
        return None
    why = "; ".join(f"rank {rank} {places[rank]}{_at_top(stacks[rank])}" for rank in away)
    why += f"; {len(places) - len(away)} wait for a collective"
    kinds = {places[rank] for rank in away}
    if Place.COMPILES in kinds:
        return Blame(away, 0.3, why, "compile")
    if kinds == {Place.DATA}:
        return Blame(away, 0.8, why, "data")
    confidence = 0.9 if len(away) == 1 else 0.8
    if Place.UNSEEN in kinds:
        confidence = 0.5
    if late and set(late) == set(away):
        return Blame(away, 0.95, f"{why}; {_why_late(late, traces)}")
    if late and not set(late) & set(away):
        return Blame(away, 0.5, f"{why}; but {_why_late(late, traces)}")
    return Blame(away, confidence, why)


def _by_trace(late: Sequence[int], traces: Mapping[int, Trace]) -> Blame | None:
    if not late:
        return None
    confidence = 0.8 if len(late) <= len(traces) / 2 else 0.3
    return Blame(tuple(late), confidence, _why_late(late, traces))


def _crowded(places: Mapping[int, Place], stacks: Mapping[int, Stack]) -> dict[int, Place]:
    """Where most ranks stand at the very same line, they wait, though no frame says for what.

    So they do for a number from their device.
    """
    tops: dict[Frame, list[int]] = {}
    for rank in _at(places, Place.RUNS):
        loop = stacks[rank].loop
        top = None if loop is None else _top(loop)
        if top is not None:
            tops.setdefault(top, []).append(rank)
    crowd = max(tops.values(), key=len, default=[])
    if len(crowd) * 2 <= len(places) or len(crowd) < 2:
        return dict(places)
    return {rank: Place.WAITS if rank in crowd else place for rank, place in places.items()}


def _waits(thread: Thread) -> bool:
    for frame in thread.frames:
        if frame.file.endswith(_WRAPPERS):
            continue
        if frame.file.endswith(".py"):
            return _python_waits(frame)
        if frame.function.startswith(_NATIVE_WAITS):
            return True
    return False


def _python_waits(frame: Frame) -> bool:
    if _COLLECTIVE in frame.file:
        return _STORING not in frame.file
    return "/torch/cuda/" in frame.file and frame.function.endswith(("synchronize", "wait"))


def _top(thread: Thread) -> Frame | None:
    """The innermost frame of Python that says something."""
    told = (frame for frame in thread.frames if frame.file.endswith(".py"))
    return next((frame for frame in told if not frame.file.endswith(_WRAPPERS)), None)


def _at_top(stack: Stack) -> str:
    top = None if stack.loop is None else _top(stack.loop)
    return "" if top is None else f" ({top})"


def _at(places: Mapping[int, Place], place: Place) -> tuple[int, ...]:
    return tuple(rank for rank, at in places.items() if at is place)


def _why_late(late: Sequence[int], traces: Mapping[int, Trace]) -> str:
    told = []
    for rank in late:
        groups = [
            (max(trace[group].number for trace in traces.values() if group in trace), group)
            for group in traces[rank]
        ]
        gap, group = max((most - traces[rank][name].number, name) for most, name in groups)
        last = traces[rank][group]
        told.append(
            f"rank {rank} is {gap} collectives behind in group {group.strip()}, after "
            f"{last.operation} {last.number}"
        )
    return "; ".join(told)


def _counted(places: Mapping[int, Place]) -> str:
    kinds = sorted(set(places.values()))
    return ", ".join(f"{_named(_at(places, kind))} {kind}" for kind in kinds) or "no stacks"


def _named(ranks: Iterable[int]) -> str:
    each = list(ranks)
    return f"rank {each[0]}" if len(each) == 1 else f"ranks {', '.join(map(str, each))}"
