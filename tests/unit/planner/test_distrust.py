from dataclasses import replace

import numpy as np
import pytest
from unit.planner.plans import (
    TRUTH,
    codes,
    fit,
    foreign_fit,
    law,
    native_fit,
    rows_of_platform,
    value,
)
from unit.planner.synthetic import simple_sweep

from planner.fitting.fit import Fit
from planner.fitting.isoflop import ComputeLaws, IsoFlop
from planner.fitting.laws import NotFitted, power_law
from planner.fitting.surface import Surfaces
from planner.planning.plan import make_plan


@pytest.fixture(scope="module")
def native() -> Fit:
    return native_fit()


@pytest.fixture(scope="module")
def foreign() -> Fit:
    return foreign_fit()


def test_far_extrapolation_is_refused_unless_forced(foreign: Fit) -> None:
    near, far = make_plan(foreign, 2.9e14), make_plan(foreign, 4e14)
    assert not near.refused
    assert "extrapolation" not in codes(near)
    assert far.refused
    assert not far.numbers
    (finding,) = [each for each in far.findings if each.refuses]
    assert finding.code == "extrapolation"
    assert "400x" in finding.text
    assert "the limit is 300x" in finding.text
    forced = make_plan(foreign, 4e14, force=True)
    assert not forced.refused
    assert "extrapolation" in codes(forced)
    assert value(forced, "params") == pytest.approx(TRUTH.best_size(4e14), rel=0.3)


def test_a_size_off_the_ladder_has_numbers_but_no_config_unless_forced(native: Fit) -> None:
    small = make_plan(native, 1e9)
    assert "off_ladder" in codes(small)
    assert small.refused
    assert small.config is None
    assert value(small, "width") == 32
    forced = make_plan(native, 1e9, force=True)
    assert not forced.refused
    assert forced.config is not None
    assert forced.config["model"]["width"] == 32


def test_a_target_below_one_step_is_refused_even_when_forced(native: Fit) -> None:
    for force in (False, True):
        plan = make_plan(native, 1e5, force=force)
        assert "less_than_a_step" in codes(plan)
        assert plan.config is None
        assert plan.numbers.keys() <= {"params"}


def test_no_law_of_the_learning_rate_leaves_no_config_unless_forced(native: Fit) -> None:
    reason = NotFitted("every group is at the edge")
    censored = replace(native, hyper=replace(native.hyper, lr=reason))
    plan = make_plan(censored, 1e13)
    assert plan.refused
    assert plan.config is None
    assert "lr" not in plan.numbers
    assert {"params", "tokens", "loss", "width", "steps"} <= plan.numbers.keys()
    forced = make_plan(censored, 1e13, force=True)
    assert forced.config is not None
    done = [row for row in rows_of_platform() if row["status"] == "done"]
    largest = [row for row in done if row["budget_flops"] == 1e12]
    best = min(largest, key=lambda row: row["loss"])
    assert forced.config["optimizer"]["lr_peak"] == best["lr_peak"]
    assert forced.numbers["lr"].estimate.unknown == reason.reason


def test_a_foreign_sweep_without_learning_rates_is_planned_without_one(foreign: Fit) -> None:
    plan = make_plan(replace(foreign, hyper=replace(foreign.hyper, lr=NotFitted("none"))), 1e13)
    assert not plan.refused
    assert "lr" not in plan.numbers


def falling(fitted: Fit, exponents: tuple[float, ...]) -> Fit:
    """The same fit with minima of the sizes that these exponents over the budgets make."""
    laws = fitted.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [1e10, 1e11, 1e12, 1e13][: len(exponents)]
    sizes = [1e6 * (C / 1e10) ** p for C, p in zip(flops, exponents, strict=True)]
    moved = replace(laws, size=power_law(flops, sizes))
    return replace(fitted, isoflop=IsoFlop(fitted.isoflop.budgets, moved))


def test_minima_that_surely_fall_with_compute_are_refused(foreign: Fit) -> None:
    sure = falling(foreign, (-0.2, -0.2, -0.21, -0.2))
    plan = make_plan(sure, 1e13)
    assert plan.refused
    assert not plan.numbers
    assert "minima_are_noise" in codes(plan)
    assert make_plan(sure, 1e13, force=True).numbers


