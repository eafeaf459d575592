import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit

from planner.fitting.laws import (
    LEVEL,
    FloorLaw,
    NotFitted,
    fit_floor_law,
    fit_log_linear,
    power_law,
    t_quantile,
)

exponents = st.floats(-2, 2)
scales = st.floats(1e-6, 1e6)
FLOPS = [1e18, 3e18, 1e19, 6e19, 3e20]


@given(exponents, scales, st.integers(2, 5))
def test_exact_power_law_gives_the_exact_exponent_and_scale(p: float, k: float, n: int) -> None:
    x = FLOPS[:n]
    law = power_law(x, [k * c**p for c in x])
    assert law.exponent("C").value == pytest.approx(p, abs=1e-9)
    assert law.value(C=1e22) == pytest.approx(k * 1e22**p, rel=1e-6)


@given(exponents, exponents, scales)
def test_two_variables_are_told_apart(p: float, q: float, k: float) -> None:
    N, D = [1e5, 1e6, 1e7, 1e5, 1e7], [1e8, 3e7, 1e9, 1e9, 2e8]
    y = [k * n**p * d**q for n, d in zip(N, D, strict=True)]
    law = fit_log_linear(y, {"N": N, "D": D})
    assert law.exponent("N").value == pytest.approx(p, abs=1e-8)
    assert law.exponent("D").value == pytest.approx(q, abs=1e-8)


@given(st.lists(st.floats(0.5, 2), min_size=5, max_size=5), scales, scales)
def test_units_move_the_scale_and_nothing_else(
    noise: list[float], x_unit: float, y_unit: float
) -> None:
    y = [c**0.4 * e for c, e in zip(FLOPS, noise, strict=True)]
    law = power_law(FLOPS, y)
    other = power_law([c * x_unit for c in FLOPS], [v * y_unit for v in y])
    assert other.exponent("C").value == pytest.approx(law.exponent("C").value, abs=1e-8)
    here, there = law.predict(C=1e22), other.predict(C=1e22 * x_unit)
    assert here.low is not None
    assert there.low == pytest.approx(here.low * y_unit, rel=1e-5)
    assert there.high == pytest.approx(here.high * y_unit, rel=1e-5)


@settings(max_examples=20)
@given(st.permutations(range(5)))
def test_order_does_not_matter(order: list[int]) -> None:
    y = [1.0, 1.7, 2.1, 4.5, 8.0]
    law, other = power_law(FLOPS, y), power_law([FLOPS[i] for i in order], [y[i] for i in order])
    assert other.predict(C=1e22).high == pytest.approx(law.predict(C=1e22).high, rel=1e-9)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 33, 240])
def test_t_quantile_is_that_of_the_t_distribution(df: int) -> None:
    assert t_quantile(df) == pytest.approx(float(stdtrit(df, 0.5 + LEVEL / 2)), rel=1e-9)


def test_no_degree_of_freedom_states_the_interval_as_unknown() -> None:
    estimate = power_law([1e18, 1e19], [1.0, 2.0]).predict(C=1e20)
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.unknown == "2 observations for 2 constants leave no degree of freedom"


def test_a_heavier_observation_pulls_the_law() -> None:
    x, y = [1.0, 2.0, 4.0], [1.0, 2.0, 8.0]
    light = fit_log_linear(y, {"x": x}, weights=[1, 1, 1e-6])
    assert light.exponent("x").value == pytest.approx(1, abs=1e-4)
    assert fit_log_linear(y, {"x": x}).exponent("x").value == pytest.approx(1.5)


def test_intervals_cover_at_their_level() -> None:
    rng = np.random.default_rng(0)
    trials, exponent_hits, prediction_hits = 600, 0, 0
    for _ in range(trials):
        y = np.array(FLOPS) ** 0.45 * np.exp(0.1 * rng.standard_normal(len(FLOPS)))
        law = power_law(FLOPS, list(y))
        p = law.exponent("C")
        new = 1e22**0.45 * math.exp(0.1 * rng.standard_normal())
        seen = law.predict(C=1e22)
        exponent_hits += p.low < 0.45 < p.high
        prediction_hits += seen.low < new < seen.high
    # Three standard deviations of a binomial around LEVEL.
    slack = 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
    assert exponent_hits / trials == pytest.approx(LEVEL, abs=slack)
    assert prediction_hits / trials == pytest.approx(LEVEL, abs=slack)


@settings(max_examples=30)
@given(st.floats(0.1, 3), st.floats(0.03, 0.6), st.floats(0.2, 5))
def test_floor_law_finds_the_law_that_made_the_losses(E: float, p: float, rise: float) -> None:
    k = rise * FLOPS[0] ** p
    law = fit_floor_law(FLOPS, [E + k * c**-p for c in FLOPS])
    assert isinstance(law, FloorLaw)
    assert law.exponent_value == pytest.approx(p, rel=1e-3)
    assert law.floor == pytest.approx(E, rel=1e-2, abs=1e-3)
    assert law.predict(1e22).value == pytest.approx(E + k * 1e22**-p, rel=1e-3)


@pytest.mark.parametrize("target", [3e19, 1e22])
def test_floor_law_interval_covers_the_next_loss(target: float) -> None:
    rng = np.random.default_rng(1)
    trials, hits = 300, 0
    budgets = np.geomspace(1e18, 1e21, 8)
    for _ in range(trials):
        noise = np.exp(2e-3 * rng.standard_normal(9))
        law = fit_floor_law(list(budgets), list((1.8 + 60 * budgets**-0.1) * noise[:8]))
        if isinstance(law, FloorLaw):
            seen = law.predict(target)
            hits += seen.low < (1.8 + 60 * target**-0.1) * noise[8] < seen.high
        else:
            trials -= 1
    assert trials > 250
    assert hits / trials == pytest.approx(LEVEL, abs=0.06)


def test_floor_needs_four_budgets_and_a_curve_that_flattens() -> None:
    few = fit_floor_law(FLOPS[:3], [3.0, 2.5, 2.2])
    assert isinstance(few, NotFitted)
    assert "3 budgets" in few.reason
    steepening = fit_floor_law(FLOPS, [60 * c**-0.1 - 0.3 for c in FLOPS])
    assert isinstance(steepening, NotFitted)
    assert "zero" in steepening.reason


def test_a_law_far_beyond_its_data_stays_a_number() -> None:
    law = power_law([1.0, 10.0, 100.0], [1.0, 1e5, 1e10])
    assert math.isfinite(law.value(C=1e300))
    assert math.isfinite(law.predict(C=1e300).value)
