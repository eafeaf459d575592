"""What a node's kernel means for a run: pure, from one look and what earlier ones left behind.

Thresholds: port flaps from ByteRobust (two alarms within 5 minutes), clock limits from the fault
taxonomy of this project (warn over 1 s, suspect over 30 s).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Remedy, Verdict
from scalewright.health.host import HostSnapshot, Port, Task


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """From where on a node's kernel is said to be unwell."""

    memory_share: float = 0.05
    shm_share: float = 0.05
    shm_bytes: int = 1 << 20
    blocked_s: float = 60.0
    flaps: int = 2
    flap_window_s: float = 300.0
    errors_per_s: float = 100.0
    needed_ports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("memory_share", "shm_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; a share of 0 to 1")
        for name in ("blocked_s", "flap_window_s", "errors_per_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}; more than 0")
        if self.flaps < 1:
            raise ConfigError(f"flaps = {self.flaps}; at least 1")


@dataclass(frozen=True)
class HostPast:
    """What must be remembered: since when tasks hang, ports as they were, flaps so far."""

    blocked_since: Mapping[Task, float] = field(default_factory=dict)
    ports: Mapping[str, Port] = field(default_factory=dict)
    ever_up: frozenset[str] = frozenset()
    flapped: tuple[tuple[str, float, int], ...] = ()
    clock_s: float | None = None


def judge_host(
    past: HostPast, look: HostSnapshot, time_s: float, clock_s: float, limits: HostLimits
) -> tuple[HostPast, tuple[Finding, ...]]:
    """The findings of one look at `time_s` (wall) and `clock_s` (monotonic), and what to keep."""
    blocked = {task: past.blocked_since.get(task, clock_s) for task in look.blocked}
    flapped = _flaps(past, look, clock_s, limits)
    now = HostPast(
        blocked_since=blocked,
        ports={port.name: port for port in look.ports},
        ever_up=past.ever_up | {port.name for port in look.ports if port.up},
        flapped=flapped,
        clock_s=clock_s,
    )
    findings = (
        _memory(look, time_s, limits),
        _shm(look, time_s, limits),
        _blocked(blocked, time_s, clock_s, limits),
        _ports(past, now, time_s, limits),
        _kernel_log(look, time_s),
    )
    return now, findings


def judge_clock(offset_s: float, time_s: float) -> Finding:
    """The clock of a node that is `offset_s` ahead of its peers' (`clock_offset_s`)."""
    verdict, remedy, limit = Verdict.PASS, Remedy.NONE, ""
    if abs(offset_s) > 30:
        limit = ", more than 30 s; start its time service"
        verdict, remedy = Verdict.FAIL, Remedy.INSPECT
    elif abs(offset_s) > 1:
        verdict, limit = Verdict.WARN, ", more than 1 s"
    ahead = "ahead of" if offset_s > 0 else "behind"
    return Finding(
        check="clock",
        verdict=verdict,
        reason=f"the clock is {abs(offset_s):.2f} s {ahead} its peers'{limit}",
        remedy=remedy,
        evidence={"offset_s": offset_s},
        time_s=time_s,
    )


def clock_offset_s(sent_s: float, node_s: float, received_s: float) -> float:
    """How far a node's clock is ahead: it said `node_s` between our `sent_s` and `received_s`.

    Zero as long as the answer could be right: what the way took is nobody's error.
    """
    if sent_s <= node_s <= received_s:
        return 0.0
    return node_s - received_s if node_s > received_s else node_s - sent_s


def _memory(look: HostSnapshot, time_s: float, limits: HostLimits) -> Finding:
    share = look.memory_available_bytes / max(1, look.memory_total_bytes)
    low = share < limits.memory_share
    return _finding(
        "memory",
        Verdict.WARN if low else Verdict.PASS,
        f"{look.memory_available_bytes / 2**30:.1f} GiB ({share:.0%}) of memory available"
        + (f", less than {limits.memory_share:.0%}" if low else ""),
        time_s,
        {"available_bytes": look.memory_available_bytes},
    )


def _shm(look: HostSnapshot, time_s: float, limits: HostLimits) -> Finding:
    free = look.shm_free_bytes
    told = f"{free / 2**20:.0f} MiB free in /dev/shm"
    evidence = {"free_bytes": free, "total_bytes": look.shm_total_bytes}
    if free < limits.shm_bytes:
        reason = told + "; delete what dead processes left there"
        return _finding("shm", Verdict.FAIL, reason, time_s, evidence)
    low = free < limits.shm_share * look.shm_total_bytes
    return _finding("shm", Verdict.WARN if low else Verdict.PASS, told, time_s, evidence)


