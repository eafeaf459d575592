"""`ray job submit` to a real head that knows nothing of this tree but what is submitted."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from commands import ROOT, SMALL, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = (sys.executable, "-m", "ray.scripts.scripts")

# Appended to a module of the submitted tree: every process that imports it leaves its path.
WITNESS = """
with open(os.path.join(os.environ["SCALEWRIGHT_HOME"], "imported"), "a") as witness:
    witness.write(f"{os.getpid()} {__file__}\\n")
"""


@dataclass(frozen=True)
class Head:
    """A Ray head of its own ports and folder, started in the root of the tree."""

    address: str
    folder: Path
    environment: dict[str, str]

    def submit(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAY, "job", "submit", *arguments],
            cwd=cwd,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=120,
        )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def end(leader: subprocess.Popen[str]) -> None:
    """End one Ray head and all that it started, and no other: `ray stop` would end every Ray."""
    family = psutil.Process(leader.pid).children(recursive=True)
    leader.terminate()  # alone: it ends its children in order
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(timeout=30)
    for process in (*family, leader):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    leader.communicate()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray puts sockets into its folder, and their paths are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    ports = dict(
        zip(
            ("--port", "--dashboard-port", "--dashboard-agent-listen-port",
             "--dashboard-agent-grpc-port", "--metrics-export-port", "--ray-client-server-port"),
            free_ports(6),
            strict=True,
        )
    )  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_AUTH_MODE": "token",  # a head listens on every interface of the machine
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    options = [f"{name}={port}" for name, port in ports.items()]
    leader = subprocess.Popen(
        [*RAY, "start", "--head", "--block", "--num-cpus=2",
         f"--temp-dir={folder}/ray", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{ports['--dashboard-port']}"
        wait_for(lambda: answers(f"{address}/api/version"), leader, limit_s=60)
        yield Head(address, folder, environment)
    finally:
        end(leader)
        shutil.rmtree(folder, ignore_errors=True)


def copy_of_the_tree(folder: Path) -> Path:
    """What a user would submit, with a witness in a module that driver and workers import."""
    for name in ("platform", "planner", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    with (folder / "platform" / "scalewright" / "train" / "worker.py").open("a") as module:
        module.write(WITNESS)
    return folder


def test_driver_and_workers_run_the_submitted_tree(
    head: Head, data_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = head.submit(
        "--address", head.address, "--working-dir", ".",
        "--runtime-env-json", json.dumps({"env_vars": {"SCALEWRIGHT_HOME": str(home)}}),
        "--", "python", "jobs/pretrain.py", *SMALL, "steps=4", "log.sample_clips=0",
        f"data.path={data_folder}", "name=submitted", "--workers", "1",
        cwd=copy_of_the_tree(tmp_path / "tree"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout

    summary = json.loads((home / "runs" / "submitted" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["world_size"]) == ("done", 4, 1)
    imported = [line.split() for line in (home / "imported").read_text().splitlines()]
    assert len({process for process, _ in imported}) == 2  # driver and worker
    uploaded = head.folder / "ray"
    assert [path for _, path in imported if not path.startswith(f"{uploaded}/")] == []


def test_a_job_is_submitted_by_its_path_alone_where_the_head_was_started(
    head: Head, data_folder: Path
) -> None:
    done = head.submit("--", "jobs/pretrain.py", f"data.path={data_folder}", "--dry-run", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (plan,) = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert plan["config"]["data"]["path"] == str(data_folder)
    assert plan["params"] > 0


def test_a_refused_job_fails_and_says_why(head: Head, data_folder: Path) -> None:
    done = head.submit("--", "jobs/pretrain.py", f"data.path={data_folder}", "optimizer.lr_pek=1")
    assert done.returncode != 0
    assert "did you mean 'optimizer.lr_peak'" in done.stdout + done.stderr
    assert "failed" in (done.stdout + done.stderr).casefold()
