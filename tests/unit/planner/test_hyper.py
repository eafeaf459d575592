import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.planner.hyper_sweeps import (
    BATCHES,
    RATES,
    bowl,
    demo,
    diverged,
    grid,
    kling,
    misfitting,
    run,
    steplaw,
    sweep_of,
)

from planner.fitting.grid import BATCH, LR
from planner.fitting.hyper import Edge, Group, groups
from planner.fitting.quadratic import NoQuadratic, Quadratic, fit_quadratic
from planner.reading.records import Run, Stopped

STEP = 2.0


def only(runs: list[Run], stopped: list[Stopped] | None = None) -> Group:
    (group,) = groups(sweep_of(runs, stopped or []))
    return group


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)


@settings(deadline=None, max_examples=60)
@given(between(RATES[0] * 1.5, RATES[-1] / 1.5))
def test_the_optimum_of_a_learning_rate_sweep_is_interpolated(lr_star: float) -> None:
    group = only(bowl(lr_star))
    assert (group.lr_edge, group.batch_edge) == (Edge.INTERIOR, Edge.DEGENERATE)
    assert group.lr == pytest.approx(lr_star, rel=1e-6)
    assert group.loss == pytest.approx(2, rel=1e-9)
    assert not group.loss_is_bound


@settings(deadline=None, max_examples=60)
@given(
    between(RATES[0] * STEP, RATES[-1] / STEP),
    between(BATCHES[0] * STEP, BATCHES[-1] / STEP),
    st.floats(-0.4, 0.4),
    st.floats(1e-3, 0.05),
)
def test_a_joint_optimum_inside_the_grid_is_found(
    lr_star: float, batch_star: float, tilt: float, steep: float
) -> None:
    group = only(grid(lr_star, batch_star, tilt, steep))
    assert group.edges == (Edge.INTERIOR, Edge.INTERIOR)
    assert group.optimum == pytest.approx((lr_star, batch_star), rel=1e-5)
    assert group.loss == pytest.approx(2, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([LR, BATCH]),
    st.booleans(),
    between(1.2, 20),
    st.floats(-0.4, 0.4),
    st.floats(1e-3, 0.05),
)
def test_a_joint_optimum_outside_is_censored_on_its_side(
    axis: int, above: bool, beyond: float, tilt: float, steep: float
) -> None:
    tried = (RATES, BATCHES)[axis]
    stars = [4e-3, 2e5]
    stars[axis] = tried[-1] * beyond if above else tried[0] / beyond
    group = only(grid(stars[0], stars[1], tilt, steep))
    assert group.edges[axis] is (Edge.UPPER if above else Edge.LOWER)
    assert group.optimum == (None, None)
    assert group.loss_is_bound
    assert group.loss == min(held.loss for held in group.runs)
    assert group.bounds[axis] == ((tried[-2], None) if above else (None, tried[1]))


def test_the_axis_along_which_the_grid_suffices_is_not_blamed() -> None:
    group = only(grid(4e-3, BATCHES[0] / 3, tilt=0.3, steep=2e-3))
    assert group.edges == (Edge.INTERIOR, Edge.LOWER)
    assert group.optimum == (None, None)
    assert "batch: the best lies at or below the smallest tried, 2.5e+04" in group.reason
    assert "no joint optimum where one axis has none" in group.reason


def test_a_coarse_grid_is_judged_by_the_best_ones_neighbours() -> None:
    rates, batches = (1e-3, 4e-3, 1.6e-2), (5e4, 2e5, 8e5)
    group = only(grid(5e-3, 1.6e5, steep=0.1, rates=rates, batches=batches))
    assert group.optimum == pytest.approx((5e-3, 1.6e5), rel=1e-6)


def test_runs_far_from_the_best_do_not_bend_the_optimum() -> None:
    runs = [
        replace(held, loss=held.loss * 1.2) if held.loss > 2 * 1.011 else held
        for held in grid(4.4e-3, 1.7e5, tilt=0.2)
    ]
    assert only(runs).optimum == pytest.approx((4.4e-3, 1.7e5), rel=1e-6)


def test_a_saddle_is_no_optimum() -> None:
    runs = [
        run(2 + 1e-3 * (i - 2) ** 2 - 1e-3 * (j - 2) ** 2, lr=lr, batch_tokens=batch)
        for i, lr in enumerate(RATES[:5])
        for j, batch in enumerate(BATCHES[:5])
    ]
    group = only(runs)
    assert group.edges == (Edge.DEGENERATE, Edge.LOWER)
    assert group.optimum == (None, None)
    assert "does not curve upwards" in group.reason