def _blocked(
    since: Mapping[Task, float], time_s: float, clock_s: float, limits: HostLimits
) -> Finding:
    long = {task: clock_s - begin for task, begin in since.items()}
    long = {task: lasted_s for task, lasted_s in long.items() if lasted_s >= limits.blocked_s}
    if not long:
        reason = "no task waits uninterruptibly for long"
        return _finding("blocked", Verdict.PASS, reason, time_s, {})
    worst = max(long, key=lambda task: long[task])
    return _finding(
        "blocked",
        Verdict.WARN,
        f"{len(long)} tasks in state D for over {limits.blocked_s:.0f} s, as {worst.name} "
        f"(thread {worst.tid} of {worst.pid}) for {long[worst]:.0f} s; look at its mounts",
        time_s,
        {"tasks": [[task.pid, task.tid, task.name, round(s)] for task, s in long.items()]},
    )


def _flaps(
    past: HostPast, look: HostSnapshot, clock_s: float, limits: HostLimits
) -> tuple[tuple[str, float, int], ...]:
    """(port, when, how often it went down) within the window."""
    new = tuple(
        (port.name, clock_s, port.flaps - past.ports[port.name].flaps)
        for port in look.ports
        if port.name in past.ports and port.flaps > past.ports[port.name].flaps
    )
    return tuple(one for one in past.flapped + new if clock_s - one[1] <= limits.flap_window_s)


def _ports(past: HostPast, now: HostPast, time_s: float, limits: HostLimits) -> Finding:
    wrong = list(_wrong_ports(past, now, limits))
    if not wrong:
        up = sorted(name for name, port in now.ports.items() if port.up)
        return _finding("ports", Verdict.PASS, f"up: {', '.join(up) or 'none'}", time_s, {})
    fail = any(severe for severe, _ in wrong)
    return _finding(
        "ports",
        Verdict.FAIL if fail else Verdict.WARN,
        "; ".join(reason for _, reason in wrong),
        time_s,
        {"ports": {name: [port.up, port.flaps, port.errors] for name, port in now.ports.items()}},
        Remedy.INSPECT if fail else Remedy.NONE,
    )


def _wrong_ports(past: HostPast, now: HostPast, limits: HostLimits) -> Iterator[tuple[bool, str]]:
    """(whether training stands or falls with it, what is wrong) for each port."""
    for name in limits.needed_ports:
        if name not in now.ports:
            yield True, f"port {name} is not there, but needed"
    for name in sorted(now.ever_up - now.ports.keys()):
        yield False, f"port {name} was up and is gone"
    for name, port in now.ports.items():
        severe = name in limits.needed_ports or port.kind == "infiniband" or port.default_route
        if not port.up and (name in now.ever_up or name in limits.needed_ports):
            yield severe, f"port {name} is down"
        # Ethernet counts down and up; half of it is how often the link was lost.
        changes = sum(count for flapped, _, count in now.flapped if flapped == name)
        flaps = changes if port.kind == "infiniband" else changes // 2
        if flaps >= limits.flaps:
            yield severe, f"port {name} went down {flaps} times in {limits.flap_window_s:.0f} s"
        before = past.ports.get(name)
        if before is not None and past.clock_s is not None and now.clock_s is not None:
            rate = (port.errors - before.errors) / max(1e-3, now.clock_s - past.clock_s)
            if rate > limits.errors_per_s:
                yield False, f"port {name} counts {rate:.0f} errors/s"


def _kernel_log(look: HostSnapshot, time_s: float) -> Finding:
    lines = look.kernel_lines
    if not lines:
        return _finding("kernel_log", Verdict.PASS, "nothing telling", time_s, {})
    reason = f"{len(lines)} telling lines in the kernel's log, the last: {lines[-1][:200]}"
    return _finding("kernel_log", Verdict.WARN, reason, time_s, {"lines": list(lines)})


def _finding(
    check: str,
    verdict: Verdict,
    reason: str,
    time_s: float,
    evidence: Mapping[str, Any],
    remedy: Remedy = Remedy.NONE,
) -> Finding:
    return Finding(
        check=f"host.{check}",
        verdict=verdict,
        reason=reason,
        remedy=remedy,
        evidence=evidence,
        time_s=time_s,
    )
