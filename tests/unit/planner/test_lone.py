from dataclasses import replace

import pytest
from unit.planner.hyper_sweeps import bowl, run, sweep_of

from planner.fitting.hyper import groups
from planner.fitting.lone import lone_losses
from planner.reading.records import Run


def group(tokens: float, *losses: float) -> list[Run]:
    return [run(loss, lr=1e-3 * 2**index, tokens=tokens) for index, loss in enumerate(losses)]


def test_one_loss_far_below_its_group_and_the_groups_nearby_is_none() -> None:
    found = lone_losses([group(1e9, 3.1, 0.01, 3.0), group(2e9, 2.9, 3.0), group(4e9, 2.8, 2.9)])
    assert found[0] is not None
    assert found[0].run.loss == 0.01
    assert found[0].usual == pytest.approx(2.85)
    assert found[1:] == [None, None]


def test_a_true_best_beside_diverged_runs_stays() -> None:
    assert lone_losses([group(1e9, 3.0, 7.0, 7.1), group(2e9, 2.9, 3.0)]) == [None, None]


def test_without_a_group_that_tells_nothing_is_left_out() -> None:
    assert lone_losses([group(1e9, 3.0, 0.01)]) == [None]
    assert lone_losses([[run(3.0)], [run(0.01, tokens=2e9)]]) == [None, None]


def test_the_other_runs_of_the_group_are_not_diverged() -> None:
    """No bound of stability follows from a loss that is wrong."""
    first, *others = bowl(2e-3, tokens=2e9)
    broken = [replace(first, loss=0.01), *others]
    found = groups(sweep_of([*bowl(2e-3), *broken]))[1]
    assert found.lone is not None
    assert found.lone.run.loss == 0.01
    assert found.lr_unstable is None
    assert len(found.runs) == len(others)
    assert all(point.loss is not None for point in found.grid.points)
