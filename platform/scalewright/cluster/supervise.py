"""A run as a row of attempts: place, launch, judge, place again."""

import fcntl
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from scalewright.cluster.classify import Failure, classify
from scalewright.cluster.launch import slots
from scalewright.cluster.placement import choose_workers
from scalewright.cluster.policy import Ended, Stop, decide
from scalewright.config import merge, to_dict
from scalewright.errors import ConfigError, ScalewrightError
from scalewright.events import EVENTS_FILE, EventLog
from scalewright.train.checkpoint import committed
from scalewright.train.run import RunConfig
from scalewright.train.worker import CHECKPOINTS, SUMMARY, RunPlace, train, write_json

logger = logging.getLogger(__name__)

STATE = "run.json"


class RunStoppedError(ScalewrightError):
    """The run ended before its last step; the message says why, `exit_code` whether to retry."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunFolders:
    """Where a run and its data lie, as absolute paths that every node can open."""

    run: Path
    data: str | Path
    codec_weights: Path | None = None
    inception_weights: Path | None = None


def supervise(config: RunConfig, folders: RunFolders) -> dict[str, Any]:
    """Train until the run is done; returns its summary.

    Raises `RunStoppedError` when restarting cannot help, `ConfigError` when the run never fitted
    the cluster, KeyboardInterrupt on Ctrl-C. Whatever ends it, the same call goes on from the
    newest verified checkpoint. Hold `only_driver` around it.
    """
    history: list[Ended] = []
    while True:
        attempt = _next_attempt(folders.run)
        failure = _placed_attempt(config, folders, attempt, first=not history)
        if failure is None:
            return json.loads((folders.run / SUMMARY).read_text())
        history.append(Ended(failure, _checkpoint_step(folders.run)))
        _note(folders.run, attempt, failure)
        decision = decide(history, config.parallel.max_restarts)
        if isinstance(decision, Stop):
            raise RunStoppedError(decision.reason, decision.exit_code)
        logger.warning("attempt %d ended (%s); restarting", attempt, failure.signature)
        time.sleep(decision.delay_s)


def finished(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has taken all its steps."""
    path = folder / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else None
    return summary if summary and summary["steps"] == config.steps else None


def _placed_attempt(
    config: RunConfig, folders: RunFolders, attempt: int, *, first: bool
) -> Failure | None:
    """An attempt on as many workers as fit; later on, too few may be a node that will be back."""
    try:
        workers = choose_workers(config, slots(config.parallel.gpus_per_worker))
    except ConfigError as error:
        if first:
            raise
        return Failure("placement", str(error))
    with _own_interrupts():
        return _attempt(config, folders, attempt, workers)


def _attempt(config: RunConfig, folders: RunFolders, attempt: int, workers: int) -> Failure | None:
    """Run one worker group to its end; None if the run is done."""
    (folders.run / SUMMARY).unlink(missing_ok=True)
    place = RunPlace(
        folders.run, folders.data, attempt, folders.codec_weights, folders.inception_weights
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": to_dict(config), "place": asdict(place)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=config.parallel.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": config.parallel.gpus_per_worker},
        ),
        torch_config=TorchConfig(timeout_s=int(config.parallel.collective_timeout_s)),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one of before V2
            name=f"attempt-{attempt}",
            storage_path=str(folders.run / "ray"),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": config.parallel.environment_variables()},
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        return classify({rank: _cause(e) for rank, e in error.worker_failures.items()})
    except ControllerError as error:
        return Failure("controller", str(error.controller_failure))
    except TrainingFailedError as error:
        return Failure("controller", str(error))
    except SystemExit:
        # Ray Train turns Ctrl-C into an abort of its controller and an exit of the driver.
        raise KeyboardInterrupt from None
    if not (folders.run / SUMMARY).exists():
        raise KeyboardInterrupt
    return None


def _worker(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    config = merge(RunConfig(), loop_config["config"], where="the driver")
    train(config, RunPlace(**loop_config["place"]), ray.train.torch.get_device())


def _cause(error: BaseException) -> BaseException:
    """What the worker raised, out of Ray Train's wrapping."""
    return getattr(error, "_base_exc", error)


def _checkpoint_step(folder: Path) -> int:
    names = [path.name for path in committed(folder / CHECKPOINTS)]
    return int(names[0].removeprefix("step-")) if names else 0


def _next_attempt(folder: Path) -> int:
    """Count attempts over the whole life of the run, also over drivers."""
    path = folder / STATE
    before = json.loads(path.read_text())["attempt"] if path.exists() else 0
    write_json(path, {"attempt": before + 1})
    return before + 1


def _note(folder: Path, attempt: int, failure: Failure) -> None:
    log = EventLog(folder / EVENTS_FILE, attempt)
    log.event("attempt_failed", cause=failure.cause, rank=failure.rank, reason=failure.signature)
    log.close()


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Take back Ctrl-C afterwards: Ray Train leaves a handler that would swallow it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Two drivers on one run would write the same files; the second one is refused.

    The lock lies beside the run's folder, so that it holds also while the folder is moved.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStoppedError(
                f"{folder} is being trained by another driver on this machine; wait for it, or "
                "choose another name=...",
                2,
            ) from None
        yield
