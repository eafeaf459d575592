import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.planner.synthetic import resamples_of

from planner.fitting.frontier import six_nd
from planner.fitting.surface import Surface
from planner.planning.choice import Candidate
from planner.planning.tradeoff import SHARES, Smaller, tradeoff

CHINCHILLA = Surface(E=1.8172, A=477.8, B=2143.0, alpha=0.3473, beta=0.3672)
KLING = Surface(E=0.4856, A=0.0082 * 1e9**0.3188, B=0.0373 * 1e9**0.2917, alpha=0.3188, beta=0.2917)
SURFACES = st.builds(
    Surface,
    E=st.floats(0.1, 3),
    A=st.floats(1, 1e4),
    B=st.floats(1, 1e4),
    alpha=st.floats(0.15, 0.6),
    beta=st.floats(0.15, 0.6),
)


def at(params: float, flops: float) -> Candidate:
    return Candidate(params, flops / (6 * params), 6 * params)


def of(
    surface: Surface, flops: float, jitter: float = 0.0, evaluations: int = 1
) -> tuple[Smaller, ...]:
    best = surface.best_params(flops)
    others = [at(best * share, flops) for share in SHARES]
    return tradeoff(resamples_of(surface, jitter=jitter), others[1], others, evaluations)


def test_half_the_size_agrees_with_a_search_by_hand() -> None:
    flops = 1e23
    best = CHINCHILLA.best_params(flops)
    (half,) = [row for row in of(CHINCHILLA, flops) if row.ratio == pytest.approx(0.5)]
    planned = CHINCHILLA.loss(best, flops / (6 * best))
    lost = CHINCHILLA.loss(best / 2, flops / (3 * best)) - planned
    assert half.loss_given_up.value == pytest.approx(lost, rel=1e-9)
    assert half.equal_loss_flops is not None
    tokens = np.geomspace(1, 10, 200_001) * flops / (3 * best)
    reached = tokens[
        np.argmax([CHINCHILLA.loss(best / 2, d) <= planned for d in tokens[::20]]) * 20
    ]
    assert half.equal_loss_tokens == pytest.approx(reached, rel=1e-3)
    assert half.equal_loss_flops.value == pytest.approx(3 * best * reached, rel=1e-3)


def test_generating_pays_off_after_the_extra_training_over_what_a_token_saves() -> None:
    flops = 1e23
    once, often = of(CHINCHILLA, flops), of(CHINCHILLA, flops, evaluations=48)
    best = CHINCHILLA.best_params(flops)
    for row, sampled in zip(once, often, strict=True):
        assert row.inference_flops_per_token == pytest.approx(2 * row.params)
        assert row.inference_ratio == pytest.approx(row.ratio)
        if row.break_even_tokens is None:
            continue
        assert row.equal_loss_flops is not None
        saved = 2 * best - 2 * row.params
        extra = row.equal_loss_flops.value - flops
        assert row.break_even_tokens.value == pytest.approx(extra / saved)
        assert sampled.break_even_tokens is not None
        assert sampled.break_even_tokens.value == pytest.approx(extra / saved / 48)


def test_a_larger_model_never_pays_off_and_one_too_small_never_gets_there() -> None:
    rows = {round(row.ratio, 3): row for row in of(CHINCHILLA, 1e23)}
    assert rows[2.0].break_even_tokens is None
    assert rows[2.0].equal_loss_flops is not None
    assert rows[0.125].equal_loss_flops is None
    assert rows[0.125].break_even_tokens is None
    assert "never reaches" in rows[0.125].reason
    floor = CHINCHILLA.E + CHINCHILLA.A * rows[0.125].params ** -CHINCHILLA.alpha
    assert floor > CHINCHILLA.loss(rows[1.0].params, rows[1.0].tokens)


@given(SURFACES, st.floats(18, 26))
def test_no_other_size_is_better_or_cheaper(surface: Surface, log_flops: float) -> None:
    flops = 10**log_flops
    planned = surface.loss(surface.best_params(flops), flops / 6 / surface.best_params(flops))
    for row in of(surface, flops):
        assert row.loss_given_up.value >= -1e-12
        assert row.loss == pytest.approx(planned + row.loss_given_up.value)
        if row.equal_loss_flops is None or row.equal_loss_tokens is None:
            floor = surface.E + surface.A * row.params**-surface.alpha
            assert floor >= planned * (1 - 1e-12)
            continue
        assert row.equal_loss_flops.value >= flops * (1 - 1e-9)
        # As many tokens as it takes can be 1e40: the surface then hardly moves.
        assert surface.loss(row.params, row.equal_loss_tokens) == pytest.approx(planned)


def test_what_is_given_up_has_an_interval_that_the_resamples_make() -> None:
    rows = of(CHINCHILLA, 1e23, jitter=0.01)
    for row in rows:
        assert row.loss_given_up.low is not None
        assert row.loss_given_up.high is not None
        assert row.loss_given_up.low <= row.loss_given_up.value <= row.loss_given_up.high
    widths = [row.loss_given_up.high - row.loss_given_up.low for row in rows]  # type: ignore[operator]
    assert widths[1] == 0
    assert widths[2] < widths[3] < widths[4]


def test_a_loss_that_resamples_may_not_reach_has_no_upper_end() -> None:
    _, _, _, quarter, eighth = of(CHINCHILLA, 1e23, jitter=0.3)
    assert eighth.equal_loss_flops is None
    assert quarter.equal_loss_flops is not None
    assert quarter.equal_loss_flops.low is None
    assert "of the resamples never reach" in (quarter.equal_loss_flops.unknown or "")
    assert quarter.break_even_tokens is not None
    assert quarter.break_even_tokens.unknown == quarter.equal_loss_flops.unknown


def test_sizes_that_share_a_rung_are_told_once() -> None:
    best = CHINCHILLA.best_params(1e23)
    rungs = [at(best * ratio, 1e23) for ratio in (1.0, 0.45)]
    found = tradeoff(resamples_of(CHINCHILLA), rungs[0], rungs)
    assert [row.ratio for row in found] == pytest.approx([1.0, 0.45])
    assert found[0].reason == "the planned run"


def test_the_best_size_of_the_frontier_is_where_nothing_is_given_up() -> None:
    flops = 3e21
    best = six_nd(1e6, 1e13).best(resamples_of(KLING).huber, flops)
    assert math.exp(best.log_params[0]) == pytest.approx(KLING.best_params(flops), rel=1e-3)
