"""A machine that is slow: its rank is named, and it is left for a spare at a save."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import RayNode
from storm import Storm, storm

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.night, pytest.mark.timeout(900)]

WINDOW_S = 10
WELL = 12  # windows before it: each rank has but one peer, and is compared with its own past, too
RUNS_S, STANDS_S = 0.005, 0.015


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    settings = (
        f"health.slow_window_s={WINDOW_S}", "health.slow_speed=0.7", "health.swap_speed=0.6",
        "model.width=256", "model.depth=4",  # work that takes longer than that
    )  # fmt: skip
    with storm(tmp_path_factory.mktemp("storm"), data_folder, 3, *settings) as made:
        yield made


@contextlib.contextmanager
def slowed(node: RayNode) -> Iterator[None]:
    """Let all of a node run for a quarter of the time only, as a processor that throttles does."""
    over = threading.Event()
    slow = threading.Thread(target=throttle, args=(node, over))
    slow.start()
    try:
        yield
    finally:
        over.set()
        slow.join()


def throttle(node: RayNode, over: threading.Event) -> None:
    while not over.is_set():
        family = [process.pid for process in node.processes()]
        for _ in range(25):
            signal_all(family, signal.SIGSTOP)
            time.sleep(STANDS_S)
            signal_all(family, signal.SIGCONT)
            time.sleep(RUNS_S)


def signal_all(family: list[int], sent: signal.Signals) -> None:
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)


def test_a_slow_machine_is_named_and_left_at_a_save(run: Storm) -> None:
    run.settle()
    begin_s = time.time()
    run.wait(lambda: run.steps()[-1].time_s > begin_s + WELL * WINDOW_S, 200)
    assert not run.notices("slow", begin_s)
    name, node = next(iter(run.used().items()))
    with slowed(node):
        seen = run.after(lambda: None, limit_s=300)
    slow = run.notices("slow", begin_s)
    assert {event.fields["machine"] for event in slow} == {name}
    assert seen.failure == {}
    assert seen.lost_steps <= 0
    (launched,) = run.notices("launched", begin_s)
    assert name not in launched.fields["nodes"]
    assert run.ledger.standing(name).state == "suspect"
