"""Signs of life of a rank: a small record on its node that others read without asking the rank.

The loop writes where it is at every phase and step, a second thread every second that the process
lives and its interpreter runs. The record is a page of memory: writing it waits for nothing. Beside
it a reader may ask for more: a signal makes the process write its stacks even if a thread never
gives the interpreter back, and a file with the suffix `.ask` makes the second thread write what
`answer` gives.
"""

import ctypes
import faulthandler
import hashlib
import mmap
import os
import re
import signal
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from scalewright.errors import ScalewrightError

BEAT_S = 1.0  # between two beats of the second thread
# A real-time signal: libraries and schedulers use the others.
DUMP_SIGNAL = signal.SIGRTMIN + 8

_PR_SET_PTRACER = 0x59616D61

_LOOP = struct.Struct("<10q7d")
_THREAD = struct.Struct("<d")
_HEAD = struct.Struct("<IQ")  # crc32 of what follows, number of the write
_SLOTS = 2  # a process stopped while it writes one of them leaves the other
_TRIES = 3  # a record that is being written is whole a moment later
_NAME = re.compile(r"rank-(\d{5,})")


class Phase(IntEnum):
    """What the loop is in. COMPILE is a step of a kind that this process has not run before."""

    START = 0
    RESUME = 1
    DATA = 2
    COMPILE = 3
    STEP = 4
    SAVE = 5
    VALIDATE = 6
    SAMPLE = 7
    DONE = 8


@dataclass(frozen=True, slots=True)
class Process:
    """A process by its loop's thread in /proc: `state` is the letter there.

    T is stopped, D waits uninterruptibly. `cpu_s`: seconds of CPU that the thread took so far;
    others, such as those that read data ahead, go on when the loop hangs.
    """

    state: str
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """One rank as its node saw it. Times are seconds of the node's monotonic clock.

    `loop_at`: when the loop, or the device it feeds, last moved; `thread_at`: when the second
    thread last beat. `moves` counts phases: ranks do the same, so the lowest is behind. `flops`:
    predicted for the oldest step that is not finished, of the rank that has most to do; `last_s`
    and `last_flops`: the same of the last step that finished; `done`: how many did in this attempt.
    `own_s`, `own_flops`: sums over the rank's own work that was timed. `thread_id` is the loop's.
    `process` None: the process is gone.
    """

    rank: int
    attempt: int
    pid: int
    thread_id: int
    phase: Phase
    step: int
    moves: int
    done: int
    loop_at: float
    phase_began: float
    flops: float
    last_s: float
    last_flops: float
    own_s: float
    own_flops: float
    thread_at: float
    read_at: float
    process: Process | None


def beat_folder(run_folder: Path, attempt: int) -> Path:
    """Where the ranks of an attempt beat, on each node; in memory where there is /dev/shm."""
    return _of_run(run_folder) / f"attempt-{attempt:05d}"


def remove_beats(run_folder: Path) -> None:
    """Remove what attempts of a run left here; processes that still beat are not disturbed."""
    home = _of_run(run_folder)
    for folder in home.glob("attempt-*"):
        _remove(folder)
    with suppress(OSError):
        home.rmdir()


def _of_run(run_folder: Path) -> Path:
    # The path is not resolved: it may be on a file system that does not answer.
    path = os.path.abspath(run_folder)
    # Containers and nodes of one machine may share its memory.
    node = os.environ.get("SCALEWRIGHT_MACHINE", "")
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(f"{path}\n{node}".encode()).hexdigest()[:12]
    return root / f"scalewright-{os.getuid()}" / f"{os.path.basename(path)}-{digest}"


def _remove(folder: Path) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()


def beat_file(folder: Path, rank: int, suffix: str = "") -> Path:
    return folder / f"rank-{rank:05d}{suffix}"


