"""Heartbeats of real processes: whole records only, and of the process that lives."""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scalewright import heartbeat
from scalewright.errors import ScalewrightError
from scalewright.heartbeat import (
    DUMP_SIGNAL,
    Beat,
    Heartbeat,
    Phase,
    beat_file,
    beat_folder,
    process_of,
    read_beats,
    remove_beats,
)

STUCK = """
import sys, time
from pathlib import Path
from scalewright.heartbeat import Heartbeat, Phase
beating = Heartbeat(Path(sys.argv[1]), rank=4, attempt=2)
beating.enter(Phase.STEP, 7, 1e12)
print("beats", flush=True)
time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Heartbeat]:
    beating = Heartbeat(tmp_path / "beats", rank=3, attempt=2)
    yield beating
    beating.close()


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that beats in `beats` and sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path / "beats")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "beats\n"
    yield process
    process.kill()
    process.wait()


def only(folder: Path) -> Beat:
    (beat,) = read_beats(folder)
    return beat


def wait_for(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.02)


def test_what_the_loop_tells_is_read(writer: Heartbeat, tmp_path: Path) -> None:
    before = only(tmp_path / "beats")
    assert (before.rank, before.attempt, before.phase) == (3, 2, Phase.START)
    assert (before.pid, before.thread_id) == (os.getpid(), threading.get_ident())
    writer.enter(Phase.STEP, 17, 2e15)
    writer.worked(0.5, 3e14)
    writer.finished(1.5, 2e15)
    writer.enter(Phase.SAVE)
    beat = only(tmp_path / "beats")
    assert (beat.phase, beat.step, beat.moves, beat.done) == (Phase.SAVE, 17, 2, 1)
    assert (beat.flops, beat.last_s, beat.last_flops) == (2e15, 1.5, 2e15)
    assert (beat.own_s, beat.own_flops) == (0.5, 3e14)
    assert before.loop_at <= beat.phase_began == beat.loop_at <= beat.read_at
    assert beat.process is not None
    assert beat.process.state in "RS"


def test_the_second_thread_beats_while_the_loop_stands_still(
    writer: Heartbeat, tmp_path: Path
) -> None:
    before = only(tmp_path / "beats")
    wait_for(lambda: only(tmp_path / "beats").thread_at > before.thread_at)
    assert only(tmp_path / "beats").loop_at == before.loop_at


def test_a_record_is_whole_while_it_is_written_as_fast_as_can_be(
    writer: Heartbeat, tmp_path: Path
) -> None:
    ended = threading.Event()

    def write() -> None:
        step = 0
        while not ended.is_set():
            step += 1
            writer.enter(Phase.STEP, step, float(step))

    thread = threading.Thread(target=write)
    thread.start()
    beats = [only(tmp_path / "beats") for _ in range(100)]
    while len({beat.step for beat in beats}) <= 10:  # on a busy machine the writer waits for long
        beats.append(only(tmp_path / "beats"))
    ended.set()
    thread.join()
    assert all(beat.flops == beat.step == beat.moves for beat in beats[1:])


@pytest.mark.parametrize("torn", range(2))
def test_a_rank_that_stopped_while_writing_still_has_its_record_before(
    writer: Heartbeat, tmp_path: Path, torn: int
) -> None:
    for step in (1, 2):
        writer.enter(Phase.STEP, step, 0.0)
    size = heartbeat._HEAD.size + heartbeat._LOOP.size
    with beat_file(tmp_path / "beats", 3).open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
        page[torn * size + 20] ^= 255
    assert only(tmp_path / "beats").step in (1, 2)


def test_a_record_without_a_whole_slot_is_none(writer: Heartbeat, tmp_path: Path) -> None:
    path = beat_file(tmp_path / "beats", 3)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert read_beats(tmp_path / "beats") == []
    path.write_bytes(b"")
    assert read_beats(tmp_path / "beats") == []


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = beat_folder(tmp_path / "run", 1)
    for rank in (0, 1):
        Heartbeat(folder, rank, 1).close()
    assert not folder.parent.exists()
    assert read_beats(folder) == []


def test_what_a_killed_attempt_left_can_be_removed(
    stuck: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(tmp_path / "beats").process is not None
    stuck.kill()
    stuck.wait()
    assert only(tmp_path / "beats").process is None
    folder = beat_folder(tmp_path / "run", 1)
    shutil.copytree(tmp_path / "beats", folder)
    remove_beats(tmp_path / "run")
    assert not folder.parent.exists()
    remove_beats(tmp_path / "run")


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    places = {beat_folder(tmp_path / a / "run", n) for a in "xy" for n in (1, 2)}
    assert len(places) == 4
    assert beat_folder(tmp_path / "x" / ".." / "y" / "run", 1) in places


def test_a_stopped_process_is_seen_as_such(stuck: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(stuck.pid, signal.SIGSTOP)
    wait_for(lambda: only(tmp_path / "beats").process.state == "T")  # type: ignore[union-attr]
    beat = only(tmp_path / "beats")
    assert (beat.rank, beat.step, beat.phase) == (4, 7, Phase.STEP)


def test_another_process_with_the_same_number_is_not_it() -> None:
    pid, task = os.getpid(), threading.get_native_id()
    born = heartbeat._stat(pid, task)[19]
    me = process_of(pid, task, born)
    assert me is not None
    assert me.cpu_s > 0
    assert process_of(pid, task, born + 1) is None
    assert process_of(2**22 + 1, 2**22 + 1, born) is None


def test_cpu_is_that_of_the_loop_alone(writer: Heartbeat, tmp_path: Path) -> None:
    def cpu_s() -> float:
        process = only(tmp_path / "beats").process
        assert process is not None
        return process.cpu_s

    before_s = cpu_s()
    busy = threading.Thread(target=lambda: sum(range(10**7)))
    busy.start()
    busy.join()
    assert cpu_s() - before_s < 0.05
    before_s = time.thread_time()
    while time.thread_time() < before_s + 0.2:
        pass
    assert cpu_s() - before_s > 0.1


def test_the_signal_writes_stacks_and_ends_nothing(
    stuck: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(stuck.pid, DUMP_SIGNAL)
    stacks = beat_file(tmp_path / "beats", 4, ".stacks")
    wait_for(lambda: "<module>" in stacks.read_text())
    assert stuck.poll() is None


def test_the_signal_is_harmless_after_the_end(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "beats", 0, 1).close()
    os.kill(os.getpid(), DUMP_SIGNAL)


def test_the_second_thread_answers_and_beats_on_even_if_the_answer_hangs(tmp_path: Path) -> None:
    free = threading.Event()

    def answer() -> bytes:
        free.wait(30)
        return b"recorded"

    folder = tmp_path / "beats"
    beating = Heartbeat(folder, 0, 1, answer=answer)
    try:
        beat_file(folder, 0, ".ask").touch()
        wait_for(lambda: not beat_file(folder, 0, ".ask").exists())
        before = only(folder).thread_at
        wait_for(lambda: only(folder).thread_at > before)
        free.set()
        wait_for(lambda: beat_file(folder, 0, ".answer").exists())
        assert beat_file(folder, 0, ".answer").read_bytes() == b"recorded"
    finally:
        beating.close()
    assert not folder.exists()


def test_no_place_for_it_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ScalewrightError, match=r"no heartbeat in .*Free /dev/shm"):
        Heartbeat(tmp_path / "file" / "beats", 0, 1)
