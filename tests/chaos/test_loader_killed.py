"""Ranks that read a run's data are killed, and others go on: nothing is lost or seen twice."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.loader_kills import STATE, Drill, Driver, doom, held, verdict, write_data

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

CLIPS = 200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), CLIPS)


@pytest.fixture
def driver(data: Path, tmp_path: Path) -> Driver:
    """Of a run through a hot volume that holds less than its data."""
    drill = Drill(
        tmp_path / "run", data, steps=30, packs_per_step=12, step_s=0.002, hot=tmp_path / "hot",
        hot_bytes=6_000_000,
    )  # fmt: skip
    return Driver(drill)


def test_other_numbers_of_ranks_go_on_where_killed_ones_were(driver: Driver) -> None:
    for world, end in ((2, 5), (3, 13), (4, 21)):
        assert not driver.attempt(world, lambda _, taken, end=end: taken >= end)  # type: ignore[misc]
    assert driver.attempt(1, lambda *_: False)
    started = driver.told.resumed_at
    assert started == sorted(started)
    assert 0 < started[1] < started[-1] < 30
    found = verdict(driver.drill)
    assert (found.identical_steps, found.missing, found.repeated) == (30, 0, 0)
    assert found.seen_least >= 1
    assert driver.told.state_bytes < 1024
    assert 0 < driver.told.most_hot_bytes <= 6_000_000
    assert driver.told.left_by_others == 0
    assert held(driver.drill.hot or Path()) == {}


def test_kills_at_any_moment_cost_only_time(driver: Driver) -> None:
    chance = random.Random(1)
    driver.drill = replace(driver.drill, steps=1000)
    for world in itertools.islice(itertools.cycle((4, 3, 2)), 6):
        driver.attempt(world, doom(chance, driver.drill.saved["step"]), victims=2)
    saved = driver.drill.saved["step"]
    driver.drill = replace(driver.drill, steps=saved + 6)
    assert driver.attempt(2, lambda *_: False)
    found = verdict(driver.drill)
    assert (found.identical_steps, found.missing, found.repeated) == (saved + 6, 0, 0)
    assert held(driver.drill.hot or Path()) == {}


def test_a_run_that_goes_on_at_another_step_is_found_out(driver: Driver) -> None:
    driver.drill = replace(driver.drill, hot=None, steps=6)
    assert driver.attempt(2, lambda *_: False)
    saved = driver.drill.saved
    driver.drill = replace(driver.drill, steps=30)
    (driver.drill.folder / STATE).write_text(json.dumps(saved | {"step": saved["step"] + 2}))
    assert driver.attempt(2, lambda *_: False)
    found = verdict(driver.drill)
    assert found.identical_steps == 28
    assert found.missing > 0