def test_a_cross_of_two_sweeps_does_not_tell_a_joint_optimum() -> None:
    full = grid(4e-3, 2e5, steep=1e-3)
    cross = [h for h in full if h.lr == RATES[3] or h.batch_tokens == BATCHES[3]]
    group = only(cross)
    assert group.edges == (Edge.DEGENERATE, Edge.DEGENERATE)
    assert "do not span learning rate and batch" in group.reason


def test_two_batches_leave_the_learning_rate_of_the_better_one() -> None:
    runs = bowl(3e-3, batch_tokens=1e5) + [
        replace(held, loss=held.loss + 0.1, batch_tokens=2e5) for held in bowl(6e-3)
    ]
    group = only(runs)
    assert group.edges == (Edge.INTERIOR, Edge.DEGENERATE)
    assert group.optimum == (pytest.approx(3e-3), None)
    assert "batch: 2 tried, an optimum needs 3" in group.reason


def test_a_batch_sweep_at_one_learning_rate_has_an_optimum_too() -> None:
    group = only([held for held in grid(RATES[2], 1.5e5) if held.lr == RATES[2]])
    assert group.edges == (Edge.DEGENERATE, Edge.INTERIOR)
    assert group.optimum == (None, pytest.approx(1.5e5))


@pytest.mark.parametrize(
    ("lr_star", "edge", "bounds"),
    [(1e-4, Edge.LOWER, (None, RATES[1])), (1.0, Edge.UPPER, (RATES[-2], None))],
)
def test_an_optimum_on_the_edge_bounds_the_rate_and_the_loss(
    lr_star: float, edge: Edge, bounds: tuple[float | None, float | None]
) -> None:
    group = only(bowl(lr_star))
    assert (group.lr_edge, group.lr, group.lr_bounds) == (edge, None, bounds)
    assert group.loss == min(held.loss for held in group.runs)
    assert group.loss_is_bound


def test_two_learning_rates_are_too_few() -> None:
    group = only(bowl(1e-3, RATES[:2]))
    assert group.lr_edge is Edge.DEGENERATE
    assert group.loss_is_bound
    assert "learning rate: 2 tried, an optimum needs 3" in group.reason


def test_without_learning_rates_a_groups_loss_is_the_mean_of_its_runs() -> None:
    group = only([run(2.0), run(2.3)])
    assert group.edges == (Edge.DEGENERATE, Edge.DEGENERATE)
    assert group.loss == pytest.approx(2.15)
    assert not group.loss_is_bound
    assert group.reason == "no learning rate in the table; no batch in the table"


def test_seeds_are_averaged_and_untold_repeats_count_by_their_best() -> None:
    seeds = bowl(3e-3, seed=0) + [replace(h, loss=h.loss + 0.02, seed=1) for h in bowl(3e-3)]
    assert only(seeds).loss == pytest.approx(2.01)
    repeats = bowl(3e-3) + [replace(held, loss=held.loss + 0.02) for held in bowl(3e-3)]
    assert only(repeats).loss == pytest.approx(2.0)


def test_the_next_rate_having_diverged_bounds_the_optimum() -> None:
    stopped = [diverged(lr=rate) for rate in (RATES[-1] * 2, RATES[-1] * 4)]
    group = only(bowl(1.0), stopped)
    assert (group.lr_edge, group.lr) == (Edge.UPPER, None)
    assert group.lr_bounds == (RATES[-2], RATES[-1] * 2)
    assert group.lr_unstable == RATES[-1] * 2
    assert "but 0.032 diverged" in group.reason


def test_divergence_counts_as_a_rate_that_was_tried() -> None:
    group = only(bowl(1.0, RATES[:2]), [diverged(lr=RATES[2])])
    assert group.lr_edge is Edge.UPPER
    lowest = only(bowl(1e-5, RATES[:2]), [diverged(lr=RATES[2])])
    assert lowest.lr_edge is Edge.LOWER


def test_divergence_below_the_optimum_is_no_bound() -> None:
    assert only(bowl(1.0), [diverged(lr=RATES[0] / 2)]).lr_unstable is None


def test_divergence_at_a_smaller_batch_is_no_bound() -> None:
    runs = grid(4e-3, 2e5)
    assert only(runs, [diverged(lr=0.1, batch_tokens=BATCHES[0])]).lr_unstable is None
    assert only(runs, [diverged(lr=0.1, batch_tokens=BATCHES[-1])]).lr_unstable == 0.1


