from pathlib import Path

import numpy as np
import pytest
from unit.planner.surfaces import CHINCHILLA, KLING, fitted, isoflop_points, published_points

from planner.fitting.forecast import ISOFLOP, SURFACE, HoldOut, hold_out
from planner.fitting.frontier import six_nd
from planner.fitting.isoflop import fit_isoflop
from planner.fitting.laws import NotFitted
from planner.fitting.surface import Points


def held_out(made: Points) -> HoldOut:
    frontier = six_nd(made.params.min() / 1e3, made.params.max() * 1e3)
    found = hold_out(made, fit_isoflop(made, fitted(made).surfaces, frontier), frontier)
    assert isinstance(found, HoldOut), found
    return found


def test_a_law_that_holds_is_forecast_to_its_noise() -> None:
    found = held_out(isoflop_points(KLING, noise=1e-4))
    assert found.held_out_flops == pytest.approx(6e18)
    assert found.ratio == pytest.approx(2)
    assert found.runs == 9
    assert found.by == ISOFLOP
    assert set(found.errors) == {ISOFLOP, SURFACE}
    assert abs(found.relative_error) < 2e-3


def test_nothing_of_the_largest_budget_reaches_the_forecast() -> None:
    made = isoflop_points(CHINCHILLA, noise=3e-3)
    largest = made.flops > 5e18
    changed = Points(
        made.params, made.tokens, made.flops, np.where(largest, made.loss * 1.3, made.loss),
        made.bound, made.cluster, made.names,
    )  # fmt: skip
    before, after = held_out(made), held_out(changed)
    assert after.predicted == pytest.approx(before.predicted)
    assert after.observed == pytest.approx(1.3 * before.observed, rel=0.02)


def test_seven_of_nine_published_sweeps_are_forecast_within_half_a_per_cent(
    shared_data: Path,
) -> None:
    sweeps = {
        **published_points(shared_data, "openathena"),
        **published_points(shared_data, "porian"),
        "chinchilla": published_points(shared_data, "chinchilla", ("loss<3.44",))["chinchilla"],
    }
    errors = {name: abs(held_out(made).relative_error) for name, made in sweeps.items()}
    assert sum(error < 0.005 for error in errors.values()) >= 7, errors
    assert max(errors.values()) < 0.02, errors


def test_one_budget_leaves_nothing_to_forecast_from() -> None:
    made = isoflop_points(KLING, budgets=(1e18,))
    frontier = six_nd(1e5, 1e12)
    found = hold_out(made, fit_isoflop(made, None, frontier), frontier)
    assert isinstance(found, NotFitted)
    assert "all runs cost the same" in found.reason
