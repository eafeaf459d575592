"""How fast is this node, and does it compute what others compute? Measured in a child.

On GPUs each is measured in turn. A node without them is measured with small sizes, in under two
seconds after torch is there: enough to tell a node that limps, not to rank nodes. This imports
torch, so it is imported in the child alone.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from scalewright.health.preflight import Measurement, check_budget


@dataclass(frozen=True)
class _Size:
    matmul: int
    memory_bytes: int
    copy_bytes: int
    tries: int


_SIZES = {
    ("cuda", "light"): _Size(4096, 1 << 30, 256 << 20, 10),
    ("cuda", "full"): _Size(16384, 8 << 30, 1 << 30, 30),
    ("cpu", "light"): _Size(512, 64 << 20, 0, 5),
    ("cpu", "full"): _Size(1024, 256 << 20, 0, 10),
}


def read(question: dict[str, Any]) -> Any:
    """Measure every GPU, or the processor, with a `budget` of "light" or "full"."""
    budget = question.get("budget", "light")
    check_budget(budget)
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    return [asdict(measure(torch.device(name), budget)) for name in names]


def measure(device: torch.device, budget: str) -> Measurement:
    """Measure one device."""
    size = _SIZES[device.type, budget]
    cuda = device.type == "cuda"
    return Measurement(
        device=_uuid(device) if cuda else "cpu",
        model=torch.cuda.get_device_name(device) if cuda else "cpu",
        matmul_flops_per_s=_matmul(device, size),
        memory_bytes_per_s=_memory(device, size),
        copy_to_device_bytes_per_s=_copy(device, size, to_device=True) if cuda else None,
        copy_to_host_bytes_per_s=_copy(device, size, to_device=False) if cuda else None,
        checksum=checksum(device, size.matmul),
    )


def checksum(device: torch.device, size: int, repeats: int = 3) -> str:
    """The bits of a product of whole numbers, hashed; "unstable" if a repetition differs.

    Every sum is exact: inputs up to 31 and up to 2^14 terms stay below the 2^24 of float32. So
    the order of adding does not matter, and only a fault changes a bit.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    row = torch.arange(size, device=device, dtype=torch.int32)
    a = ((31 * row[:, None] + 17 * row[None, :]) % 63 - 31).to(dtype)
    b = ((13 * row[:, None] + 29 * row[None, :]) % 61 - 30).to(dtype)
    seen = {
        hashlib.sha256((a @ b).cpu().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        for _ in range(repeats)
    }
    return seen.pop() if len(seen) == 1 else "unstable"


def _matmul(device: torch.device, size: _Size) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.ones(size.matmul, size.matmul, dtype=dtype, device=device) for _ in range(2))
    return 2 * size.matmul**3 / _best_s(lambda: a @ b, device, size.tries)


def _memory(device: torch.device, size: _Size) -> float:
    source = torch.ones(size.memory_bytes // 4, device=device)
    target = torch.empty_like(source)
    # Each byte is read once and written once.
    return 2 * size.memory_bytes / _best_s(lambda: target.copy_(source), device, size.tries)


def _copy(device: torch.device, size: _Size, *, to_device: bool) -> float:
    host = torch.ones(size.copy_bytes // 4, pin_memory=True)
    there = torch.ones(size.copy_bytes // 4, device=device)
    source, target = (host, there) if to_device else (there, host)
    return size.copy_bytes / _best_s(lambda: target.copy_(source), device, size.tries)


def _best_s(work: Callable[[], object], device: torch.device, tries: int) -> float:
    """Seconds of the fastest of several tries, after one to warm up."""
    times = []
    for _ in range(tries + 1):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _uuid(device: torch.device) -> str:
    """As NVML writes it."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
