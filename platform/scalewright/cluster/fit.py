"""One worker group under Ray Train: placed on chosen nodes, run to its end, errors by rank."""

import logging
import os
import time
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from scalewright.cluster.classify import RankError
from scalewright.cluster.order import Order, place_of_record
from scalewright.cluster.preload import WORKER
from scalewright.cluster.words import leave_word
from scalewright.config import merge
from scalewright.errors import ScalewrightError
from scalewright.train.run import RunConfig
from scalewright.train.worker import train


def fit(order: Order) -> list[RankError]:
    """Run the worker group; returns the errors of its ranks, none if every rank came to its end."""
    parallel = order.run_config.parallel
    nodes = [node for node, workers in order.nodes.items() for _ in range(workers)]
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": order.config, "place": order.place},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as the one of before V2
            num_workers=len(nodes),
            use_gpu=parallel.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": parallel.gpus_per_worker},
            label_selector=[{"ray.io/node-id": node} for node in nodes],
        ),
        torch_config=TorchConfig(timeout_s=int(parallel.collective_timeout_s)),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one of before V2
            name=f"attempt-{order.attempt}",
            storage_path=str(order.folder / "ray"),
            # Whatever fails, an attempt has failed: the supervisor decides what follows.
            failure_config=FailureConfig(  # type: ignore[call-arg]  # typed as the one of before V2
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            worker_runtime_env={"env_vars": {**WORKER, **parallel.environment_variables()}},
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return [_of_ray(rank, _cause(e)) for rank, e in error.worker_failures.items()]
    except TrainingFailedError as error:
        logging.getLogger(__name__).error("Ray Train failed: %s", error)
        raise
    return []


def _worker(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    place, rank = place_of_record(loop_config["place"]), ray.train.get_context().get_world_rank()
    try:
        config = merge(RunConfig(), loop_config["config"], where="the driver")
        _use_assigned_threads()
        train(config, place, ray.train.torch.get_device())
    except Exception as error:
        leave_word(place, rank, error)
        raise


def _use_assigned_threads() -> None:
    """Ray limits threads to the worker's CPUs; torch was imported before, and took them all."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads.split(",")[0]))


def _of_ray(rank: int, error: BaseException) -> RankError:
    """An error as Ray hands it on, where it says less than the rank's own word."""
    kinds = tuple(kind.__name__ for kind in type(error).__mro__[:-1])
    code = error.exit_code if isinstance(error, ScalewrightError) else None
    return RankError(rank, kinds, str(error), time.time(), exit_code=code)


def _cause(error: BaseException) -> BaseException:
    """What the worker raised, out of Ray Train's wrapping."""
    return getattr(error, "_base_exc", error)
