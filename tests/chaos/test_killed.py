"""Real processes killed while a run is under way."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from commands import SMALL, finish, last_json, run, start, wait_for
from mlflow.tracking import MlflowClient
from ranks import CPU, small, train_on

from scalewright.events import EVENTS_FILE, Notice, read_events
from scalewright.model.mup import meta_model
from scalewright.train.checkpoint import load_weights
from scalewright.train.manifest import committed

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow]

# Long enough to be interrupted, with nothing beside its steps and checkpoints.
LONG = ("steps=80", "log.validate_every_steps=80", "log.sample_clips=0")


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training workers among the driver's own descendants."""
    tree = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in tree if "RayTrainWorker" in " ".join(process.cmdline())]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = meta_model(small().model).to_empty(device=CPU)
    load_weights(committed(folder / "checkpoints")[0], model)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def notices(folder: Path, kind: str) -> list[Notice]:
    events, _ = read_events(folder / EVENTS_FILE, 0, max_bytes=1 << 24)
    return [event for event in events if isinstance(event, Notice) and event.kind == kind]


@pytest.fixture(scope="module")
def uninterrupted(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two plain processes that nothing disturbs."""
    return train_on(2, small(*LONG), tmp_path_factory.mktemp("calm"), data_folder)


def test_a_killed_worker_changes_nothing_but_time(
    data_folder: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    settings = (*SMALL, *LONG, f"data.path={data_folder}", "name=killed")
    driver = start(tmp_path, "pretrain", *settings)
    folder = tmp_path / "runs" / "killed"
    wait_for(lambda: len(committed(folder / "checkpoints")) >= 2, driver, 120)
    victim = workers_of(driver)[0]
    os.kill(victim.pid, signal.SIGKILL)
    code, out, err = finish(driver)
    assert code == 0, err
    assert last_json(out)["attempt"] == 2
    (failed,) = notices(folder, "attempt_failed")
    assert failed.fields["cause"] == "process"
    resumed = notices(folder, "attempt")[1].fields["start_step"]
    assert 0 < resumed < 80
    calm, shaken = weights(uninterrupted), weights(folder)
    assert all(torch.equal(calm[name], shaken[name]) for name in calm)


def test_ctrl_c_leaves_a_run_that_goes_on(
    data_folder: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    settings = (*SMALL, *LONG, f"data.path={data_folder}", "name=stopped")
    driver = start(tmp_path, "pretrain", *settings)
    folder = tmp_path / "runs" / "stopped"
    wait_for(lambda: len(committed(folder / "checkpoints")) >= 1, driver, 120)
    os.kill(driver.pid, signal.SIGINT)
    code, _, err = finish(driver)
    assert code == 130, err
    assert "run the same command again" in err
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "scalewright")

    def tracked() -> list[str]:
        return [run.info.status for run in client.search_runs([experiment.experiment_id])]

    assert tracked() == ["KILLED"]
    code, out, err = run(tmp_path, "pretrain", *settings)
    assert code == 0, err
    assert last_json(out)["attempt"] == 2
    assert notices(folder, "attempt")[1].fields["start_step"] > 0
    assert tracked() == ["FINISHED"]
    calm, resumed = weights(uninterrupted), weights(folder)
    assert all(torch.equal(calm[name], resumed[name]) for name in calm)