def test_a_rate_at_which_any_seed_diverged_is_unstable() -> None:
    runs = [run(loss, lr=lr, seed=0) for lr, loss in ((1e-3, 2.1), (2e-3, 2.0), (4e-3, 1.9))]
    group = only(runs, [diverged(lr=4e-3)])
    assert group.lr_edge is Edge.UPPER
    assert (group.loss, group.lr_unstable) == (2.0, 4e-3)
    by_loss = only([*runs, run(9.0, lr=4e-3, seed=1)])
    assert (by_loss.loss, by_loss.lr_unstable) == (2.0, 4e-3)


def test_a_loss_far_above_the_best_counts_as_diverged_only_where_settings_vary() -> None:
    group = only([*bowl(4e-3), run(3.2, lr=0.1)])
    assert (group.lr, group.lr_unstable) == (pytest.approx(4e-3), 0.1)
    assert only([run(1.0, lr=1e-3, seed=0), run(2.0, lr=1e-3, seed=1)]).loss == 1.5


def test_where_everything_diverged_the_losses_there_are_still_bound() -> None:
    group = only([run(2.0, lr=1e-3)], [diverged(lr=1e-3)])
    assert group.loss == 2.0


def test_a_failed_run_says_nothing() -> None:
    stopped = [replace(diverged(lr=RATES[-1] * 2), status="failed")]
    assert only(bowl(1.0), stopped).lr_unstable is None


def test_a_diverged_run_that_tells_only_the_tokens_it_reached_joins_its_size() -> None:
    stopped = [diverged(lr=0.1, tokens=3e8), diverged(lr=0.2, tokens=None)]
    assert [p.lr for p in only(bowl(1e-3), stopped).grid.points if p.loss is None] == [0.1, 0.2]
    two = bowl(1e-3) + bowl(1e-3, tokens=2e9)
    found = groups(sweep_of(two, stopped))
    assert all(point.loss is not None for group in found for point in group.grid.points)


def test_runs_without_a_setting_that_others_tell_are_left_out_and_named() -> None:
    group = only([*bowl(4e-3), run(1.0)])
    assert group.loss == pytest.approx(2)
    assert "1 runs without a learning rate or batch left out" in group.reason


def test_groups_are_by_size_and_tokens_smallest_first() -> None:
    runs = [
        held
        for n in (3e8, 1e8)
        for d in (4e9, 1e9)
        for held in bowl(4e-3, params=n, tokens=d, width=64)
    ]
    found = groups(sweep_of(runs))
    assert [(g.params, g.tokens) for g in found] == [
        (1e8, 1e9), (1e8, 4e9), (3e8, 1e9), (3e8, 4e9)
    ]  # fmt: skip
    assert {g.width for g in found} == {64}


def test_runs_of_a_budget_are_one_group_though_their_tokens_are_rounded() -> None:
    tokens = [1e9 * (1 + 1e-3 * i) for i in range(len(RATES))]
    runs = [
        replace(held, tokens=t, batch_tokens=t / 1000, budget_flops=6e17)
        for held, t in zip(bowl(4e-3), tokens, strict=True)
    ]
    group = only(runs)
    assert group.budget_flops == 6e17
    assert group.tokens == pytest.approx(np.exp(np.mean(np.log(tokens))))
    assert group.edges == (Edge.INTERIOR, Edge.DEGENERATE)
    bare = [replace(held, budget_flops=None) for held in runs]
    assert len(groups(sweep_of(bare))) == len(RATES)


def test_the_variance_of_an_optimum_is_that_of_repeated_sweeps() -> None:
    rng = np.random.default_rng(0)
    noise = 5e-4
    clean = grid(4.3e-3, 1.5e5, tilt=0.3, steep=0.004)
    found = [
        only([replace(h, loss=h.loss * (1 + noise * rng.standard_normal())) for h in clean])
        for _ in range(150)
    ]
    for axis in (LR, BATCH):
        stars = [math.log(g.optimum[axis] or math.nan) for g in found]
        told = [g.variance(axis) or math.nan for g in found]
        assert np.std(stars) == pytest.approx(np.mean(told) ** 0.5, rel=0.2)
    losses = [g.loss / 2 for g in found if isinstance(g.curve, Quadratic)]
    units = [g.curve.unit_se_y for g in found if isinstance(g.curve, Quadratic)]
    assert np.std(losses) == pytest.approx(noise * np.mean(units), rel=0.2)


