"""Where the threads of ranks are, and which collectives they entered: asked from outside.

Stacks come from py-spy, which needs nothing of the process, also where it is stopped; where that is
not allowed, a signal makes the process write them itself. Nothing here waits beyond its deadline.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalewright.heartbeat import DUMP_SIGNAL, Beat, beat_file

_POLL_S = 0.05
_TWICE_S = 0.2  # apart: a thread that waits for a disk for shorter is healthy
_THREAD = re.compile(r"(?:Thread|Current thread) 0x([0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass(frozen=True)
class Frame:
    """`line` 0 where it is not known, as in code that is not Python's."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Thread:
    """A thread of a process by its `threading.get_ident`; the innermost frame comes first."""

    thread_id: int
    name: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Stack:
    """A rank at one moment. `loop_id` is the thread that trains.

    `state`: T where the process is stopped, D where a thread waits uninterruptibly in `kernel`
    functions, else as in /proc; "" where it is gone. `problem` says why there are no threads.
    """

    rank: int
    pid: int
    loop_id: int
    state: str
    kernel: tuple[str, ...] = ()
    threads: tuple[Thread, ...] = ()
    problem: str | None = None

    @property
    def loop(self) -> Thread | None:
        return next((each for each in self.threads if each.thread_id == self.loop_id), None)

    def __str__(self) -> str:
        """As text for a report."""
        lines = [f"rank {self.rank}, process {self.pid}, state {self.state or 'gone'}"]
        lines += [f"  waits in {name}" for name in self.kernel]
        lines += [] if self.problem is None else [f"  no stacks: {self.problem}"]
        for thread in self.threads:
            mark = " (the loop)" if thread.thread_id == self.loop_id else ""
            lines.append(f"  thread {thread.name or hex(thread.thread_id)}{mark}")
            lines += [f"    {frame}" for frame in thread.frames]
        return "\n".join(lines)


def same_place(before: Stack, after: Stack) -> bool:
    """The loop stands where it stood: a signal of a hang beside its heartbeat."""
    return before.loop is not None and before.loop == after.loop


def dump_all(
    folder: Path, beats: Sequence[Beat], deadline_s: float, *, native: bool = False
) -> dict[int, Stack]:
    """Stacks of the ranks that beat in a folder of this node, by rank, all at once."""
    if not beats:
        return {}
    with ThreadPoolExecutor(len(beats)) as pool:
        stacks = pool.map(lambda beat: dump(folder, beat, deadline_s, native=native), beats)
        return {stack.rank: stack for stack in stacks}


def dump(folder: Path, beat: Beat, deadline_s: float, *, native: bool = False) -> Stack:
    """Stacks of one rank. `native`: also of code that is not Python's, which takes seconds more."""
    end_s = time.monotonic() + deadline_s
    state, kernel = _state(beat.pid)
    if state == "D" and beat.process is not None and beat.process.state != "D":
        state, kernel = beat.process.state, ()  # not the loop: one that saves, for example
    threads, problem = _by_pyspy(beat.pid, state, end_s, native=native)
    if not threads and native:
        threads, problem = _by_pyspy(beat.pid, state, end_s, native=False)
    if not threads and state not in ("", "T") and beat.process is not None:
        threads = _by_signal(beat.pid, beat_file(folder, beat.rank, ".stacks"), end_s)
    return Stack(
        beat.rank, beat.pid, beat.thread_id, state, kernel, threads, None if threads else problem
    )


def ask_traces(folder: Path, ranks: Sequence[int], deadline_s: float) -> dict[int, bytes]:
    """What the flight recorders of these ranks hold, as JSON; of those that answer in time."""
    end_s = time.monotonic() + deadline_s
    for rank in ranks:
        beat_file(folder, rank, ".answer").unlink(missing_ok=True)
        with suppress(OSError):  # the attempt has ended
            beat_file(folder, rank, ".ask").touch()
    answers: dict[int, bytes] = {}
    while len(answers) < len(ranks) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
        for rank in set(ranks) - answers.keys():
            with suppress(FileNotFoundError):
                answers[rank] = beat_file(folder, rank, ".answer").read_bytes()
    return answers


def _state(pid: int) -> tuple[str, tuple[str, ...]]:
    """The state of a process by all of its threads, and the kernel functions of those in D."""
    states = _tasks(pid)
    if states and all(state in "Tt" for state in states.values()):
        return "T", ()
    waiting = {task for task, state in states.items() if state == "D"}
    if waiting:
        time.sleep(_TWICE_S)
        again = _tasks(pid)
        waiting = {task for task in waiting if again.get(task) == "D"}
    if waiting:
        return "D", tuple(sorted({name for task in waiting for name in _kernel(pid, task)}))
    return states.get(pid, ""), ()


def _tasks(pid: int) -> dict[int, str]:
    """The state of every thread of a process; none where it is gone or dead."""
    states = {}
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # it ended
                text = Path(f"/proc/{pid}/task/{task}/stat").read_text()
                states[int(task)] = text.rpartition(")")[2].split()[0]
    return {task: state for task, state in states.items() if state not in "ZX"}


def _kernel(pid: int, task: int) -> list[str]:
    """Functions of the kernel that a thread is in: one, or all of them where one may see them."""
    folder = Path(f"/proc/{pid}/task/{task}")
    with suppress(OSError):
        if lines := (folder / "stack").read_text().splitlines():
            return [line.split("] ")[-1].split("+")[0] for line in lines]
    with suppress(OSError):
        return [(folder / "wchan").read_text()]
    return []


def _by_pyspy(
    pid: int, state: str, end_s: float, *, native: bool
) -> tuple[tuple[Thread, ...], str | None]:
    if not state:
        return (), "the process is gone"
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return (), "py-spy is not installed"
    command = [program, "dump", "--json", "--pid", str(pid)]
    # One that is stopped or in the kernel cannot be stopped once more.
    command += ["--nonblocking"] if state in "TtD" else ["--native"] if native else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        out, error = process.communicate(timeout=max(0.1, end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: it may itself hang in the kernel
        return (), "py-spy did not answer in time"
    if process.returncode:
        return (), f"py-spy: {error.decode(errors='replace').strip()}"
    return tuple(_thread(each) for each in json.loads(out)), None


def _thread(record: dict[str, Any]) -> Thread:
    frames = tuple(
        Frame(frame["name"], frame["filename"], frame["line"]) for frame in record["frames"]
    )
    return Thread(record["thread_id"], record["thread_name"] or "", frames)


def _by_signal(pid: int, file: Path, end_s: float) -> tuple[Thread, ...]:
    """What the process writes of itself; it must beat, or the signal would end it."""
    try:
        begin = before = file.stat().st_size
        os.kill(pid, DUMP_SIGNAL)
        while time.monotonic() < end_s:
            time.sleep(_POLL_S)
            size = file.stat().st_size
            if size == before > begin:
                return parse_faulthandler(file.read_bytes()[begin:].decode(errors="replace"))
            before = size
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return ()
    return ()


def parse_faulthandler(text: str) -> tuple[Thread, ...]:
    """Threads of a dump by Python's faulthandler."""
    threads: list[tuple[int, list[Frame]]] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            threads.append((int(head[1], 16), []))
        elif threads and (frame := _FRAME.match(line)):
            threads[-1][1].append(Frame(frame[3], frame[1], int(frame[2])))
    return tuple(Thread(thread_id, "", tuple(frames)) for thread_id, frames in threads)
