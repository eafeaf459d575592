"""Into Ray: join the job's cluster or start one here, with the code that was submitted."""

import json
import os
from pathlib import Path
from typing import Any

import ray

from scalewright.cluster.packages import packages
from scalewright.command import heed_sigterm
from scalewright.errors import ScalewrightError

# Ray Train's defaults wait ten minutes for a frozen worker.
_TRAIN_SETTINGS = {
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # The monitor sees drained nodes itself.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The platform reports through its own event log.
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray is about to stop hiding GPUs from workers that ask for none; take the new behaviour now.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect(
    address: str | None = None, *, num_cpus: int | None = None, worker_logs: bool = False
) -> None:
    """Join the cluster at `address`, or start one on this machine, on loopback only.

    Left out, the address is RAY_ADDRESS, and without that a cluster is started; `num_cpus` sizes
    it, left out, Ray counts the cores. The packages of this tree go along, so that workers run
    what was submitted, not an older install; what the job's own runtime environment already says
    is left alone, and where SCALEWRIGHT_SHIP_CODE is 0 every node has the same code already.
    `worker_logs` shows what workers print; Ray keeps it in its session folder in any case.
    """
    for name, value in _TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": worker_logs, "logging_level": "error"}
    wanted: dict[str, Any] = {"worker_process_setup_hook": "scalewright.cluster.preload.preload"}
    if os.environ.get("SCALEWRIGHT_SHIP_CODE", "1") != "0":
        wanted["py_modules"] = [str(folder) for folder in packages()]
    options["runtime_env"] = _missing_fields(wanted)
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Ray Train's placement-group cleaner asks the dashboard's state API.
        options |= {
            "num_cpus": num_cpus,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "_node_ip_address": "127.0.0.1",
        }
    try:
        ray.init(address=address or "local", **options)
    except ConnectionError as error:
        raise ScalewrightError(
            f"no Ray cluster answers at RAY_ADDRESS = {address!r}: {error}. Start one, or unset "
            "RAY_ADDRESS to run on this machine"
        ) from None
    # Ray answers SIGTERM with a stack trace and its own exit.
    heed_sigterm()


def starts_cluster() -> bool:
    """Whether a run starts a cluster on this machine, where all its workers then are."""
    return not os.environ.get("RAY_ADDRESS")


def home() -> Path:
    """The folder that relative paths and `runs/` hang from: $SCALEWRIGHT_HOME or the current one.

    A submitted job runs in a throw-away copy of its working directory; there, it is
    `~/scalewright`.
    """
    if configured := os.environ.get("SCALEWRIGHT_HOME"):
        return Path(configured).expanduser().resolve()
    here = Path.cwd().resolve()
    if "working_dir_files" in here.parts:
        return Path.home() / "scalewright"
    return here


def _missing_fields(wanted: dict[str, Any]) -> dict[str, Any]:
    """Ray refuses a field that both the job and `ray.init` name."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    named = job.get("runtime_env", {})
    return {key: value for key, value in wanted.items() if key not in named}
