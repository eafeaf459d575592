"""Ray clusters of their own: ports, folder, token; ended by the processes that were started."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from commands import ROOT, wait_for

RAY = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class Head:
    """A Ray head of its own ports and folder, started in the root of the tree.

    `address` is the dashboard's, `gcs` that which drivers and nodes join.
    """

    address: str
    gcs: str
    folder: Path
    environment: dict[str, str]
    leader: subprocess.Popen[str]
    kept: contextlib.ExitStack

    @contextlib.contextmanager
    def without_gcs(self) -> Iterator[None]:
        """Kill Ray's global control service, and start it again afterwards where it was."""
        # It ends its node when a part of that dies, as a container would; a machine would not.
        self.leader.send_signal(signal.SIGSTOP)
        started = psutil.Process(self.leader.pid).children(recursive=True)
        again = psutil.Process().children()  # where it was away before
        (service,) = (
            each
            for each in (*started, *again)
            if "/gcs_server " in f"{_command(each)} " and each.status() != psutil.STATUS_ZOMBIE
        )
        command, environment = service.cmdline(), service.environ()
        service.kill()
        yield
        back = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.kept.callback(back.wait)
        self.kept.callback(back.kill)

    def submit(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAY, "job", "submit", *arguments],
            cwd=cwd,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def node_ids(self) -> list[str]:
        """The nodes that Ray lists as alive; none where it does not answer."""
        asked = "import ray; ray.init(log_to_driver=False)\n"
        asked += "print('nodes', *(n['NodeID'] for n in ray.nodes() if n['Alive']))"
        done = subprocess.run(
            [sys.executable, "-c", asked],
            env=self.environment | {"RAY_ADDRESS": self.gcs},
            capture_output=True,
            text=True,
            timeout=120,
        )
        # On a busy machine Ray prints there, too.
        told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("nodes ")]
        return told[-1] if done.returncode == 0 and told else []

    def pretrain(
        self, home: Path, *arguments: str, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Run `jobs/pretrain.py` on the cluster to its end, with runs kept in `home`."""
        return subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *arguments],
            cwd=home,
            env=self.environment | {"RAY_ADDRESS": self.gcs, "SCALEWRIGHT_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


@dataclass(frozen=True)
class RayNode:
    """A raylet beside the head, and the processes that it started."""

    machine: str
    leader: subprocess.Popen[str]

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Of the node, those whose command line holds `name`."""
        family = psutil.Process(self.leader.pid).children(recursive=True)
        return [each for each in family if name in _command(each)]

    @property
    def alive(self) -> bool:
        return self.leader.poll() is None

    @property
    def node_id(self) -> str:
        """As Ray calls it."""
        (told,) = (word for word in self.raylet.cmdline() if word.startswith("--node_id="))
        return told.partition("=")[2]

    @property
    def raylet(self) -> psutil.Process:
        (found,) = self.processes("/raylet ")
        return found

    def workers(self) -> list[psutil.Process]:
        return self.processes("RayTrainWorker")

    def freeze(self) -> None:
        """Stop all of the node, as if the machine hung or its network were cut."""
        for process in (self.raylet, *self.raylet.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def end(self) -> None:
        """Power off."""
        for process in (*psutil.Process(self.leader.pid).children(recursive=True), self.leader):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.leader.wait()  # not `alive` from now on


@contextlib.contextmanager
def ray_head(
    num_cpus: int, settings: Mapping[str, str] | None = None, machine: str = "head"
) -> Iterator[Head]:
    """A head with so many CPUs; all that it started is gone afterwards.

    `settings` are environment variables of its nodes and of what joins.
    """
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
        "SCALEWRIGHT_MACHINE": machine,
        **(settings or {}),
    }
    options = [f"{name}={port}" for name, port in ports.items()]
    leader = _start(
        ["--head", f"--num-cpus={num_cpus}", f"--temp-dir={folder}/ray", *options], environment
    )
    try:
        address = f"http://127.0.0.1:{ports['--dashboard-port']}"
        wait_for(lambda: _answers(f"{address}/api/version"), leader, limit_s=60)
        gcs = f"127.0.0.1:{ports['--port']}"
        with contextlib.ExitStack() as kept:
            yield Head(address, gcs, folder, environment, leader, kept)
    finally:
        leader.send_signal(signal.SIGCONT)
        _end(leader)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_node(
    head: Head,
    num_cpus: int,
    machine: str = "node",
    nodes: int | None = 2,
    settings: Mapping[str, str] | None = None,
) -> Iterator[RayNode]:
    """Another raylet that has joined the head, which has so many `nodes` then.

    Without that number nobody waits until it has joined. `settings` are environment variables.
    """
    names = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port",
             "--metrics-export-port", "--node-manager-port", "--object-manager-port")  # fmt: skip
    options = [f"{n}={port}" for n, port in zip(names, free_ports(len(names)), strict=True)]
    node = _start(
        [f"--address={head.gcs}", f"--num-cpus={num_cpus}", *options],
        head.environment | {"SCALEWRIGHT_MACHINE": machine, **(settings or {})},
    )
    try:
        if nodes is not None:
            wait_for(lambda: _nodes(head) == nodes, node, limit_s=120)
        yield RayNode(machine, node)
    finally:
        _end(node)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RAY, "start", "--block", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _nodes(head: Head) -> int:
    return len(head.node_ids())


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _end(leader: subprocess.Popen[str]) -> None:
    """End one Ray head or node and all that it started: `ray stop` would end every Ray."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(leader.pid).children(recursive=True)
    leader.terminate()  # alone: it ends its children in order
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(timeout=30)
    for process in (*family, leader):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    leader.communicate()
