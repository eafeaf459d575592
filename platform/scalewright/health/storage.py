"""Can this node write a folder, and read back what it wrote? Also how full it is.

The reading runs in a child: a mount whose server is gone hangs whoever touches it. Storage that
fails on many nodes at once is the storage's fault, so these findings ask for no node's remedy.
"""

import hashlib
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scalewright.errors import ConfigError
from scalewright.health.finding import Finding, Verdict

_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class StorageLimits:
    """From where on a folder is said to be full or slow."""

    warn_free_bytes: int = 20 << 30
    fail_free_bytes: int = 1 << 30
    fail_free_inodes: int = 1000
    warn_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.fail_free_bytes <= self.warn_free_bytes:
            raise ConfigError(
                f"fail_free_bytes = {self.fail_free_bytes}; 0 to warn_free_bytes = "
                f"{self.warn_free_bytes}"
            )


@dataclass(frozen=True)
class StorageSnapshot:
    """One try: `error` is what the system said, None if the bytes came back as written.

    A volume without inodes of its own has `total_inodes` 0.
    """

    folder: str
    error: str | None
    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int
    took_s: float


def read(question: dict[str, Any]) -> Any:
    """Try the folder that the question names: statvfs, write, fsync, read back, compare, delete."""
    begin = time.monotonic()
    folder = Path(question["folder"])
    free = total = free_inodes = total_inodes = 0
    try:
        volume = os.statvfs(folder)
        free, total = volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize
        free_inodes, total_inodes = volume.f_favail, volume.f_files
        error = _round_trip(folder)
    except OSError as refused:
        error = f"{type(refused).__name__}: {refused}"
    took_s = time.monotonic() - begin
    return asdict(
        StorageSnapshot(str(folder), error, free, total, free_inodes, total_inodes, took_s)
    )


def judge_storage(look: StorageSnapshot, time_s: float, limits: StorageLimits) -> Finding:
    """What one try says about the folder."""
    verdict, reason = _judge(look, limits)
    evidence = {"free_bytes": look.free_bytes, "took_s": round(look.took_s, 3)}
    return Finding(
        check="storage.write",
        verdict=verdict,
        reason=f"{look.folder}: {reason}",
        evidence={"folder": look.folder, **evidence},
        time_s=time_s,
    )


def _judge(look: StorageSnapshot, limits: StorageLimits) -> tuple[Verdict, str]:
    free = f"{look.free_bytes / 2**30:.1f} GiB free"
    if look.error is not None:
        return Verdict.FAIL, look.error
    if look.free_bytes < limits.fail_free_bytes:
        return Verdict.FAIL, f"{free}, less than {limits.fail_free_bytes / 2**30:.1f}; make room"
    if look.total_inodes and look.free_inodes < limits.fail_free_inodes:
        return Verdict.FAIL, f"{look.free_inodes} inodes left; delete files"
    if look.free_bytes < limits.warn_free_bytes:
        return Verdict.WARN, f"{free}, less than {limits.warn_free_bytes / 2**30:.1f}"
    if look.took_s > limits.warn_s:
        return Verdict.WARN, f"a small file took {look.took_s:.1f} s, over {limits.warn_s:.0f} s"
    return Verdict.PASS, f"{free}, a small file took {look.took_s * 1000:.0f} ms"


def _round_trip(folder: Path) -> str | None:
    """What is wrong with writing and reading; `OSError` where the system refuses."""
    content = os.urandom(_BYTES)
    with tempfile.TemporaryFile(dir=folder, prefix=".scalewright-health-", buffering=0) as file:
        file.write(content)  # the file has no name any more: a child killed here leaves nothing
        os.fsync(file.fileno())
        # What is read back should come from the volume and not from this node's cache.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        back = os.pread(file.fileno(), _BYTES, 0)
    if hashlib.sha256(back).digest() != hashlib.sha256(content).digest():
        return f"{_BYTES} bytes came back different from what was written"
    return None
