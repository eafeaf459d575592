from pathlib import Path

import numpy as np
import pytest
from unit.planner.surfaces import KLING, fitted, isoflop_points, published_points

from planner.fitting.bands import (
    Spread,
    band,
    cluster_weights,
    finite_exp,
    log_band,
    resample,
    spread_of,
    unexplained,
)
from planner.fitting.estimators import SurfaceFit, fit_varpro
from planner.fitting.isoflop import budget_masks
from planner.fitting.surface import Points, Surfaces


def resampled(made: Points, count: int = 200, seed: int = 0):  # type: ignore[no-untyped-def]
    varpro = fit_varpro(made)
    assert isinstance(varpro, SurfaceFit)
    return resample(made, fitted(made), varpro, budget_masks(made), count, seed)


def exponent(surfaces: Surfaces):  # type: ignore[no-untyped-def]
    return surfaces.constants()["a"]


def test_points_of_one_cluster_are_drawn_together() -> None:
    made = isoflop_points(KLING)
    paired = Points(
        made.params, made.tokens, made.flops, made.loss, made.bound,
        np.arange(len(made)) // 2, made.names,
    )  # fmt: skip
    weights = cluster_weights(paired, 50, 0)
    assert (weights[:, 0:44:2] == weights[:, 1:45:2]).all()
    assert weights.shape == (50, 45)
    assert set(weights[:, :44].sum(axis=1)) <= set(range(0, 100, 2))
    assert (cluster_weights(made, 50, 0).sum(axis=1) == 45).all()


def test_equal_seeds_give_equal_bands_and_others_do_not() -> None:
    made = isoflop_points(KLING, noise=3e-4)
    first, again, other = (exponent(resampled(made, seed=seed).huber) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first[1:] != other[1:]).any()
    assert first[0] == other[0]


def test_more_noise_makes_wider_bands() -> None:
    widths = []
    for noise in (1e-4, 3e-4, 1e-3):
        found = resampled(isoflop_points(KLING, noise=noise))
        estimate = band(exponent(found.huber), found.stretch, Spread({}))
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths == sorted(widths)
    assert widths[2] > 5 * widths[0]


def test_a_spread_and_noise_widen_in_quadrature_and_are_named() -> None:
    drawn = np.r_[0.0, np.linspace(-1, 1, 1001)]
    alone = band(drawn, 1.0, Spread({}))
    both = band(drawn, 1.0, Spread({"estimators": 0.5}), noise=0.3)
    assert alone.high == pytest.approx(0.9, abs=1e-2)
    assert both.high == pytest.approx(np.sqrt(0.9**2 + 0.5**2 + (1.6449 * 0.3) ** 2), abs=1e-2)
    assert set(both.parts) == {"resampling", "estimators", "noise"}


def test_the_band_of_a_positive_number_is_symmetric_in_its_logarithm() -> None:
    drawn = np.exp(np.r_[2.0, np.linspace(1, 3, 1001)])
    found = log_band(drawn, 1.0, Spread({}))
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(np.exp(2))
    assert found.high / found.value == pytest.approx(found.value / found.low)


def test_without_resamples_the_interval_is_unknown_and_says_why() -> None:
    found = band(np.array([1.0, 1.1]), 1.0, Spread({}))
    assert found.low is None
    assert found.unknown == "1 resamples; an interval needs at least 20"


def test_estimators_that_differ_by_noise_alone_add_nothing() -> None:
    assert unexplained(1.0, 2.0) == 0
    assert unexplained(5.0, 3.0) == 4
    found = resampled(isoflop_points(KLING, noise=3e-4))
    assert spread_of(found, exponent).total < 0.01


def test_losses_of_another_shape_show_as_a_spread(shared_data: Path) -> None:
    """Small budgets bent away from the law by their long warm-up (arXiv 2406.19146)."""
    made = published_points(shared_data, "porian")["rw_base_short_kaplan_standard_val"]
    spread = spread_of(resampled(made), exponent)
    assert spread.parts["estimators"] > 0.1


def test_a_resample_beyond_what_a_float_holds_is_no_warning() -> None:
    with np.errstate(over="raise"):
        held = finite_exp(np.array([-1e4, 0.0, 1e4]))
    assert np.isfinite(held).all()
    assert held[1] == 1
    assert np.isnan(finite_exp(np.array([np.nan]))).all()