class _Cell:
    """A place for one kind of record in shared memory, with a slot to write and a slot to read."""

    def __init__(self, record: struct.Struct, offset: int) -> None:
        self.size = _SLOTS * (_HEAD.size + record.size)
        self._record, self._offset = record, offset
        self._writes = 0

    def write(self, memory: mmap.mmap, *values: float) -> None:
        self._writes += 1
        body = self._record.pack(*values)
        number = struct.pack("<Q", self._writes)
        slot = number + body
        begin = self._offset + self._writes % _SLOTS * (_HEAD.size + self._record.size)
        whole = struct.pack("<I", zlib.crc32(slot)) + slot
        memory[begin : begin + len(whole)] = whole

    def read(self, data: bytes) -> tuple[Any, ...] | None:
        """The newest whole record; None where there is none."""
        found: list[tuple[int, tuple[Any, ...]]] = []
        for slot in range(_SLOTS):
            begin = self._offset + slot * (_HEAD.size + self._record.size)
            whole = data[begin : begin + _HEAD.size + self._record.size]
            if len(whole) < _HEAD.size + self._record.size:
                continue
            crc, number = _HEAD.unpack_from(whole)
            if number and crc == zlib.crc32(whole[4:]):
                found.append((number, self._record.unpack_from(whole, _HEAD.size)))
        return max(found)[1] if found else None


def _cells() -> tuple[_Cell, _Cell]:
    loop = _Cell(_LOOP, 0)
    return loop, _Cell(_THREAD, loop.size)


class Heartbeat:
    """Writes the record of one rank, from the thread that makes it and from a second one.

    `answer` gives what `.ask` asks for; `on_beat` is called with every beat of the second thread.
    Closing it removes its files. Raises `ScalewrightError` where no record can be made.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        attempt: int,
        *,
        answer: Callable[[], bytes] | None = None,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._rank, self._attempt = folder, rank, attempt
        self._answer, self._on_beat = answer, on_beat
        self._pid, self._task = os.getpid(), threading.get_native_id()
        self._thread_id = threading.get_ident()
        self._born = _stat(self._pid, self._task)[19]
        self._phase, self._step, self._moves, self._done = Phase.START, 0, 0, 0
        self._loop_at = self._phase_began = time.monotonic()
        self._flops = self._last_s = self._last_flops = self._own_s = self._own_flops = 0.0
        self._lock = threading.Lock()
        self._loop_cell, self._thread_cell = _cells()
        self._memory, self._stacks = self._open()
        self._write()
        self._closed = threading.Event()
        self._thread_cell.write(self._memory, time.monotonic())
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase, step: int | None = None, flops: float | None = None) -> None:
        """The loop begins a phase; `step` and `flops`, if they change with it."""
        with self._lock:
            self._phase, self._moves = phase, self._moves + 1
            self._step = self._step if step is None else step
            self._flops = self._flops if flops is None else flops
            self._loop_at = self._phase_began = time.monotonic()
            self._write()

    def finished(self, seconds: float, flops: float, next_flops: float | None = None) -> None:
        """A step that was predicted to cost `flops` took so long; the next unfinished one's."""
        with self._lock:
            self._done += 1
            self._last_s, self._last_flops = seconds, flops
            self._flops = self._flops if next_flops is None else next_flops
            self._loop_at = time.monotonic()
            self._write()

    def worked(self, seconds: float, flops: float) -> None:
        """Add to the rank's own work; it is told with the next phase or step."""
        with self._lock:
            self._own_s += seconds
            self._own_flops += flops

    def close(self) -> None:
        """End the second thread and remove the record; closing twice is harmless."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(timeout=2 * BEAT_S)
        # The signal must stay harmless: its default is to kill.
        faulthandler.register(DUMP_SIGNAL, file=2, all_threads=True)
        os.close(self._stacks)
        for suffix in ("", ".stacks", ".ask", ".answer"):
            beat_file(self._folder, self._rank, suffix).unlink(missing_ok=True)
        for folder in (self._folder, self._folder.parent):
            with suppress(OSError):  # other ranks are in it
                folder.rmdir()

    def _open(self) -> tuple[mmap.mmap, int]:
        size = self._loop_cell.size + self._thread_cell.size
        path = beat_file(self._folder, self._rank)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                # All of it now: memory that is full later on would end the process.
                os.posix_fallocate(file, 0, size)
                memory = mmap.mmap(file, size)
            finally:
                os.close(file)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            stacks = os.open(beat_file(self._folder, self._rank, ".stacks"), flags, 0o600)
        except OSError as error:
            raise ScalewrightError(
                f"rank {self._rank}: no heartbeat in {self._folder}: {error}. Free /dev/shm, or "
                "remove that folder if another user owns it"
            ) from None
        faulthandler.register(DUMP_SIGNAL, file=stacks, all_threads=True)
        _allow_tracing()
        return memory, stacks

    def _write(self) -> None:
        self._loop_cell.write(
            self._memory,
            *(self._rank, self._attempt, self._pid, self._task, self._born, self._thread_id),
            *(self._phase, self._step, self._moves, self._done),
            *(self._loop_at, self._phase_began, self._flops, self._last_s, self._last_flops),
            *(self._own_s, self._own_flops),
        )

    def _beat(self) -> None:
        ask = beat_file(self._folder, self._rank, ".ask")
        while not self._closed.wait(BEAT_S):
            self._thread_cell.write(self._memory, time.monotonic())
            if self._on_beat is not None:
                self._on_beat()
            if self._answer is not None and ask.exists():
                ask.unlink(missing_ok=True)
                # An answer may wait for a lock of the library it asks; the beat must not.
                threading.Thread(target=self._reply, name="heartbeat-answer", daemon=True).start()

    def _reply(self) -> None:
        assert self._answer is not None
        path = beat_file(self._folder, self._rank, ".answer")
        part = path.with_suffix(".part")
        with suppress(OSError):  # the folder went with the attempt
            part.write_bytes(self._answer())
            os.replace(part, path)


def _allow_tracing() -> None:
    """Let processes of the same user look at this one's stacks, where the kernel asks (Yama)."""
    with suppress(OSError, AttributeError):  # no such kernel, no such libc
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


