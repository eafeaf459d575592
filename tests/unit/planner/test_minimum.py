import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.fitting.minimum import Verdict, find_minimum, fit_parabola, pooled_noise

GRID = [2.0**power for power in range(-3, 4)]


def bowl(x_star: float, floor: float = 1.0, steep: float = 0.05) -> list[float]:
    return [floor + steep * math.log(x / x_star) ** 2 for x in GRID]


@given(st.floats(0.3, 3), st.floats(0.1, 5), st.floats(1e-3, 2), st.floats(1e-9, 1e9))
def test_a_parabola_is_found_again_in_any_unit(
    x_star: float, floor: float, steep: float, unit: float
) -> None:
    scaled = [x * unit for x in GRID]
    minimum = find_minimum(scaled, bowl(x_star, floor, steep), [True] * len(GRID))
    assert minimum.verdict is Verdict.INTERIOR
    assert minimum.parabola is not None
    assert minimum.parabola.x_star == pytest.approx(x_star * unit, rel=1e-5)
    assert minimum.parabola.y_star == pytest.approx(floor, rel=1e-6)
    assert minimum.parabola.curvature == pytest.approx(2 * steep, rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([1.0, 2.0, 3.0], Verdict.LOWEST),
        ([3.0, 2.0, 1.0], Verdict.HIGHEST),
        ([1.0, 2.0], Verdict.TOO_FEW),
        ([1.0, 1.0, 1.0], Verdict.LOWEST),
        ([2.0, 1.0, 2.0], Verdict.INTERIOR),
    ],
)
def test_edges_are_no_minima(losses: list[float], verdict: Verdict) -> None:
    minimum = find_minimum([1.0, 2.0, 4.0][: len(losses)], losses, [True] * len(losses))
    assert minimum.verdict is verdict
    assert (minimum.parabola is not None) == (verdict is Verdict.INTERIOR)


def test_a_dip_in_a_falling_curve_is_no_minimum() -> None:
    losses = [5.0, 2.99, 3.0, 2.0, 1.4, 1.1, 1.0, 0.99, 1.0]
    x = [2.0**power for power in range(len(losses))]
    wide = find_minimum(x[:6], [5.0, 4.0, 3.0, 2.0, 0.9, 0.91], [True] * 6)
    assert wide.verdict is Verdict.FLAT
    narrow = find_minimum(x, losses, [loss < 1.05 for loss in losses])
    assert narrow.verdict is Verdict.INTERIOR


def test_only_the_near_points_shape_the_parabola() -> None:
    losses = bowl(1.0)
    losses[0], losses[-1] = 9.0, 3.0
    near = [loss < 1.15 for loss in losses]
    minimum = find_minimum(GRID, losses, near)
    assert minimum.parabola is not None
    assert minimum.parabola.x_star == pytest.approx(1.0)
    assert (minimum.parabola.x_low, minimum.parabola.x_high) == (0.25, 4.0)


def test_unit_errors_predict_the_scatter_of_the_vertex() -> None:
    rng = np.random.default_rng(0)
    clean, noise = np.array(bowl(1.1)), 1e-3
    found = [fit_parabola(GRID, clean + noise * rng.standard_normal(len(GRID))) for _ in range(500)]
    parabolas = [parabola for parabola in found if parabola is not None]
    vertices = [parabola.ln_x_star for parabola in parabolas]
    losses = [parabola.y_star for parabola in parabolas]
    exact = fit_parabola(GRID, list(clean))
    assert exact is not None
    assert np.std(vertices) == pytest.approx(noise * exact.unit_se_ln_x, rel=0.15)
    assert np.std(losses) == pytest.approx(noise * exact.unit_se_y, rel=0.15)
    assert pooled_noise(parabolas) == pytest.approx(noise, rel=0.05)


def test_noise_is_unknown_without_a_point_to_spare() -> None:
    parabola = fit_parabola([1.0, 2.0, 4.0], [2.0, 1.0, 2.0])
    assert parabola is not None
    assert pooled_noise([parabola]) is None
