"""How long Ray Train by itself stands still when a node of an elastic run dies."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clusters import ray_head, ray_node

LIMIT_S = 300.0

# A worker that does nothing but say that it lives; two workers or one.
JOB = """
import sys, time
import ray, ray.train, torch, torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop(config):
    path = config["steps"]
    rank, size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    while True:
        torch.distributed.all_reduce(torch.ones(1))
        if rank == 0:
            with open(path, "a") as file:
                file.write(f"{time.time()} {size}\\n")
        time.sleep(0.25)

ray.init(log_to_driver=False)
TorchTrainer(
    loop,
    train_loop_config={"steps": sys.argv[1]},
    scaling_config=ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1}),
    run_config=RunConfig(storage_path=sys.argv[2], failure_config=FailureConfig(max_failures=-1)),
).fit()
"""


def shrink_s() -> float:
    """Seconds from the kill of one of two raylets to the first step of the worker that is left."""
    with tempfile.TemporaryDirectory() as folder, ray_head(0) as head:
        steps = Path(folder) / "steps"
        with ray_node(head, 1, "first", 2) as first, ray_node(head, 1, "second", 3) as second:
            job = subprocess.Popen(
                [sys.executable, "-c", JOB, str(steps), folder],
                env=head.environment | {"RAY_ADDRESS": head.gcs},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                _wait_for(steps, size=2, since_s=0.0)
                time.sleep(10)  # settled
                victim = first if first.workers() else second
                victim.raylet.kill()
                return _wait_for(steps, size=1, since_s=time.time())
            finally:
                os.kill(job.pid, 9)
                job.wait()


def _wait_for(steps: Path, size: int, since_s: float) -> float:
    """Seconds from `since_s` to the first step of a world of this size."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        for line in steps.read_text().splitlines() if steps.exists() else ():
            at_s, world = line.split()
            if int(world) == size and float(at_s) > since_s:
                return float(at_s) - since_s
        time.sleep(0.2)
    raise TimeoutError(f"no step of {size} workers within {LIMIT_S:g} s")
