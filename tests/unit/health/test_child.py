"""A child answers, hangs, dies or cannot be killed; its parent always gets an answer in time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scalewright.health.child import Child, Failed, Reply, Silent, ask_once

LONG_S = 30.0


@pytest.fixture
def child() -> Iterator[Child]:
    one = Child("echo")
    yield one
    one.close()


def test_a_child_answers_again_and_again_as_one_process(child: Child) -> None:
    first = child.ask({"a": 1}, LONG_S)
    pid = child.pid
    second = child.ask({"b": "x" * 1000}, LONG_S)
    assert isinstance(first, Reply)
    assert first.value == {"a": 1}
    assert isinstance(second, Reply)
    assert second.value == {"b": "x" * 1000}
    assert child.pid == pid


def test_one_that_does_not_answer_is_killed_and_replaced(child: Child) -> None:
    child.ask({}, LONG_S)
    stopped = child.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    assert child.ask({}, 0.3) == Silent(0.3, stuck=False)
    assert not psutil.pid_exists(stopped)
    assert isinstance(child.ask({}, LONG_S), Reply)
    assert child.pid != stopped


def test_one_that_cannot_be_killed_blocks_nobody_and_stays_the_only_one() -> None:
    child = Child("echo", kill=lambda group: None)
    child.ask({}, LONG_S)
    stuck = child.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    assert child.ask({}, 0.2) == Silent(0.2, stuck=True)
    begin = time.monotonic()
    assert child.ask({}, LONG_S) == Silent(LONG_S, stuck=True)
    assert time.monotonic() - begin < LONG_S / 2
    assert child.pid == stuck
    assert not child.close()
    os.killpg(stuck, signal.SIGKILL)
    psutil.Process(stuck).wait(10)
    assert isinstance(child.ask({}, LONG_S), Reply)  # it is free again
    os.killpg(child.pid or 0, signal.SIGKILL)
    child.close()


def test_one_that_dies_tells_how(child: Child) -> None:
    child.ask({}, LONG_S)
    os.kill(child.pid or 0, signal.SIGSEGV)
    answer = child.ask({}, LONG_S)
    assert isinstance(answer, Failed)
    assert "SIGSEGV" in answer.reason
    assert isinstance(child.ask({}, LONG_S), Reply)


def test_an_unknown_reading_says_so() -> None:
    answer = ask_once("nonsense", {}, LONG_S)
    assert isinstance(answer, Failed)
    assert "no reading 'nonsense'" in answer.reason


def test_an_error_of_the_reading_is_told_and_the_child_stays() -> None:
    child = Child("storage")
    answer = child.ask({}, LONG_S)
    pid = child.pid
    assert isinstance(answer, Failed)
    assert "folder" in answer.reason
    child.ask({}, LONG_S)
    assert child.pid == pid
    child.close()


def test_an_asker_can_be_stopped(child: Child) -> None:
    child.ask({}, LONG_S)
    os.kill(child.pid or 0, signal.SIGSTOP)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begin = time.monotonic()
    child.ask({}, LONG_S, stop)
    assert time.monotonic() - begin < LONG_S / 2


def test_children_die_with_a_killed_parent() -> None:
    code = (
        "import sys, time; from scalewright.health.child import Child; c = Child('echo');"
        "c.ask({}, 30); print(c.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "platform")},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    # A stopped child does not see the end of its input: only the kernel can end it.
    child.suspend()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert child.wait(10) is None or not child.is_running()
