"""A run that is disturbed again and again: every fault is found, blamed right, and costs little."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from storm import Storm, storm

from scalewright.heartbeat import beat_folder

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(600)]

INTERVAL = 20  # steps between checkpoints
AHEAD = 20  # steps that may be done before a fault is seen and the save under way is committed


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    home = tmp_path_factory.mktemp("storm")
    with storm(home, data_folder, 3, "data.audit=true", "parallel.grow_after_s=5") as made:
        yield made


@pytest.fixture(autouse=True)
def settled(run: Storm) -> None:
    run.settle()


def spare(run: Storm) -> None:
    """Have one node more than the run uses."""
    if sum(node.alive for node in run.nodes.values()) < 3:
        run.add_node(wait=True)


def ranks(run: Storm) -> list[psutil.Process]:
    return [worker for node in run.used().values() for worker in node.workers()]


def test_a_killed_rank_costs_seconds(run: Storm) -> None:
    seen = run.after(lambda: ranks(run)[0].kill())
    assert seen.failure["cause"] == "process"
    assert seen.detected_s < 10
    assert seen.lost_steps <= INTERVAL + AHEAD
    assert {s.state for s in run.ledger.standings().values()} <= {"healthy", "suspect"}


@pytest.mark.night
def test_a_frozen_rank_is_named(run: Storm) -> None:
    victim = ranks(run)[1]
    seen = run.after(lambda: victim.suspend())
    assert seen.failure["cause"] == "hang"
    assert "state T" in seen.failure["reason"]
    assert seen.lost_steps <= INTERVAL + AHEAD
    assert list((run.folder / "hangs").glob("attempt-*.txt"))
    assert not victim.is_running()


@pytest.mark.night
def test_a_rank_that_sleeps_is_named_and_not_the_one_that_waits(run: Storm) -> None:
    seen = run.after(lambda: run.sabotage(1, "sleep"))
    assert (seen.failure["cause"], seen.failure["rank"]) == ("hang", 1)
    assert seen.lost_steps <= INTERVAL + AHEAD


@pytest.mark.night
def test_a_driver_that_is_killed_is_replaced(run: Storm) -> None:
    seen = run.after(lambda: run.attempts()[0].kill())
    assert seen.failure["cause"] == "controller"
    assert seen.lost_steps <= INTERVAL + AHEAD


@pytest.mark.night
def test_a_node_that_is_to_leave_costs_no_step(run: Storm) -> None:
    name, node = next(iter(run.used().items()))
    begin_s = time.time()
    seen = run.after(lambda: run.leaves(node, within_s=30))
    assert seen.failure == {}
    assert seen.lost_steps <= 0
    (paused,) = run.notices("paused", begin_s)
    assert name in paused.fields["reason"]
    (launched,) = run.notices("launched", begin_s)
    assert name not in launched.fields["nodes"]
    assert run.ledger.standing(name).state in ("healthy", "suspect")
    node.end()


def test_a_node_that_dies_is_left_for_a_spare(run: Storm) -> None:
    spare(run)
    name, node = next(iter(run.used().items()))
    begin_s = time.time()
    seen = run.after(node.raylet.kill)
    assert (seen.failure["cause"], seen.failure["machine"]) == ("node", name)
    assert seen.lost_steps <= INTERVAL + AHEAD
    assert run.ledger.standing(name).state == "suspect"
    (launched,) = run.notices("launched", begin_s)
    assert launched.fields["workers"] == 2
    assert name not in launched.fields["nodes"]
    node.end()


@pytest.mark.night
def test_a_node_that_freezes_is_left_for_a_spare(run: Storm) -> None:
    spare(run)
    name, node = next(iter(run.used().items()))
    begin_s = time.time()
    seen = run.after(node.freeze)
    assert (seen.failure["cause"], seen.failure["machine"]) == ("node", name)
    assert seen.detected_s < 30
    assert seen.lost_steps <= INTERVAL + AHEAD
    assert run.ledger.standing(name).state == "suspect"
    (launched,) = run.notices("launched", begin_s)
    assert name not in launched.fields["nodes"]
    node.end()


def test_every_step_had_its_clips_and_its_loss_every_time(run: Storm) -> None:
    """So far two ranks did all of it, on whichever nodes: attempts must agree in every bit."""
    loss: dict[int, float] = {}
    for step in run.steps():
        assert loss.setdefault(step.step, step.values["loss/train"]) == step.values["loss/train"]
    assert sorted(loss) == list(range(1, max(loss) + 1))
    told: dict[tuple[int, int], str] = {}
    for rank, path in enumerate(sorted((run.folder / "consumed").iterdir())):
        for line in path.read_text().splitlines():
            with_attempt = json.loads(line)
            with_attempt.pop("attempt")
            once = json.dumps(with_attempt, sort_keys=True)
            assert told.setdefault((rank, with_attempt["step"]), once) == once
    assert {step for _, step in told} >= set(range(run.saved()))


@pytest.mark.night
def test_a_run_shrinks_when_no_spare_is_left(run: Storm) -> None:
    for name, node in run.nodes.items():
        if node.alive and name not in run.used():
            node.end()
    time.sleep(3)
    name, node = next(iter(run.used().items()))
    begin_s = time.time()
    seen = run.after(node.raylet.kill)
    assert (seen.failure["cause"], seen.failure["machine"]) == ("node", name)
    (launched,) = run.notices("launched", begin_s)
    assert launched.fields["workers"] == 1
    node.end()


@pytest.mark.night
def test_a_run_grows_at_a_save_when_a_node_comes(run: Storm) -> None:
    begin_s = time.time()
    seen = run.after(run.add_node)
    assert seen.failure == {}
    assert seen.lost_steps <= 0
    (paused,) = run.notices("paused", begin_s)
    assert paused.fields["reason"] == "2 workers instead of 1"
    assert run.steps()[-1].values["elastic/world_size"] == 2


@pytest.mark.night
def test_the_job_that_is_killed_goes_on_where_it_was(run: Storm) -> None:
    before, saved = run.attempt(), run.saved()
    os.kill(run.driver.pid, signal.SIGKILL)
    run.driver.wait()
    run.start()
    run.wait(lambda: run.attempt() > before, 120)
    first = next(each for each in run.steps() if each.attempt > before)
    assert first.step > saved


def test_nothing_is_left_of_a_run_that_was_stopped(run: Storm) -> None:
    run.driver.send_signal(signal.SIGINT)
    assert run.driver.wait(timeout=60) == 130
    assert run.saved() == run.steps()[-1].step
    end = time.monotonic() + 90
    while (left := leftovers(run)) and time.monotonic() < end:
        time.sleep(1)
    assert not left


STATE = """
import json, ray
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors
ray.init(log_to_driver=False)
print(json.dumps({
    "actors": [a.class_name for a in list_actors(filters=[("state", "=", "ALIVE")])],
    "groups": [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"],
}))
"""


def leftovers(run: Storm) -> dict[str, list[str]]:
    """What of the run is still there: actors, placement groups, processes, signs of life."""
    asked = subprocess.run(
        [sys.executable, "-c", STATE],
        env=run.head.environment
        | {"RAY_ADDRESS": run.head.gcs, "RAY_API_SERVER_ADDRESS": run.head.address},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(asked.stdout.splitlines()[-1])
    ours = ("RayTrainWorker", "NodeAgent", "TrainController", "scalewright.")
    found["processes"] = [
        " ".join(process.cmdline())
        for node in (run.head, *(node for node in run.nodes.values() if node.alive))
        for process in psutil.Process(node.leader.pid).children(recursive=True)
        if any(word in " ".join(process.cmdline()) for word in ours)
    ]
    # Ray's own, one for the life of a cluster.
    found["actors"] = [name for name in found["actors"] if name != "_AutoscalingCoordinatorActor"]
    with pytest.MonkeyPatch.context() as patch:
        for machine in (node.machine for node in run.nodes.values() if node.alive):
            patch.setenv("SCALEWRIGHT_MACHINE", machine)
            beats = beat_folder(run.folder, 1).parent
            found.setdefault("beats", []).extend(map(str, beats.glob("*")))
    return {kind: names for kind, names in found.items() if names}
