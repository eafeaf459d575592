"""What the state of a node's GPUs means for a run: pure, from one look and what came before."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scalewright.health import gpu_rules
from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.gpu_rules import GpuLimits, Lasting, Wrong
from scalewright.health.gpus import GpuSnapshot, NodeGpus
from scalewright.health.xid import DAY_S, XidEvent, assess

# In the order in which they are told.
CHECKS = (
    *("count", "recovery", "xid", "ecc", "memory_rows", "nvlink", "clocks", "pcie", "processes"),
)


@dataclass(frozen=True)
class GpuPast:
    """What earlier looks left behind. `events` are of a day; those before `since_s` are history.

    `known` holds each GPU as it last answered, `links` which NVLinks it ever had up; `slow` is
    keyed by UUID and clock reason, `foreign` by UUID and process.
    """

    since_s: float
    events: tuple[XidEvent, ...] = ()
    known: Mapping[str, GpuSnapshot] = field(default_factory=dict)
    links: Mapping[str, frozenset[int]] = field(default_factory=dict)
    slow: Mapping[tuple[str, int], Lasting] = field(default_factory=dict)
    foreign: Mapping[tuple[str, int], Lasting] = field(default_factory=dict)


def judge_gpus(
    past: GpuPast,
    look: NodeGpus,
    time_s: float,
    clock_s: float,
    *,
    limits: GpuLimits,
    expected: int | None = None,
    ours: frozenset[int] | None = None,
) -> tuple[GpuPast, tuple[Finding, ...]]:
    """The findings of one look at `time_s` (wall) and `clock_s` (monotonic), and what to keep.

    `expected`: how many GPUs there must be, None for as many as there are. `ours`: the processes
    of the run, None if other processes do not matter. What is well is told once for all GPUs.
    """
    now = _remember(past, look, time_s, clock_s, limits, ours)
    if look.absent is not None or look.broken is not None:
        return now, (_without_nvml(now, look, time_s, expected),)
    wrong = [
        *_count(past, look, time_s, expected),
        *_xids(now, look, time_s),
        *_states(past, now, look, time_s, limits),
    ]
    wrong.sort(key=lambda one: CHECKS.index(one.check.removeprefix("gpus.")))
    return now, (*wrong, *_well(wrong, look, time_s))


def _remember(
    past: GpuPast,
    look: NodeGpus,
    time_s: float,
    clock_s: float,
    limits: GpuLimits,
    ours: frozenset[int] | None,
) -> GpuPast:
    answering = {gpu.uuid: gpu for gpu in look.gpus if gpu.uuid is not None and not gpu.lost}
    slow = [
        (uuid, bit)
        for uuid, gpu in answering.items()
        for bit in gpu_rules.REASONS
        if (gpu.clock_reasons or 0) & bit
    ]
    foreign = [
        (uuid, one.pid)
        for uuid, gpu in answering.items()
        for one in gpu.processes or ()
        if ours is not None
        and one.pid not in ours
        and (one.used_bytes or 0) >= limits.foreign_bytes
    ]
    return GpuPast(
        since_s=past.since_s,
        events=tuple(one for one in past.events + look.events if time_s - one.time_s <= DAY_S),
        known={**past.known, **answering},
        links={
            **past.links,
            **{u: past.links.get(u, frozenset()) | _up(gpu) for u, gpu in answering.items()},
        },
        slow=_lasting(past.slow, slow, clock_s, limits.gap_s),
        foreign=_lasting(past.foreign, foreign, clock_s, limits.gap_s),
    )


def _up(gpu: GpuSnapshot) -> frozenset[int]:
    return frozenset(link for link, up in enumerate(gpu.nvlinks) if up)


def _lasting(
    past: Mapping[tuple[str, int], Lasting],
    seen: Iterable[tuple[str, int]],
    clock_s: float,
    gap_s: float,
) -> dict[tuple[str, int], Lasting]:
    """States seen now, with how long they were seen in every look without a gap."""
    new: dict[tuple[str, int], Lasting] = {}
    for key in seen:
        before = past.get(key)
        if before is None or clock_s - before.last_s > gap_s:
            before = Lasting(clock_s, clock_s, 0)
        new[key] = Lasting(before.since_s, clock_s, before.looks + 1)
    return new


def _without_nvml(now: GpuPast, look: NodeGpus, time_s: float, expected: int | None) -> Finding:
    """A node without GPUs is well if none are expected and none ever answered."""
    if look.absent is not None and not expected and not now.known:
        return _finding(
            "count", Wrong(Verdict.PASS, Remedy.NONE, f"no GPUs: {look.absent}"), time_s
        )
    told = f"NVML does not work: {look.absent or look.broken}"
    if expected:
        told += f"; expected {expected} GPUs"
    return _finding("count", Wrong(Verdict.FAIL, Remedy.REBOOT, told), time_s)


def _count(past: GpuPast, look: NodeGpus, time_s: float, expected: int | None) -> Iterator[Finding]:
    """GPUs that are gone, by UUID where it is known, and a wrong number of them."""
    answering = {gpu.uuid for gpu in look.gpus if not gpu.lost}
    lost = [gpu for gpu in look.gpus if gpu.lost]
    nameless = [gpu for gpu in lost if gpu.uuid is None]
    named = {gpu.uuid: _lost(gpu) for gpu in lost if gpu.uuid is not None}
    gone = sorted(past.known.keys() - answering - named.keys())
    unlisted = Wrong(Verdict.FAIL, Remedy.REBOOT, "a GPU is lost: it is not listed any more")
    for place, uuid in enumerate(gone):
        named[uuid] = _lost(nameless[place]) if place < len(nameless) else unlisted
    for uuid, wrong in named.items():
        before = past.known.get(uuid)
        bus = None if before is None else before.pci_bus_id
        yield _finding("count", wrong, time_s, uuid, {"pci_bus_id": bus})
    for gpu in nameless[len(gone) :]:  # lost before it was ever seen
        yield _finding("count", _lost(gpu), time_s, None, {"index": gpu.index})
    if expected is not None and len(answering) != expected:
        fewer = len(answering) < expected
        told = Wrong(
            Verdict.FAIL if fewer else Verdict.WARN,
            Remedy.REBOOT if fewer else Remedy.NONE,
            f"{len(answering)} GPUs answer, expected {expected}",
        )
        yield _finding("count", told, time_s)


def _lost(gpu: GpuSnapshot) -> Wrong:
    remedy = Remedy.RESET_GPU if gpu.needs_reset else Remedy.REBOOT
    return Wrong(Verdict.FAIL, remedy, f"a GPU is lost: {gpu.lost}")


def _xids(now: GpuPast, look: NodeGpus, time_s: float) -> Iterator[Finding]:
    actions = {gpu.uuid: gpu.recovery_action for gpu in look.gpus if not gpu.lost}
    for uuid in dict.fromkeys(event.gpu for event in now.events):
        found = assess(uuid, now.events, now.since_s, time_s, actions.get(uuid))
        if found is not None:
            evidence = {"xid": found.event.xid, "xids": list(found.xids)}
            wrong = Wrong(found.verdict, found.remedy, found.reason)
            yield _finding("xid", wrong, found.event.time_s, uuid, evidence)


def _states(
    past: GpuPast, now: GpuPast, look: NodeGpus, time_s: float, limits: GpuLimits
) -> Iterator[Finding]:
    most_up: dict[str | None, int] = {}
    for gpu in look.gpus:
        most_up[gpu.name] = max(most_up.get(gpu.name, 0), sum(gpu.nvlinks))
    for gpu in look.gpus:
        if gpu.uuid is None or gpu.lost:
            continue
        before = past.known.get(gpu.uuid)
        found = {
            "recovery": gpu_rules.recovery(gpu),
            "ecc": gpu_rules.ecc(gpu, limits),
            "memory_rows": gpu_rules.memory_rows(gpu, limits),
            "nvlink": gpu_rules.nvlink(before, gpu, now.links[gpu.uuid], most_up[gpu.name]),
            "clocks": gpu_rules.clocks(_of(now.slow, gpu.uuid), limits),
            "pcie": gpu_rules.pcie(before, gpu, limits),
            "processes": gpu_rules.processes(_of(now.foreign, gpu.uuid), limits),
        }
        for check, wrong in found.items():
            if wrong is not None:
                yield _finding(check, wrong, time_s, gpu.uuid, _told(gpu))


def _of(states: Mapping[tuple[str, int], Lasting], uuid: str) -> dict[int, Lasting]:
    return {key[1]: state for key, state in states.items() if key[0] == uuid}


def _told(gpu: GpuSnapshot) -> dict[str, Any]:
    """The GPU's state as evidence, without what it does not know."""
    return {key: value for key, value in asdict(gpu).items() if value not in (None, ())}


def _well(wrong: Iterable[Finding], look: NodeGpus, time_s: float) -> Iterator[Finding]:
    """One finding for each check that no GPU failed."""
    bad = {one.check for one in wrong}
    for check in CHECKS:
        if f"gpus.{check}" not in bad:
            told = f"{len(look.gpus)} GPUs"
            yield _finding(check, Wrong(Verdict.PASS, Remedy.NONE, told), time_s)


def _finding(
    check: str,
    wrong: Wrong,
    time_s: float,
    gpu: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> Finding:
    return Finding(
        check=f"gpus.{check}",
        verdict=wrong.verdict,
        reason=wrong.reason,
        gpu=gpu,
        remedy=wrong.remedy,
        evidence=evidence or {},
        time_s=time_s,
    )
