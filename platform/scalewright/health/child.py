"""Ask a child process, and never wait longer than a deadline for it.

A driver or a mount that hangs takes the process down that touches it, so every reading of health
is done in a child (`scalewright.health.check`). The child stays for the next question: starting
one costs 60 ms of CPU and an event set of NVML only hears what happens while it is open.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scalewright

NVML_FOLDER = "SCALEWRIGHT_NVML"  # a folder whose libnvidia-ml.so.1 the children load
READY = b"ready\n"  # what a child says once it runs, before it touches anything
_START_S = 30.0
_PATIENCE_S = 1.0  # for a killed child to end
_SLICE_S = 0.1  # how often a waiting asker looks whether it should stop
_TOLD = 300  # characters of a child's last words


@dataclass(frozen=True)
class Reply:
    """The child's answer and how long it took."""

    value: Any
    took_s: float


@dataclass(frozen=True)
class Silent:
    """No answer before the deadline; `stuck` if not even SIGKILL ended the child."""

    deadline_s: float
    stuck: bool


@dataclass(frozen=True)
class Failed:
    """The reading raised an error, or its process ended by itself."""

    reason: str


Answer = Reply | Silent | Failed


class Child:
    """One child process for one reading, started when asked, replaced after it hung or died.

    Not for several threads at once. The child dies with the thread that asked first (Linux's
    parent death signal), so ask from a thread that lives as long as the child is needed.
    `kill` sends SIGKILL to a process group.
    """

    def __init__(
        self,
        reading: str,
        environment: Mapping[str, str] | None = None,
        kill: Callable[[int], None] = lambda group: os.killpg(group, signal.SIGKILL),
    ) -> None:
        self._reading = reading
        self._environment = environment
        self._kill = kill
        self._running: _Running | None = None
        self._stuck = False

    @property
    def pid(self) -> int | None:
        """Its process number, None while there is none."""
        running = self._running
        return None if running is None else running.process.pid

    def ask(
        self,
        question: Mapping[str, Any],
        deadline_s: float,
        stop: threading.Event | None = None,
    ) -> Answer:
        """The child's answer to `question`, or how it failed to give one in time.

        `stop`, set by another thread, ends the wait as if the time had run out.
        """
        if self._stuck and not self.close():
            return Silent(deadline_s, stuck=True)  # one stuck process a reading, never more
        if self._running is None:
            self._running = _start(self._reading, self._environment)
            # A busy machine is slow to start a process: that says nothing about the reading.
            if self._running.line(time.monotonic() + _START_S, stop) != READY:
                return self._failed(f"the child did not start in {_START_S:g} s")
        begin = time.monotonic()
        self._running.write(json.dumps(question).encode() + b"\n")
        line = self._running.line(begin + deadline_s, stop)
        if line is None:
            return Silent(deadline_s, stuck=not self.close())
        if not line.endswith(b"\n"):
            return self._failed("the child closed its output")
        reply = json.loads(line)
        if "error" in reply:
            return Failed(reply["error"])
        return Reply(reply["value"], time.monotonic() - begin)

    def _failed(self, otherwise: str) -> Failed:
        reason = self._running.last_words() if self._running is not None else None
        self.close()
        return Failed(reason or otherwise)

    def close(self) -> bool:
        """Kill the child and all it started; False if it is still there (state D) a second on."""
        if self._running is None:
            return True
        with suppress(ProcessLookupError):  # all of its group ended by themselves
            self._kill(self._running.process.pid)
        try:
            self._running.process.wait(0 if self._stuck else _PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._stuck = True
            return False
        self._running.close()
        self._running, self._stuck = None, False
        return True


@dataclass(frozen=True)
class _Running:
    """A process, and our ends of its pipes. Errors it writes end up in `words`, in memory."""

    process: subprocess.Popen[bytes]
    question: int
    answer: int
    words: int

    def write(self, question: bytes) -> None:
        """Send a question; one that cannot be sent is seen by the answer that does not come."""
        with suppress(BrokenPipeError):
            os.write(self.question, question)

    def line(self, deadline: float, stop: threading.Event | None) -> bytes | None:
        """A whole line, a part of one if the child ended, None if the time ran out."""
        poll = select.poll()
        poll.register(self.answer, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (stop is not None and stop.is_set()):
                return None
            if not poll.poll(min(left_s, _SLICE_S) * 1000):
                continue
            part = os.read(self.answer, 1 << 16)
            if not part:
                return line
            line += part
        return line

    def last_words(self) -> str | None:
        """How the child ended, and the end of what it wrote as errors; None if it did not end."""
        try:
            code = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return None
        begin = max(0, os.fstat(self.words).st_size - _TOLD)
        words = os.pread(self.words, _TOLD, begin).decode(errors="replace").strip()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the child ended with {how}" + (f": {words}" if words else "")

    def close(self) -> None:
        for file in (self.question, self.answer, self.words):
            os.close(file)


def _start(reading: str, extra: Mapping[str, str] | None) -> _Running:
    child_question, question = os.pipe()
    answer, child_answer = os.pipe()
    words = os.memfd_create("last words")
    try:
        process = subprocess.Popen(
            # -P: nothing is imported from the folder that happens to be the current one.
            [sys.executable, "-P", "-m", "scalewright.health.check", reading],
            stdin=child_question,
            stdout=child_answer,
            stderr=words,
            cwd="/",  # never inside a mount that may hang
            env=_environment(extra),
            start_new_session=True,  # a process group, so that its children die with it
        )
    finally:
        os.close(child_question)
        os.close(child_answer)
    return _Running(process, question, answer, words)


def ask_once(
    reading: str,
    question: Mapping[str, Any],
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Ask a child of its own that is gone afterwards."""
    child = Child(reading, environment)
    try:
        return child.ask(question, deadline_s)
    finally:
        child.close()


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    environment = {**os.environ, **(extra or {}), "SCALEWRIGHT_PARENT": str(os.getpid())}
    source = str(Path(scalewright.__file__).parents[1])
    environment["PYTHONPATH"] = _before(source, environment.get("PYTHONPATH"))
    if folder := environment.get(NVML_FOLDER):
        environment["LD_LIBRARY_PATH"] = _before(folder, environment.get("LD_LIBRARY_PATH"))
    return environment


def _before(first: str, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first
