"""What a worker's processor can do: peak FLOP/s and memory."""

import time

import psutil
import torch

# Dense bf16 without sparsity, from the vendors' data sheets.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def peak_flops(device: torch.device) -> tuple[float, str]:
    """Peak FLOP/s of one worker's device, and where the number is from.

    A CPU has no useful data-sheet number: it is what a large fp32 matrix product reaches here,
    with this process's threads.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for model, peak in _PEAK_FLOPS.items():
            if model in name:
                return peak, f"data sheet of {name}, dense bf16"
    return _measured_matmul(device), f"a 1024 x 1024 matrix product measured on this {device.type}"


def _measured_matmul(device: torch.device) -> float:
    size, repeats = 1024, 4
    a = torch.ones(size, size, device=device)
    a @ a
    begin = time.perf_counter()
    for _ in range(repeats):
        b = a @ a
    b[0, 0].item()
    return 2 * size**3 * repeats / (time.perf_counter() - begin)


def worker_memory_bytes(workers: int, gpus_per_worker: int) -> tuple[float, str] | None:
    """Memory of one of `workers` workers that all run on this machine; None if it has no GPU."""
    if gpus_per_worker:
        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.get_device_properties(0).total_memory), "this machine's GPU"
    total = psutil.virtual_memory().total
    return total / workers, f"this machine's {total / 2**30:.1f} GiB among {workers} workers"
