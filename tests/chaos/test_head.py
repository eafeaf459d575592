"""Ray's head dies under a run; its state is on a disk."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from storm import Storm, storm

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.night, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    home = tmp_path_factory.mktemp("storm")
    kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(home / "gcs")}
    with storm(home, data_folder, 2, environment=kept) as made:
        yield made


@pytest.fixture(autouse=True)
def settled(run: Storm) -> None:
    run.settle()


def test_training_goes_on_while_the_control_service_is_away(run: Storm) -> None:
    before, begin_s = run.attempt(), time.time()
    with run.head.without_gcs():
        time.sleep(5)
    away_s = time.time()
    run.wait(lambda: run.steps()[-1].time_s > away_s + 20)
    assert run.attempt() == before
    assert not run.notices("attempt_failed", begin_s)
    # What came back is in use: a fault is still found, and answered.
    seen = run.after(lambda: next(iter(run.used().values())).workers()[0].kill())
    assert seen.failure["cause"] == "process"


def test_a_rank_that_dies_while_the_control_service_is_away_is_replaced_when_it_is_back(
    run: Storm,
) -> None:
    before, begin_s = run.attempt(), time.time()
    with run.head.without_gcs():
        next(iter(run.used().values())).workers()[0].kill()
        time.sleep(20)
        assert run.driver.poll() is None
    run.wait(lambda: run.attempt() > before, 240)
    failed = run.notices("attempt_failed", begin_s)
    assert failed[0].fields["cause"] == "process"
    assert {s.state for s in run.ledger.standings().values()} <= {"healthy", "suspect"}
