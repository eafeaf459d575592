"""A machine that is slow: its rank is named, and it is left for a spare at a save."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from clusters import RayNode
from storm import Storm, storm

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

WINDOW_S = 5
RUNS_S, STANDS_S = 0.05, 0.15


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    settings = (
        f"health.slow_window_s={WINDOW_S}", "health.slow_speed=0.7", "health.swap_speed=0.6",
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
        family = node.processes()
        for _ in range(5):
            each(family, psutil.Process.suspend)
            time.sleep(STANDS_S)
            each(family, psutil.Process.resume)
            time.sleep(RUNS_S)


def each(family: list[psutil.Process], do: Callable[[psutil.Process], None]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            do(process)


def test_a_slow_machine_is_named_and_left_at_a_save(run: Storm) -> None:
    run.settle()
    begin_s = time.time()
    run.wait(lambda: run.steps()[-1].time_s > begin_s + 5 * WINDOW_S)
    assert not run.notices("slow", begin_s)
    name, node = next(iter(run.used().items()))
    with slowed(node):
        seen = run.after(lambda: None, limit_s=200)
    slow = run.notices("slow", begin_s)
    assert {event.fields["machine"] for event in slow} == {name}
    assert seen.failure == {}
    assert seen.lost_steps <= 0
    (launched,) = run.notices("launched", begin_s)
    assert name not in launched.fields["nodes"]
    assert run.ledger.standing(name).state == "suspect"
