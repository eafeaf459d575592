"""The light checks of a node, each a question to a child and a pure judge of its answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalewright.errors import ConfigError
from scalewright.health import gpus, host
from scalewright.health.finding import Finding, Remedy
from scalewright.health.gpu_rules import GpuLimits
from scalewright.health.host_judge import HostLimits, HostPast, judge_host
from scalewright.health.judge import GpuPast, judge_gpus
from scalewright.health.storage import StorageLimits, StorageSnapshot, judge_storage
from scalewright.health.xid import XidEvent


@dataclass(frozen=True)
class Look:
    """A child's answer, and when it came: wall time and a monotonic clock, both in seconds."""

    value: Any
    time_s: float
    clock_s: float


GPU_PERIOD_S = 5.0  # an XID is to be known within ten seconds

# What earlier looks left behind (None at first) and this look, to what to keep and the findings.
Judge = Callable[[Any, Look], tuple[Any, tuple[Finding, ...]]]


@dataclass(frozen=True, kw_only=True)
class Silence:
    """What it means when a reading hangs `times` in a row while other children answer."""

    reason: str
    remedy: Remedy
    times: int = 3

    def __post_init__(self) -> None:
        if self.times < 2:
            raise ConfigError(f"times = {self.times}; at least 2, since one hang proves nothing")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One child's work: what it reads, how often, how long it may take, who judges it.

    `period_s`: for one that is to be read more often than the agent looks. Without `silence` a
    reading that hangs stays UNKNOWN for ever.
    """

    name: str
    judge: Judge
    question: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = 15.0
    period_s: float | None = None
    silence: Silence | None = None

    def __post_init__(self) -> None:
        if self.deadline_s <= 0:
            raise ConfigError(f"deadline_s = {self.deadline_s} of {self.name}; more than 0")
        if self.period_s is not None and self.period_s <= 0:
            raise ConfigError(f"period_s = {self.period_s} of {self.name}; more than 0")


def light_checks(
    *,
    expected_gpus: int | None = None,
    folders: Sequence[Path] = (),
    ours: Callable[[], frozenset[int]] | None = None,
    gpu_history: Sequence[XidEvent] = (),
    gpu_events: Callable[[Sequence[XidEvent]], None] | None = None,
    gpu_limits: GpuLimits | None = None,
    host_limits: HostLimits | None = None,
    storage_limits: StorageLimits | None = None,
) -> tuple[Check, ...]:
    """Everything that a node can be asked all the time. `folders`: storage that a run writes.

    `expected_gpus`, `ours`, `gpu_history` and `gpu_events` as in `gpu_check`.
    """
    return (
        gpu_check(gpu_limits or GpuLimits(), expected_gpus, ours, gpu_history, gpu_events),
        host_check(host_limits or HostLimits()),
        *(storage_check(folder, storage_limits or StorageLimits()) for folder in folders),
    )


def gpu_check(
    limits: GpuLimits,
    expected: int | None = None,
    ours: Callable[[], frozenset[int]] | None = None,
    history: Sequence[XidEvent] = (),
    events: Callable[[Sequence[XidEvent]], None] | None = None,
) -> Check:
    """All that NVML tells, every five seconds. A driver that hangs its checker fails the node.

    `expected`: how many GPUs there must be. `ours` tells the processes of the run at any time;
    left out, other processes on a GPU do not matter. `history`: XIDs of before this check began, of
    all nodes of a run; they only say what repeats. `events` is told of new ones.
    """
    begun_s = time.time()
    before = tuple(event for event in history if event.time_s < begun_s)

    def judge(past: GpuPast | None, look: Look) -> tuple[GpuPast, tuple[Finding, ...]]:
        snapshot = gpus.from_json(look.value)
        if events is not None and snapshot.events:
            events(snapshot.events)
        return judge_gpus(
            past or GpuPast(begun_s, before),
            snapshot,
            look.time_s,
            look.clock_s,
            limits=limits,
            expected=expected,
            ours=None if ours is None else ours(),
        )

    silence = Silence(reason="the driver hangs the checker", remedy=Remedy.REBOOT)
    return Check(name="gpus", judge=judge, period_s=GPU_PERIOD_S, silence=silence)


def host_check(limits: HostLimits) -> Check:
    """Memory, hanging tasks, network ports and the kernel's log."""

    def judge(past: HostPast | None, look: Look) -> tuple[HostPast, tuple[Finding, ...]]:
        snapshot = host.from_json(look.value)
        return judge_host(past or HostPast(), snapshot, look.time_s, look.clock_s, limits)

    return Check(name="host", judge=judge)


def storage_check(folder: Path, limits: StorageLimits) -> Check:
    """Whether `folder` can be written and read; a hanging mount is a failure of storage."""

    def judge(past: None, look: Look) -> tuple[None, tuple[Finding, ...]]:
        return None, (judge_storage(StorageSnapshot(**look.value), look.time_s, limits),)

    return Check(
        name="storage",
        question={"folder": str(folder.absolute())},
        judge=judge,
        silence=Silence(reason=f"{folder} does not answer", remedy=Remedy.NONE),
    )
