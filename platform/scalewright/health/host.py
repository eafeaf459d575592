"""What a node's kernel tells: memory, tasks that hang, network ports, its log. Read, not judged.

Reads /proc, /sys and /dev/kmsg only, nothing that can hang on a disk or a driver. `judge_host` in
`host_judge.py` says what it means.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SHM = "/dev/shm"
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD in the flags of /proc/PID/stat
_KMSG_BYTES = 8192  # the kernel's own limit of one record
_MOST_LINES = 50

# Lines of the kernel's log that are evidence about a node.
_TELLING = re.compile(
    r"NVRM|Xid|Out of memory: Killed|oom-kill|blocked for more than|soft lockup|Hardware Error"
    r"|nfs: server .* not responding|I/O error|EXT4-fs error|XFS .*[Cc]orruption"
    r"|pcieport .*error|AER: .*(?:Uncorrect|Fatal)"
)
_ETHERNET_ERRORS = ("rx_errors", "tx_errors", "rx_crc_errors", "tx_carrier_errors")
_INFINIBAND_ERRORS = (
    "symbol_error",
    "port_rcv_errors",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
)


@dataclass(frozen=True)
class Task:
    """A thread that waits uninterruptibly (state D) now; `started` tells reused numbers apart."""

    pid: int
    tid: int
    name: str
    started: int


@dataclass(frozen=True)
class Port:
    """A network port. `flaps`, `errors`: counted since boot. `kind`: ethernet or infiniband."""

    name: str
    kind: str
    up: bool
    default_route: bool
    flaps: int
    errors: int


@dataclass(frozen=True)
class HostSnapshot:
    """One look at a node's kernel. `kernel_lines`: telling ones since the last look."""

    memory_available_bytes: int
    memory_total_bytes: int
    shm_free_bytes: int
    shm_total_bytes: int
    blocked: tuple[Task, ...]
    ports: tuple[Port, ...]
    kernel_lines: tuple[str, ...]


def reader() -> Callable[[dict[str, Any]], Any]:
    """What answers with a `HostSnapshot` as JSON; the kernel's log is read from now on."""
    log = KernelLog()
    return lambda question: asdict(read_host(log))


def from_json(value: dict[str, Any]) -> HostSnapshot:
    """The snapshot that a child answered with."""
    return HostSnapshot(
        **{
            **value,
            "blocked": tuple(Task(**task) for task in value["blocked"]),
            "ports": tuple(Port(**port) for port in value["ports"]),
            "kernel_lines": tuple(value["kernel_lines"]),
        }
    )


def read_host(log: "KernelLog", root: Path = Path("/")) -> HostSnapshot:
    """Look at the kernel's files under `root`."""
    available, total = read_memory(root)
    shm = os.statvfs(_SHM)
    return HostSnapshot(
        memory_available_bytes=available,
        memory_total_bytes=total,
        shm_free_bytes=shm.f_bavail * shm.f_frsize,
        shm_total_bytes=shm.f_blocks * shm.f_frsize,
        blocked=tuple(blocked_tasks(root)),
        ports=tuple(read_ports(root)),
        kernel_lines=tuple(log.new_lines()),
    )


def read_memory(root: Path) -> tuple[int, int]:
    """Available and total bytes: of the machine, or of this control group if that is less."""
    lines = dict(
        line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line
    )
    total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    group = root / "sys/fs/cgroup"
    limit = _text(group / "memory.max")
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        # Pages of files that are not in use are given back before anything is killed.
        cached = re.search(r"^inactive_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
        used = int(_text(group / "memory.current") or 0) - (int(cached[1]) if cached else 0)
        available = min(available, max(0, total - used))
    return available, total


def blocked_tasks(root: Path) -> Iterator[Task]:
    """Threads of user processes that are in state D at this moment."""
    proc = os.path.join(root, "proc")  # thousands of files: Path objects would cost most of it
    for pid in filter(str.isdigit, os.listdir(proc)):
        try:
            threads = os.listdir(f"{proc}/{pid}/task")
        except OSError:
            continue  # it ended
        for tid in threads:
            name, fields = _stat(f"{proc}/{pid}/task/{tid}/stat")
            if fields[:1] == ["D"] and not int(fields[6]) & _KERNEL_THREAD:
                yield Task(int(pid), int(tid), name, int(fields[19]))


def _stat(path: str) -> tuple[str, list[str]]:
    """A task's name and what stands behind it; nothing of one that ended."""
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return "", []
    name, _, rest = text.partition("(")[2].rpartition(")")  # a name may hold brackets
    return name, rest.split()


def read_ports(root: Path) -> Iterator[Port]:
    """Ethernet ports with hardware or the default route, and all InfiniBand ports."""
    routes = [line.split() for line in _text(root / "proc/net/route").splitlines()[1:]]
    default = {route[0] for route in routes if route[1:2] == ["00000000"]}
    for port in _folders(root / "sys/class/net"):
        if port.name in default or (port / "device").exists():
            yield Port(
                name=port.name,
                kind="ethernet",
                # A port that does not say is one of a virtual machine, and works.
                up=_text(port / "operstate") in ("up", "unknown"),
                default_route=port.name in default,
                flaps=_number(port / "carrier_changes"),
                errors=sum(_number(port / "statistics" / name) for name in _ETHERNET_ERRORS),
            )
    for device in _folders(root / "sys/class/infiniband"):
        for port in _folders(device / "ports"):
            yield Port(
                name=f"{device.name}/{port.name}",
                kind="infiniband",
                up="ACTIVE" in _text(port / "state"),
                default_route=False,
                flaps=_number(port / "counters/link_downed"),
                errors=sum(_number(port / "counters" / name) for name in _INFINIBAND_ERRORS),
            )


class KernelLog:
    """The telling lines of /dev/kmsg since it was opened; none where it cannot be read."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError:
            pass  # only root may read it on most machines, and containers have none

    def new_lines(self) -> list[str]:
        """At most the last fifty; each without the kernel's prefix."""
        lines = []
        while record := self._record():
            text = record.split(";", 1)[-1].splitlines()[0]
            if _TELLING.search(text):
                lines.append(text)
        return lines[-_MOST_LINES:]

    def _record(self) -> str:
        while self._file is not None:
            try:
                return os.read(self._file, _KMSG_BYTES).decode(errors="replace")
            except BlockingIOError:
                return ""  # nothing more for now
            except BrokenPipeError:
                continue  # the oldest lines were overwritten; the next read goes on behind them
            except OSError:
                self._file = None
        return ""


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """What a file of the kernel holds; empty if it is not there, as for a task that ended."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0