def test_the_covariance_of_a_vertex_off_centre_is_that_of_repeated_fits() -> None:
    rng = np.random.default_rng(5)
    points = grid(9e-3, 5e4, tilt=0.3)
    lr, batch = [h.lr or 0 for h in points], [h.batch_tokens or 0 for h in points]
    clean, noise = np.array([h.loss for h in points]), 3e-4
    fits = [fit_quadratic(lr, batch, clean + noise * rng.standard_normal(36)) for _ in range(800)]
    seen = np.cov(np.array([f.vertex for f in fits if isinstance(f, Quadratic)]).T)
    exact = fit_quadratic(lr, batch, list(clean))
    assert isinstance(exact, Quadratic)
    told = np.array(exact.unit_covariance) * noise**2
    assert seen == pytest.approx(told, rel=0.15, abs=0.1 * told.max())


def test_noise_is_pooled_over_groups_and_else_as_stated() -> None:
    rng = np.random.default_rng(1)
    runs = [
        replace(h, params=n, loss=h.loss * (1 + 1e-3 * rng.standard_normal()))
        for n in np.geomspace(1e7, 1e9, 20)
        for h in grid(4e-3, 2e5, steep=0.002)
    ]
    assert groups(sweep_of(runs))[0].noise == pytest.approx(1e-3, rel=0.1)
    three = bowl(2e-3, RATES[1:4])
    assert groups(sweep_of(three))[0].noise is None
    assert groups(sweep_of(three))[0].variance(LR) is None
    stated = groups(sweep_of(three, noise=2e-3))[0]
    assert stated.noise == 2e-3
    assert stated.variance(LR) == pytest.approx(
        (2e-3 / (0.02 * math.log(2) * math.sqrt(2))) ** 2, rel=0.1
    )


def test_the_order_of_runs_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    runs = [replace(h, loss=h.loss + 1e-3 * rng.random()) for h in grid(4e-3, 2e5)] * 2
    runs = [replace(h, seed=i % 3) for i, h in enumerate(runs)]
    shuffled = random.Random(3).sample(runs, len(runs))
    assert only(shuffled).curve == only(runs).curve
    assert only(shuffled).loss == only(runs).loss


def test_a_quadratic_reads_back_its_own_surface() -> None:
    curve = only(grid(4e-3, 2e5, tilt=0.4)).curve
    assert isinstance(curve, Quadratic)
    assert curve.at(8e-3, 1e5) == pytest.approx(2 * (1 + 0.01 * math.log(2) ** 2 * 2.8))
    # Along lr the batch follows: u² + v² - 0.8 u v is least at v = 0.4 u, 0.84 u².
    assert curve.curvature(LR) == pytest.approx(2 * 2 * 0.01 * 0.84)


def test_six_points_carry_no_quadratic() -> None:
    assert isinstance(fit_quadratic([1, 2, 4] * 2, [1, 1, 2, 2, 4, 4], [1.0] * 6), NoQuadratic)


def test_misfitting_lies_mostly_on_the_edge(shared_data: Path) -> None:
    found = [g for g in groups(misfitting(shared_data)) if g.grid.tried(LR) >= 3]
    edges = Counter(group.lr_edge for group in found)
    assert edges == {Edge.UPPER: 40, Edge.LOWER: 2, Edge.INTERIOR: 36}


def test_kling_is_found_at_one_length_and_refused_at_the_other(shared_data: Path) -> None:
    short, long = groups(kling(shared_data))
    assert long.edges == (Edge.INTERIOR, Edge.INTERIOR)
    assert long.lr == pytest.approx(2.05e-4, rel=0.01)
    assert long.batch_tokens == pytest.approx(1.37e5, rel=0.01)
    assert short.batch_edge is Edge.LOWER
    assert short.optimum == (None, None)
    assert "at or below the smallest tried, 8.2e+04" in short.reason


def test_diverged_runs_do_not_move_the_fit(shared_data: Path) -> None:
    sweep = steplaw(shared_data)
    found = groups(sweep)
    blown = [(g.params, p) for g in found for p in g.grid.points if p.loss is None]
    assert len(blown) == 181
    assert {g.edges for g in found} == {(Edge.INTERIOR, Edge.INTERIOR)}
    best = {(g.params, g.tokens): g.grid.best_loss for g in found}
    worse = [
        replace(h, loss=1e6) if h.loss > 1.5 * best[h.params, h.tokens] else h for h in sweep.runs
    ]
    assert [g.optimum for g in groups(sweep_of(worse))] == [g.optimum for g in found]


def test_the_demo_sweep_is_judged_group_by_group() -> None:
    found = groups(demo())
    assert Counter(g.lr_edge for g in found) == {
        Edge.INTERIOR: 18,
        Edge.UPPER: 5,
        Edge.DEGENERATE: 1,
    }
    (bounded,) = [g for g in found if g.lr_unstable is not None]
    assert (bounded.width, bounded.budget_flops, bounded.lr_unstable) == (32, 3e11, 0.032)