def read_beats(folder: Path) -> list[Beat]:
    """The ranks that beat in a folder of this node, by rank; none where there is no folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []
    beats = (_read(folder / name) for name in names)
    return [beat for beat in beats if beat is not None]


def _read(path: Path) -> Beat | None:
    for _ in range(_TRIES):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # it ended just now
            return None
        loop_cell, thread_cell = _cells()
        loop, thread = loop_cell.read(data), thread_cell.read(data)
        if loop is not None and thread is not None:
            return _as_beat(loop, thread[0])
        time.sleep(0.001)
    return None


def _as_beat(loop: tuple[Any, ...], thread_at: float) -> Beat:
    rank, attempt, pid, task, born, thread_id, phase, step, moves, done, *times = loop
    loop_at, phase_began, flops, last_s, last_flops, own_s, own_flops = times
    return Beat(
        rank, attempt, pid, thread_id, Phase(phase), step, moves, done, loop_at, phase_began,
        flops, last_s, last_flops, own_s, own_flops, thread_at, time.monotonic(),
        process_of(pid, task, born),
    )  # fmt: skip


def process_of(pid: int, task: int, born: int) -> Process | None:
    """A process by a thread that began at `born`; None where it is gone or another's number."""
    try:
        fields = _stat(pid, task)
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX" or fields[19] != born:
        return None
    return Process(fields[0], (fields[11] + fields[12]) / os.sysconf("SC_CLK_TCK"))


def _stat(pid: int, task: int) -> list[Any]:
    """Fields of a thread's stat in /proc from the third on; numbers but for the first, its state.

    The twentieth is when it began, in ticks since the machine did.
    """
    text = Path(f"/proc/{pid}/task/{task}/stat").read_text()
    state, *numbers = text.rpartition(")")[2].split()
    return [state, *map(int, numbers)]
