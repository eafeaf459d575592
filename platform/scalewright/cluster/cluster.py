"""The cluster that a run joins: the one that RAY_ADDRESS names, or one started for it here."""

import contextlib
import os
import secrets
import subprocess
import sys

from scalewright.cluster.packages import with_packages
from scalewright.cluster.process import LostError

END_S = 20.0


class Cluster:
    """Tells the address to join; a cluster started for the run is started again if it died.

    `environment` is that of a process that joins: a cluster started here takes its token only.
    """

    def __init__(self, cpus: int | None) -> None:
        self._cpus = cpus
        self.environment = dict(os.environ)
        if not os.environ.get("RAY_ADDRESS"):
            self.environment |= {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
            }
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def __enter__(self) -> "Cluster":
        if not os.environ.get("RAY_ADDRESS"):
            self._start()  # it takes seconds, in which an attempt's process imports
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._end(self._process)

    @property
    def own(self) -> bool:
        """Whether it is started for the run, with all the nodes that it will ever have."""
        return not os.environ.get("RAY_ADDRESS")

    def address(self) -> str:
        """Where to join. `LostError` if a cluster cannot be started here."""
        if outer := os.environ.get("RAY_ADDRESS"):
            return outer
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None
        if not self._address:
            assert self._process.stdout is not None
            self._address = self._process.stdout.readline().strip()
        if not self._address:
            raise LostError("no Ray cluster could be started on this machine; see above")
        return self._address

    def _start(self) -> None:
        self._address = ""
        cpus = [str(self._cpus)] if self._cpus else []
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "scalewright.cluster.local",
                *cpus,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=with_packages(self.environment),
            text=True,
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
