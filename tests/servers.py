"""Real servers on loopback, each started for the tests and ended by its own process id."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], ready: Callable[[], bool], log: Path) -> Iterator[None]:
    """A server while it is needed; `ready` tells when it answers."""
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """An S3 server in memory; yields its URL."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, lambda: listens(port), folder / "moto.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL cluster of its own; yields the URL of an empty database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = [
        *Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        *([Path(path)] if (path := shutil.which("initdb")) else []),
    ]
    if not found:
        pytest.skip("no PostgreSQL on this machine")
    programs, data, port = sorted(found)[-1].parent, folder / "pg", free_port()
    # It refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        data.mkdir(parents=True)
        shutil.chown(data, user)
        for parent in (folder, *folder.parents):
            if parent == Path("/tmp"):
                break
            parent.chmod(0o755)
    subprocess.run(
        [programs / "initdb", "-D", data, "-A", "trust", "-U", "scalewright", "--no-sync"],
        check=True, capture_output=True, user=user,
    )  # fmt: skip
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", data / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, user=user)
    try:
        yield f"postgresql+psycopg://scalewright@127.0.0.1:{port}/postgres"
    finally:
        stop = [*control, "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, capture_output=True, user=user)


_SWIFT = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
log_level = WARNING
"""
_SWIFT_STORE = """[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
fallocate_reserve = 0
"""
_SWIFT_PROXY = """[pipeline:main]
pipeline = {pipeline} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret_key} .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
"""
_SWIFT_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    ring = RingBuilder(4, 1, 0)
    ring.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1))
    ring.rebalance()
    ring.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""


class Swift:
    """An OpenStack Swift of one disk, with its S3 layer; what it holds outlives its processes."""

    access_key, secret_key = "clips:reader", "not-to-be-told"

    def __init__(self, folder: Path) -> None:
        self._folder, self._servers = folder, list[subprocess.Popen[bytes]]()
        self._ports = {name: free_port() for name in ("account", "container", "object", "proxy")}
        self.url = f"http://127.0.0.1:{self._ports['proxy']}"
        (folder / "disks" / "disk").mkdir(parents=True)
        (folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n"
        )
        for name, port in self._ports.items():
            (folder / f"{name}.conf").write_text(self._settings(name, port))
        stores = [str(port) for name, port in self._ports.items() if name != "proxy"]
        subprocess.run([sys.executable, "-c", _SWIFT_RINGS, folder, *stores], check=True, cwd="/")

    def _settings(self, name: str, port: int) -> str:
        head = _SWIFT.format(port=port, user=getpass.getuser(), folder=self._folder)
        if name != "proxy":
            return head + _SWIFT_STORE.format(name=name)
        account, user = self.access_key.split(":")
        filters = ("catch_errors", "gatekeeper", "healthcheck", "bulk", "copy", "slo", "dlo")
        pipeline = "catch_errors gatekeeper healthcheck bulk s3api tempauth copy slo dlo"
        proxy = _SWIFT_PROXY.format(
            pipeline=pipeline, account=account, user=user, secret_key=self.secret_key
        )
        return head + proxy + "".join(f"[filter:{n}]\nuse = egg:swift#{n}\n" for n in filters)

    def start(self) -> None:
        """Start its processes; returns once they answer."""
        programs = Path(sys.executable).parent
        log = (self._folder / "log").open("ab")
        for name in self._ports:
            command = [programs / f"swift-{name}-server", self._folder / f"{name}.conf"]
            self._servers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd="/"))
        deadline = time.monotonic() + 60
        while not all(map(listens, self._ports.values())):
            if time.monotonic() > deadline or any(s.poll() is not None for s in self._servers):
                pytest.fail(f"Swift does not answer:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End its processes at once, as a power cut does."""
        for server in self._servers:
            server.kill()
        for server in self._servers:
            server.wait()
        self._servers.clear()


@contextmanager
def swift(folder: Path) -> Iterator[Swift]:
    """An S3 server with real authentication, whose data outlive it; yields it started."""
    if find_spec("swift") is None:
        pytest.skip("swift is not installed")
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError as error:
        pytest.skip(f"{folder}: no extended attributes, which Swift needs ({error.strerror})")
    server = Swift(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
