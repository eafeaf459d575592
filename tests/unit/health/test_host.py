"""The kernel's files are read as they are, and judged over several looks."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Verdict
from scalewright.health.host import (
    HostSnapshot,
    KernelLog,
    Port,
    Task,
    blocked_tasks,
    read_host,
    read_memory,
    read_ports,
)
from scalewright.health.host_judge import (
    HostLimits,
    HostPast,
    clock_offset_s,
    judge_clock,
    judge_host,
)

GIB = 1 << 30
ETH = Port("eth0", "ethernet", True, True, 10, 0)
IB = Port("mlx5_0/1", "infiniband", True, False, 0, 0)
WELL = HostSnapshot(50 * GIB, 100 * GIB, 10 * GIB, 10 * GIB, (), (ETH, IB), ())
TASK = Task(7, 8, "loader", 99)


def judged(*looks: tuple[float, HostSnapshot], limits: HostLimits | None = None) -> dict[str, Any]:
    """The findings of the last of several (clock, snapshot), by check."""
    past, findings = HostPast(), tuple[Finding, ...]()
    for clock_s, look in looks:
        past, findings = judge_host(past, look, 1e9 + clock_s, clock_s, limits or HostLimits())
    return {one.check.removeprefix("host."): one for one in findings}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_this_machine_is_read() -> None:
    look = read_host(KernelLog())
    assert 0 < look.memory_available_bytes <= look.memory_total_bytes
    assert all(one.verdict is not Verdict.FAIL for one in judged((0, look)).values())


def test_memory_of_a_control_group_is_what_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    assert read_memory(tmp_path) == (800 * 1024, 1000 * 1024)
    group = tmp_path / "sys/fs/cgroup"
    write(group / "memory.max", "102400\n")
    write(group / "memory.current", "100000\n")
    write(group / "memory.stat", "anon 5\ninactive_file 60000\n")
    assert read_memory(tmp_path) == (62400, 102400)


def test_hanging_tasks_are_found_whatever_their_name(tmp_path: Path) -> None:
    def stat(tid: int, name: str, state: str, flags: int = 0) -> None:
        fields = f"{state} 1 1 1 0 -1 {flags} " + " ".join("0" * 12) + " 4242 0"
        write(tmp_path / f"proc/7/task/{tid}/stat", f"{tid} ({name}) {fields}")

    stat(7, "python", "S")
    stat(8, "a) D (b", "D")
    stat(9, "sleeper", "S")
    stat(10, "jbd2", "D", flags=0x00200000)  # the kernel's own
    assert list(blocked_tasks(tmp_path)) == [Task(7, 8, "a) D (b", 4242)]


def test_a_task_counts_only_after_a_minute_in_one_go() -> None:
    hung = replace(WELL, blocked=(TASK,))
    assert judged((0, hung))["blocked"].verdict is Verdict.PASS
    assert judged((0, hung), (59, hung))["blocked"].verdict is Verdict.PASS
    last = judged((0, hung), (30, hung), (60, hung))["blocked"]
    assert last.verdict is Verdict.WARN
    assert "loader" in last.reason
    assert judged((0, hung), (30, WELL), (60, hung))["blocked"].verdict is Verdict.PASS
    other = replace(WELL, blocked=(replace(TASK, started=100),))  # the same number, used again
    assert judged((0, hung), (60, other))["blocked"].verdict is Verdict.PASS


def test_memory_and_shared_memory() -> None:
    assert judged((0, replace(WELL, memory_available_bytes=GIB)))["memory"].verdict is Verdict.WARN
    assert judged((0, replace(WELL, shm_free_bytes=GIB // 4)))["shm"].verdict is Verdict.WARN
    assert judged((0, replace(WELL, shm_free_bytes=100)))["shm"].verdict is Verdict.FAIL


def test_ports_are_read(tmp_path: Path) -> None:
    net = tmp_path / "sys/class/net"
    write(net / "eth0/operstate", "down\n")
    write(net / "eth0/carrier_changes", "5\n")
    write(net / "eth0/statistics/rx_errors", "3\n")
    write(net / "eth0/device/vendor", "x")
    write(net / "veth7/operstate", "down\n")  # of a container, comes and goes
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    write(port / "state", "4: ACTIVE\n")
    write(port / "counters/link_downed", "2\n")
    write(port / "counters/symbol_error", "9\n")
    assert list(read_ports(tmp_path)) == [
        Port("eth0", "ethernet", False, False, 5, 3),
        Port("mlx5_0/1", "infiniband", True, False, 2, 9),
    ]


@pytest.mark.parametrize(
    ("after", "needed", "verdict", "told"),
    [
        ((ETH, IB), (), Verdict.PASS, "up: eth0, mlx5_0/1"),
        ((ETH, replace(IB, up=False)), (), Verdict.FAIL, "mlx5_0/1 is down"),
        ((replace(ETH, up=False), IB), (), Verdict.FAIL, "eth0 is down"),
        ((IB,), (), Verdict.WARN, "eth0 was up and is gone"),
        ((ETH, IB), ("mlx5_1/1",), Verdict.FAIL, "mlx5_1/1 is not there"),
        ((ETH, replace(IB, flaps=1)), (), Verdict.PASS, "up"),
        ((ETH, replace(IB, flaps=2)), (), Verdict.FAIL, "went down 2 times"),
        ((replace(ETH, flaps=12), IB), (), Verdict.PASS, "up"),  # once down and up again
        ((replace(ETH, flaps=14), IB), (), Verdict.FAIL, "went down 2 times"),
        ((replace(ETH, errors=1500), IB), (), Verdict.PASS, "up"),
        ((replace(ETH, errors=1600), IB), (), Verdict.WARN, "eth0 counts 107 errors/s"),
    ],
)
def test_ports_are_judged_by_what_changed(
    after: tuple[Port, ...], needed: tuple[str, ...], verdict: Verdict, told: str
) -> None:
    looks = ((0.0, WELL), (15.0, replace(WELL, ports=after)))
    found = judged(*looks, limits=HostLimits(needed_ports=needed))["ports"]
    assert (found.verdict, told in found.reason) == (verdict, True), found.reason


def test_a_port_that_never_was_up_is_nobodys_fault() -> None:
    down = replace(WELL, ports=(replace(ETH, up=False), IB))
    assert judged((0, down), (15, down))["ports"].verdict is Verdict.PASS


def test_flaps_are_forgotten() -> None:
    looks = [(0.0, WELL), (10.0, replace(WELL, ports=(ETH, replace(IB, flaps=2))))]
    assert judged(*looks)["ports"].verdict is Verdict.FAIL
    later = (311.0, replace(WELL, ports=(ETH, replace(IB, flaps=2))))
    assert judged(*looks, later)["ports"].verdict is Verdict.PASS


def test_telling_lines_of_the_kernels_log(tmp_path: Path) -> None:
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    try:
        log = KernelLog(fifo)
        assert log.new_lines() == []
        os.write(keep, b"6,1,2,-;usb 1-1: new device\n")
        assert log.new_lines() == []
        os.write(keep, b"3,2,3,-;NVRM: Xid (PCI:0000:c1:00): 79, GPU has fallen off the bus.\n x=1")
        lines = log.new_lines()
        assert lines == ["NVRM: Xid (PCI:0000:c1:00): 79, GPU has fallen off the bus."]
        assert log.new_lines() == []
    finally:
        os.close(keep)
    assert KernelLog(tmp_path / "absent").new_lines() == []
    found = judged((0, replace(WELL, kernel_lines=tuple(lines))))["kernel_log"]
    assert (found.verdict, found.evidence["lines"]) == (Verdict.WARN, lines)


@pytest.mark.parametrize(
    ("offset_s", "verdict"),
    [(0, Verdict.PASS), (-1, Verdict.PASS), (1.1, Verdict.WARN), (-31, Verdict.FAIL)],
)
def test_clocks(offset_s: float, verdict: Verdict) -> None:
    assert judge_clock(offset_s, 1e9).verdict is verdict


def test_the_way_of_an_answer_is_no_offset() -> None:
    assert clock_offset_s(10, 11, 12) == 0
    assert clock_offset_s(10, 15, 12) == 3
    assert clock_offset_s(10, 7, 12) == -3


def test_limits_that_cannot_be_are_refused() -> None:
    for wrong in ({"memory_share": 2}, {"blocked_s": 0}, {"flaps": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            HostLimits(**wrong)  # type: ignore[arg-type]
