import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.planner.surfaces import ASYMMETRIC, CHINCHILLA, KLING

from planner.fitting.frontier import Frontier, six_nd
from planner.fitting.surface import Surface, Surfaces


def stacked(*surfaces: Surface) -> Surfaces:
    centre = (math.log(1e9), math.log(1e10))
    rows = [
        [
            math.log(s.E),
            math.log(s.A) - s.alpha * centre[0],
            math.log(s.B) - s.beta * centre[1],
            s.alpha,
            s.beta,
        ]
        for s in surfaces
    ]
    return Surfaces(np.array(rows), centre)


@settings(max_examples=50, deadline=None)
@given(st.floats(17, 25))
def test_the_best_size_is_the_closed_form_one_under_6nd(ln10_flops: float) -> None:
    flops = 10**ln10_flops
    truths = (KLING, CHINCHILLA, ASYMMETRIC)
    best = six_nd(1e4, 1e16).best(stacked(*truths), flops)
    for row, truth in enumerate(truths):
        N = truth.best_params(flops)
        assert best.log_params[row] == pytest.approx(math.log(N), abs=2e-4)
        assert best.log_tokens[row] == pytest.approx(math.log(flops / 6 / N), abs=2e-4)
        assert math.exp(best.log_loss[row]) == pytest.approx(truth.loss(N, flops / 6 / N), rel=1e-7)
    np.testing.assert_allclose(stacked(*truths).log_best_params(flops), best.log_params, atol=2e-4)


def test_tokens_that_cost_more_make_smaller_models_best() -> None:
    dear = Frontier(lambda N: 6 * N * (1 + 1e9 / N), 1e4, 1e16, "attention that dominates")
    cheap = six_nd(1e4, 1e16)
    truth = stacked(CHINCHILLA)
    assert dear.tokens(1e9, 1e20) == pytest.approx(cheap.tokens(1e9, 1e20) / 2)
    assert dear.flops(1e9, dear.tokens(1e9, 1e20)) == pytest.approx(1e20)
    for flops in (1e19, 1e21, 1e23):
        N = math.exp(dear.best(truth, flops).log_params[0])
        grid = np.geomspace(1e7, 1e13, 20_001)
        losses = [CHINCHILLA.loss(n, dear.tokens(n, flops)) for n in grid]
        assert pytest.approx(grid[int(np.argmin(losses))], rel=2e-3) == N


def test_a_minimum_at_the_end_of_the_sizes_is_marked() -> None:
    best = six_nd(1e12, 1e16).best(stacked(CHINCHILLA), 1e20)
    assert not best.inside[0]
    assert math.exp(best.log_params[0]) == pytest.approx(1e12)
    assert six_nd(1e6, 1e16).best(stacked(CHINCHILLA), 1e20).inside[0]
