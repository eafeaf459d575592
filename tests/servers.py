"""Real servers on loopback, each started for the tests and ended by its own process id."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
