"""The next runs after a sweep, on Kling's law."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.planner.kling import FIVE, TARGET, kling_runs, made_points

from planner.designing.information import (
    aim,
    centred_surfaces,
    gradients,
    half_width,
    information,
    inverse,
    unit_sd,
)
from planner.designing.next_runs import (
    Candidates,
    NextRuns,
    Per,
    candidate_runs,
    next_runs,
    updated,
)
from planner.designing.prior import KLING
from planner.fitting.frontier import six_nd
from planner.fitting.surface import Points, Surfaces

FRONTIER = six_nd(1e4, 1e14)


@pytest.fixture(scope="module")
def swept() -> tuple[Surfaces, Points]:
    params, tokens, flops = kling_runs(FIVE, 4, 5)
    surfaces = centred_surfaces(KLING.surface, 1e8, 1e10)
    loss = np.exp(surfaces.log_loss(params, tokens)[0])
    return surfaces, made_points(params, tokens, flops, loss)


def choose(
    swept: tuple[Surfaces, Points], candidates: Candidates, count: int, per: Per
) -> NextRuns:
    surfaces, tried = swept
    return next_runs(
        surfaces, FRONTIER, tried.params, tried.tokens, 3e-4, TARGET, candidates, count, per
    )


def half_after(swept: tuple[Surfaces, Points], params: np.ndarray, tokens: np.ndarray) -> float:
    """Directly, without any update."""
    surfaces, tried = swept
    n, d = np.append(tried.params, params), np.append(tried.tokens, tokens)
    told = information(gradients(surfaces, n, d), np.ones(len(n)))
    goal = aim(surfaces, FRONTIER, TARGET)
    return half_width(len(n), 3e-4 * float(unit_sd(inverse(told), goal.of_params)))


@pytest.mark.parametrize("per", list(Per))
def test_next_runs_shrink_the_interval_each_time(swept: tuple[Surfaces, Points], per: Per) -> None:
    candidates = candidate_runs(*swept[:1], FRONTIER, swept[1], 2e19)
    found = choose(swept, candidates, 8, per)
    halves = [found.half_before, *(run.half_after for run in found.runs)]
    assert halves == sorted(halves, reverse=True)
    assert len(set(halves)) == 9
    assert [run.half_before for run in found.runs] == halves[:-1]
    params = np.array([run.params for run in found.runs])
    tokens = np.array([run.tokens for run in found.runs])
    assert found.half_after == pytest.approx(half_after(swept, params, tokens), rel=1e-6)
    assert len(set(zip(params, tokens, strict=True))) == 8


def test_next_runs_beat_runs_chosen_at_random(swept: tuple[Surfaces, Points]) -> None:
    candidates = candidate_runs(swept[0], FRONTIER, swept[1], 2e19)
    by_run, by_flops = (choose(swept, candidates, 6, per) for per in (Per.RUN, Per.FLOPS))
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(candidates.params), 6, replace=False) for _ in range(200)]
    halves = [half_after(swept, candidates.params[i], candidates.tokens[i]) for i in draws]
    assert by_run.half_after < min(halves)
    # By FLOPs: against as many random runs as the same cost pays for.
    cost = sum(run.flops for run in by_flops.runs)
    spent = []
    for order in (rng.permutation(len(candidates.params)) for _ in range(200)):
        paid = order[np.cumsum(candidates.flops[order]) <= cost]
        spent.append(half_after(swept, candidates.params[paid], candidates.tokens[paid]))
    assert by_flops.half_after < np.percentile(spent, 5)


def test_each_next_run_is_the_best_there_is(swept: tuple[Surfaces, Points]) -> None:
    """Against every candidate, the interval of each computed anew."""
    surfaces, tried = swept
    few = (surfaces, tried.only(np.isin(np.arange(len(tried)), (3, 10, 11, 18, 19, 21))))
    candidates = candidate_runs(surfaces, FRONTIER, few[1], 2e19)
    free = list(zip(candidates.params, candidates.tokens, strict=True))
    taken: list[tuple[float, float]] = []
    for run in choose(few, candidates, 4, Per.RUN).runs:
        halves = [half_after(few, *map(np.array, zip(*taken, pair, strict=True))) for pair in free]
        assert run.half_after == pytest.approx(min(halves), rel=1e-6)
        taken.append((run.params, run.tokens))
        free.remove(taken[-1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_update_is_the_inverse_with_one_more_row(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((12, 5))
    before = inverse(information(rows[:-1], np.ones(11)))
    after = inverse(information(rows, np.ones(12)))
    np.testing.assert_allclose(updated(before, rows[-1]), after, rtol=1e-6, atol=1e-9)


def test_candidates_stay_within_the_cap_and_what_was_tried(swept: tuple[Surfaces, Points]) -> None:
    _, tried = swept
    found = candidate_runs(swept[0], FRONTIER, tried, 2e19)
    assert found.flops.max() <= 2e19 * (1 + 1e-9)
    assert found.flops.min() >= 3e17 * (1 - 1e-9)
    np.testing.assert_allclose(6 * found.params * found.tokens, found.flops)
    assert found.params.min() >= tried.params.min() * 0.999
    assert found.tokens.min() >= tried.tokens.min() * 0.999
    best = np.array([KLING.surface.best_params(c) for c in found.flops])
    assert np.abs(np.log(found.params / best)).max() <= math.log(8) + 1e-3
