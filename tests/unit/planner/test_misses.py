"""What a fit was measured to miss widens a planned loss, to the side where the runs were found."""

import math
from dataclasses import dataclass, replace

import pytest
from unit.planner.surfaces import KLING, isoflop_points, points, sweep_of

from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.forecast import SURFACE, HoldOut
from planner.fitting.isoflop import IsoFlop
from planner.fitting.laws import Estimate, NotFitted
from planner.planning.misses import AT_MINIMA, HELD_OUT, ONE_ERROR, with_misses
from planner.planning.plan import make_plan

NO_MINIMA = IsoFlop((), NotFitted("by hand"))
LOSS = Estimate(2.0, 2.0 * math.exp(-0.03), 2.0 * math.exp(0.02), parts={"resampling": 0.025})


@dataclass(frozen=True)
class Stub:
    """As much of a fit as tells its misses."""

    forecast: HoldOut | NotFitted
    noise: float = 0.0
    isoflop: IsoFlop = NO_MINIMA


def held_out(error: float) -> HoldOut:
    """Forecast tenfold above the middle of the smaller runs; the middle of all is at 3e18."""
    return HoldOut(
        held_out_flops=1e19, ratio=3.0, runs=7, predicted=2 * (1 + error), observed=2.0, by=SURFACE,
        errors={SURFACE: error}, middle_flops=(1e18, 1e18 * math.sqrt(10)),
    )  # fmt: skip


def ends(loss: Estimate) -> tuple[float, float]:
    assert loss.low is not None
    assert loss.high is not None
    return math.log(loss.value / loss.low), math.log(loss.high / loss.value)


def test_a_forecast_that_was_too_high_lowers_the_low_end_and_only_that() -> None:
    found = with_misses(Stub(held_out(0.1)), None, 1e20, LOSS)
    # 1e20 is 1.5 times as far from the middle as the held-out budget was.
    size = 1.5 * ONE_ERROR * math.log(1.1)
    assert ends(found) == pytest.approx((size, 0.02))
    assert found.parts[HELD_OUT] == pytest.approx(math.sqrt(size**2 - 0.03**2))
    assert found.value == LOSS.value
    low = with_misses(Stub(held_out(-0.1)), None, 1e20, LOSS)
    assert ends(low) == pytest.approx((0.03, -1.5 * ONE_ERROR * math.log(0.9)))


def test_what_the_interval_or_noise_explains_adds_nothing() -> None:
    assert with_misses(Stub(held_out(0.004)), None, 1e20, LOSS) == LOSS
    assert with_misses(Stub(held_out(0.05), noise=0.06), None, 1e20, LOSS) == LOSS
    assert with_misses(Stub(NotFitted("one budget")), None, 1e20, LOSS) == LOSS
    unknown = Estimate(2.0, unknown="no resamples")
    assert with_misses(Stub(held_out(0.5)), None, 1e20, unknown) == unknown


def bent() -> Fit:
    """Losses that fall faster at the largest budget than any surface has it."""
    made = isoflop_points(KLING, reach=3, noise=3e-4)
    largest = made.flops == made.flops.max()
    losses = made.loss * (1 - 0.2 * largest)
    return fit_sweep(sweep_of(points(made.params, made.tokens, losses)), FitOptions(200))


def test_a_sweep_of_another_shape_plans_a_loss_with_its_misses() -> None:
    fitted = bent()
    assert isinstance(fitted.forecast, HoldOut)
    assert fitted.forecast.relative_error > 0.05
    loss = make_plan(fitted, 1e20).numbers["loss"].estimate
    assert loss.parts[HELD_OUT] > 0.1
    assert ends(loss)[0] > 0.2
    assert ends(loss)[1] < 0.1


def test_the_miss_at_the_largest_budget_counts_where_none_was_held_out() -> None:
    fitted = replace(bent(), forecast=NotFitted("by hand"))
    minimum = fitted.isoflop.optima[-1][1]
    assert fitted.resamples is not None
    miss = fitted.resamples.huber.surface().loss(minimum.params, minimum.tokens) / minimum.loss - 1
    assert miss > 0.02
    found = with_misses(fitted, fitted.resamples.huber.surface(), 1e20, LOSS)
    assert found.parts[AT_MINIMA] > 0
    assert ends(found)[0] == pytest.approx(math.log1p(miss))


def test_a_law_that_holds_stays_as_narrow_as_it_was() -> None:
    made = isoflop_points(KLING, reach=3, noise=3e-4)
    fitted = fit_sweep(sweep_of(made), FitOptions(200))
    loss = make_plan(fitted, 1e20).numbers["loss"].estimate
    alone = make_plan(replace(fitted, forecast=NotFitted("by hand")), 1e20).numbers["loss"].estimate
    assert sum(ends(loss)) < 1.5 * sum(ends(alone))
