"""GPUs that break under a run: NVML's stand-in tells of them, on nodes of a real cluster."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml.stand_in import StandIn
from storm import Storm, storm

from scalewright.cluster.evidence import Evidence

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.night, pytest.mark.timeout(600)]

FELL_OFF_THE_BUS, BAD_PROGRAM = 79, 13
CHECK = "scalewright.health.check"


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StandIn]:
    folder = tmp_path_factory.mktemp("gpus")
    made = {f"machine-{index}": StandIn(folder / f"{index}", gpus=1) for index in range(3)}
    for index, gpu in enumerate(made.values()):
        gpu.set(0, uuid=f"GPU-0000000{index}-0000-0000-0000-000000000000")
    return made


@pytest.fixture(scope="module")
def run(
    data_folder: Path, tmp_path_factory: pytest.TempPathFactory, gpus: dict[str, StandIn]
) -> Iterator[Storm]:
    home = tmp_path_factory.mktemp("storm")
    settings = {index: gpu.environment for index, gpu in enumerate(gpus.values())}
    with storm(home, data_folder, 3, node_settings=settings) as made:
        yield made


@pytest.fixture(autouse=True)
def settled(run: Storm) -> None:
    run.settle()


def test_what_a_program_did_or_one_hot_moment_ends_nothing(
    run: Storm, gpus: dict[str, StandIn]
) -> None:
    name = next(iter(run.used()))
    before = run.attempt()
    gpus[name].xid(0, BAD_PROGRAM)
    gpus[name].set(0, clocks=0x40)
    time.sleep(6)
    gpus[name].set(0, clocks=None)
    time.sleep(8)
    assert run.attempt() == before
    assert run.ledger.standing(name).state == "healthy"


def test_a_gpu_that_falls_off_the_bus_takes_its_machine_out(
    run: Storm, gpus: dict[str, StandIn]
) -> None:
    name, node = next(iter(run.used().items()))
    before = {check.pid for check in node.processes(CHECK)}
    for agent in node.processes("NodeAgent"):
        agent.kill()  # another takes its place, and begins with the checks
    run.wait(lambda: bool({check.pid for check in node.processes(CHECK)} - before))
    time.sleep(5)  # it hears of events from now on
    begin_s = time.time()
    seen = run.after(lambda: gpus[name].xid(0, FELL_OFF_THE_BUS))
    assert (seen.failure["cause"], seen.failure["machine"]) == ("gpu", name)
    assert seen.detected_s < 15
    (launched,) = run.notices("launched", begin_s)
    assert launched.fields["workers"] == 2
    assert name not in launched.fields["nodes"]
    standing = run.ledger.standing(name)
    assert standing.state == "quarantined"
    assert "79" in standing.reasons[-1]
    assert standing.score == pytest.approx(5, abs=0.1)  # the finding and its end are one incident
    told = [e for e in run.ledger.history(gpus[name].uuid(0)) if isinstance(e, Evidence)]
    assert {(event.machine, event.kind) for event in told} == {(name, "hardware")}


def test_a_machine_that_is_held_stays_out_when_the_job_starts_again(run: Storm) -> None:
    (held,) = (m for m, s in run.ledger.standings().items() if s.state == "quarantined")
    before, begin_s = run.attempt(), time.time()
    run.stop()
    run.start()
    run.wait(lambda: run.attempt() > before)
    (launched,) = run.notices("launched", begin_s)
    assert held not in launched.fields["nodes"]
