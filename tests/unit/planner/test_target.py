import math
from dataclasses import replace

import pytest
from unit.planner.plans import TRUTH, ends, foreign_fit, value
from unit.planner.synthetic import simple_sweep, sweep_of

from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.isoflop import ComputeLaws, IsoFlop
from planner.fitting.laws import NotFitted, power_law
from planner.fitting.surface import Surfaces
from planner.planning.plan import make_plan
from planner.planning.target import best_size


@pytest.fixture(scope="module")
def foreign() -> Fit:
    return foreign_fit()


def test_the_intervals_hold_the_truth(foreign: Fit) -> None:
    plan = make_plan(foreign, 1e13)
    N = TRUTH.best_size(1e13)
    D = 1e13 / 6 / N
    for name, truth in (("params", N), ("tokens", D), ("loss", TRUTH.best_loss(N, D))):
        low, high = ends(plan, name)
        assert low < truth < high
    low, high = ends(plan, "params")
    assert 1.005 < high / low < 1.5
    # On one budget the two ends are the same runs.
    assert ends(plan, "tokens") == pytest.approx((1e13 / 6 / high, 1e13 / 6 / low))


def test_a_loss_holds_the_noise_of_one_observation(foreign: Fit) -> None:
    quiet, loud = (
        make_plan(replace(foreign, noise=noise), 1e13).numbers["loss"].estimate
        for noise in (0.0, 0.05)
    )
    assert quiet.low is not None
    assert loud.low is not None
    assert math.log(loud.value / loud.low) == pytest.approx(
        math.hypot(math.log(quiet.value / quiet.low), 1.645 * 0.05), rel=1e-3
    )


def test_minima_that_disagree_beyond_their_interval_widen_that_of_the_size(foreign: Fit) -> None:
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [1e10, 1e11, 1e12]
    sizes = [3 * laws.size.value(C=C) for C in flops]
    off = replace(laws, size=power_law(flops, sizes))
    apart = replace(foreign, isoflop=IsoFlop((), off))
    before, after = make_plan(foreign, 1e13), make_plan(apart, 1e13)
    assert value(before, "params") == value(after, "params")
    assert ends(after, "params")[1] > 2.5 * value(after, "params")
    assert after.numbers["params"].estimate.parts["isoFLOP minima"] == pytest.approx(
        math.log(3), abs=0.3
    )


def test_the_known_bias_of_the_parabolas_is_no_disagreement(foreign: Fit) -> None:
    """Minima that are off by just what the surface says their parabolas are, agree with it."""
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [flops for flops, _ in foreign.isoflop.optima]
    sizes = [1.5 * laws.size.value(C=C) for C in flops]
    budgets = tuple(
        replace(
            budget,
            optimum=replace(
                budget.optimum, bias_ln_params=(budget.optimum.bias_ln_params or 0) + math.log(1.5)
            ),
        )
        for budget in foreign.isoflop.budgets
        if budget.optimum is not None
    )
    moved = replace(laws, size=power_law(flops, sizes))
    biased = best_size(replace(foreign, isoflop=IsoFlop(budgets, moved)), 1e13)
    unknown = best_size(replace(foreign, isoflop=IsoFlop((), moved)), 1e13)
    assert not isinstance(biased, NotFitted)
    assert not isinstance(unknown, NotFitted)
    assert biased.params.parts.get("isoFLOP minima", 0.0) < 0.1
    assert unknown.params.parts["isoFLOP minima"] > 0.3


def test_without_resamples_the_numbers_stand_and_say_why_there_is_no_interval() -> None:
    rows = simple_sweep(TRUTH)
    plan = make_plan(fit_sweep(sweep_of(rows), FitOptions(resamples=0)), 1e13)
    for name in ("params", "tokens", "loss"):
        assert plan.numbers[name].estimate.low is None
        assert "0 resamples" in (plan.numbers[name].estimate.unknown or "")


def test_losses_that_disagree_beyond_their_interval_widen_that_of_the_loss(foreign: Fit) -> None:
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [1e10, 1e11, 1e12]
    off = replace(
        laws,
        loss_power=power_law(flops, [1.2 * laws.loss.predict(C=C).value for C in flops]),
        loss_floor=NotFitted("by hand"),
    )
    before = make_plan(foreign, 1e11).numbers["loss"].estimate
    after = make_plan(replace(foreign, isoflop=IsoFlop((), off)), 1e11).numbers["loss"].estimate
    assert "isoFLOP minima" not in before.parts
    assert after.parts["isoFLOP minima"] > 0.05
    assert after.value == before.value
    assert after.low is not None
    assert math.log(after.value / after.low) >= after.parts["isoFLOP minima"]


def test_estimators_that_disagree_widen_the_interval(foreign: Fit) -> None:
    assert foreign.resamples is not None
    theta = foreign.resamples.varpro.theta.copy()
    theta[:, 1] += 0.5
    other = Surfaces(theta, foreign.resamples.varpro.centre)
    apart = replace(foreign, resamples=replace(foreign.resamples, varpro=other))
    best = best_size(apart, 1e13)
    assert not isinstance(best, NotFitted)
    # d ln N* / d ln A = 1 / (alpha + beta), both 0.35 in the truth.
    assert best.params.parts["estimators"] == pytest.approx(0.5 / 0.7, rel=0.1)
    low, high = ends(make_plan(apart, 1e13), "params")
    assert high / low > 3