def test_minima_that_may_fall_only_warn_beside_a_surface(foreign: Fit) -> None:
    unsure = falling(foreign, (0.0, -0.3))
    plan = make_plan(unsure, 1e13)
    assert "minima_are_noise" in codes(plan)
    assert not plan.refused
    assert make_plan(replace(unsure, resamples=None), 1e13).refused


def test_without_any_law_there_is_no_plan_even_when_forced(foreign: Fit) -> None:
    bare = IsoFlop(foreign.isoflop.budgets, NotFitted("one budget"))
    for force in (False, True):
        plan = make_plan(replace(foreign, resamples=None, isoflop=bare), 1e13, force=force)
        assert not plan.numbers
        assert codes(plan) == {"no_law"}
        assert "one budget" in plan.findings[0].text


def vague(fitted: Fit, below: float, above: float) -> Fit:
    """The same fit with resamples of ln A this far about the estimate."""
    assert fitted.resamples is not None
    theta = fitted.resamples.huber.theta.copy()
    theta[1:, 1] += np.linspace(-below, above, len(theta) - 1)
    spread = replace(fitted.resamples, huber=Surfaces(theta, fitted.resamples.huber.centre))
    return replace(fitted, resamples=spread)


def test_an_interval_wider_than_tenfold_is_warned_about(foreign: Fit) -> None:
    plan = make_plan(vague(foreign, 0.5, 2.5), 1e13)
    assert "interval_too_wide" in codes(plan)
    assert not plan.refused
    assert "interval_too_wide" not in codes(make_plan(foreign, 1e13))


def test_an_interval_that_spans_a_thousandfold_is_refused(foreign: Fit) -> None:
    plan = make_plan(vague(foreign, 4, 4), 1e13)
    (finding,) = [each for each in plan.findings if each.code == "interval_too_wide"]
    assert finding.refuses
    assert "limit 1000" in finding.text
    assert plan.refused
    assert plan.config is None
    assert not make_plan(vague(foreign, 4, 4), 1e13, force=True).refused


def batches(scale: float, params: float) -> Fit:
    """A fit whose batch law is scale * N^params; its groups ran batches of 1,000 tokens."""
    rows = [row | {"batch_tokens": 1000.0} for row in simple_sweep(TRUTH)]
    fitted = fit(rows)
    return replace(fitted, hyper=replace(fitted.hyper, batch_tokens=law(scale, params, 0.0)))


@pytest.mark.parametrize(
    ("scale", "refused", "text"),
    [
        (0.5, True, "0.5 tokens, less than one"),
        (20.0, False, "50x outside the batches tried"),
        (3e4, False, "30x outside the batches tried"),
    ],
)
def test_a_batch_that_no_one_ran_is_doubted(scale: float, refused: bool, text: str) -> None:
    plan = make_plan(batches(scale, 0.0), 1e13)
    (finding,) = [each for each in plan.findings if each.code == "batch_implausible"]
    assert text in finding.text
    assert finding.refuses == refused == plan.refused


def test_a_batch_near_those_that_were_run_is_not_doubted() -> None:
    assert "batch_implausible" not in codes(make_plan(batches(4e3, 0.0), 1e13))


def test_steps_without_number_doubt_the_batch() -> None:
    sweep = [row | {"batch_tokens": 2.0} for row in simple_sweep(TRUTH)]
    plan = make_plan(fit(sweep), 1e17, force=True)
    (finding,) = [each for each in plan.findings if each.code == "batch_implausible"]
    assert "steps (limit 1e+07)" in finding.text


def test_a_surface_without_a_best_size_is_refused(foreign: Fit) -> None:
    assert foreign.resamples is not None
    theta = foreign.resamples.huber.theta.copy()
    theta[:, 2] = -60.0
    vanished = replace(foreign.resamples, huber=Surfaces(theta, foreign.resamples.huber.centre))
    plan = make_plan(replace(foreign, resamples=vanished), 1e13)
    assert "no_best_size" in codes(plan)
    assert plan.refused
