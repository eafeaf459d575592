"""The design of a sweep, on laws whose answers are known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.planner.kling import FIVE, SIX, TARGET, kling_runs, made_points, problem

from planner.designing.advice import Advice, Wish, advise
from planner.designing.comparison import at_fixed_ratio, compare
from planner.designing.design import (
    Catalogue,
    Design,
    Shape,
    Tuning,
    assess,
    catalogue,
    designed,
    lay_out,
    offer,
    shapes,
)
from planner.designing.design_runs import base_of, commands, sweep_name
from planner.designing.information import (
    aim,
    centred_surfaces,
    gradients,
    half_width,
    information,
    inverse,
    tokens_follow_params,
    unit_sd,
)
from planner.designing.prior import KLING
from planner.designing.simulation import simulate
from planner.fitting.descent import LOG_HUBER, descend
from planner.fitting.estimators import centred, fit_huber
from planner.fitting.frontier import Frontier, six_nd
from planner.fitting.surface import Surfaces
from planner.planning.distrust import MAX_EXTRAPOLATION

ROOT = Path(__file__).parents[3]
SPEC = ROOT / "sweeps/demo/sweep.toml"


def kling_design(budgets: tuple[float, ...], width: float, sizes: int, noise: float) -> Design:
    params, tokens, flops = kling_runs(budgets, width, sizes)
    shape = Shape(len(budgets), math.log10(budgets[-1] / budgets[0]), sizes, width)
    return assess(problem(noise), shape, flops, params, tokens, np.ones(len(params)))


@pytest.mark.parametrize(
    ("budgets", "width", "sizes", "noise_nats", "factor"),
    [
        (FIVE, 4, 9, 3e-4, 1.19),
        (FIVE, 4, 9, 1e-3, 1.79),
        (FIVE, 8, 9, 3e-4, 1.12),
        (FIVE, 4, 5, 3e-4, 1.25),
        (SIX, 4, 9, 3e-4, 1.10),
    ],
)
def test_the_delta_method_gives_the_intervals_that_simulation_found(
    budgets: tuple[float, ...], width: float, sizes: int, noise_nats: float, factor: float
) -> None:
    """Widths simulated apart from this code, for noise in nats rather than relative."""
    params, tokens, _ = kling_runs(budgets, width, sizes)
    asked = problem()
    losses = np.exp(asked.surfaces.log_loss(params, tokens)[0])
    told = information(gradients(asked.surfaces, params, tokens), losses**2)
    sd = noise_nats * float(unit_sd(inverse(told), asked.aim.of_params))
    assert half_width(len(params), sd) == pytest.approx(math.log(factor), rel=0.15)


@pytest.mark.parametrize("noise", [3e-4, 1e-3])
def test_simulated_sweeps_agree_with_the_prediction(noise: float) -> None:
    made = kling_design(FIVE, 4, 9, noise)
    seen = simulate(problem(noise), made, sweeps=200)
    assert seen.half_params == pytest.approx(made.half_params, rel=0.25)
    assert seen.half_loss == pytest.approx(made.half_loss, rel=0.25)
    assert seen.converged > 0.95


def test_a_simulated_fit_is_the_one_that_a_real_sweep_gets() -> None:
    """From the law itself the descent ends where the ranked starts of a fit end."""
    params, tokens, flops = kling_runs(FIVE, 4, 9)
    asked = problem()
    noise = 3e-4 * np.random.default_rng(7).standard_normal(len(params))
    loss = np.exp(asked.surfaces.log_loss(params, tokens)[0] + noise)
    points = made_points(params, tokens, flops, loss)
    fitted = fit_huber(points)
    start = centred_surfaces(KLING.surface, *map(math.exp, points.centre))
    ones = np.ones((1, len(params)))
    ended = descend(LOG_HUBER, start.theta, centred(points), ones, 100, 1e-9)
    reached = Surfaces(ended.theta, points.centre).log_best_params(TARGET)
    assert reached[0] == pytest.approx(fitted.surfaces.log_best_params(TARGET)[0], abs=2e-3)


def bent(params: np.ndarray) -> np.ndarray:
    """FLOPs a token that are no power of N, as attention makes them."""
    return 6 * params + 3e5 * params**0.5


@pytest.mark.parametrize(
    "frontier", [six_nd(1e6, 1e15), Frontier(bent, 1e6, 1e15, "bent")], ids=["6nd", "bent"]
)
def test_the_gradients_of_the_target_are_those_of_its_minimum(frontier: Frontier) -> None:
    surfaces = centred_surfaces(KLING.surface, 1e9, 1e11)
    wanted = aim(surfaces, frontier, TARGET)
    step = 1e-3
    for at in range(5):
        moved = np.repeat(surfaces.theta, 2, axis=0)
        moved[:, at] += (-step, step)
        best = frontier.best(Surfaces(moved, surfaces.centre), TARGET)
        for values, gradient in (
            (best.log_params, wanted.of_params),
            (best.log_loss, wanted.of_loss),
        ):
            seen = float(values[1] - values[0]) / (2 * step)
            assert seen == pytest.approx(gradient[at], rel=0.02, abs=0.01)


@pytest.fixture(scope="module")
def offered() -> Catalogue:
    return catalogue(problem(), shapes((3, 6), 2.5))


@settings(max_examples=15, deadline=None)
@given(st.floats(18, 23), st.floats(0, 2))
def test_more_cost_never_gives_a_worse_design(offered: Catalogue, cost: float, more: float) -> None:
    """Worse: a target further beyond what may be trusted, or a wider interval (but for 5%)."""
    less, greater = (offered.best(10**c, 1)[0] for c in (cost, cost + more))
    assert greater.cost_flops <= 10 ** (cost + more)
    steps = [
        max(0, math.ceil(2 * math.log10(TARGET / 300 / d.largest_flops) - 1e-6))
        for d in (less, greater)
    ]
    assert steps[1] <= steps[0]
    if steps[0] == steps[1]:
        assert greater.half_params <= less.half_params * 1.051


def test_the_best_design_is_the_best_of_all_that_cost_no_more(offered: Catalogue) -> None:
    cost = 2e21
    best = offered.best(cost, 1)[0]
    assert best.largest_flops >= TARGET / MAX_EXTRAPOLATION
    for each in offered.offers:
        grid = each.layouts.budgets_flops[:, -1]
        payable = (each.cost <= cost) & (grid >= TARGET / MAX_EXTRAPOLATION)
        assert (each.half[payable] >= best.half_params / 1.051).all()


def test_a_designs_runs_cost_their_budgets_and_lie_about_the_best_sizes(offered: Catalogue) -> None:
    made = offered.best(2e21, 1)[0]
    np.testing.assert_allclose(6 * made.params * made.tokens, made.budgets_flops)
    assert made.cost_flops == pytest.approx((made.runs * made.budgets_flops).sum())
    best = np.array([KLING.surface.best_params(c) for c in made.budgets_flops])
    assert np.abs(np.log(made.params / best)).max() == pytest.approx(
        math.log(made.shape.width), rel=1e-2
    )
    budgets = np.unique(made.budgets_flops)
    assert math.log10(budgets[-1] / budgets[0]) == pytest.approx(made.shape.decades)


def test_under_mup_only_the_two_smallest_sizes_carry_the_grid() -> None:
    shape, scale = Shape(3, 1.0, 5, 4.0), np.array([1e20])
    full = lay_out(problem(tuning=Tuning(4, 3, False)), shape, scale)
    spared = lay_out(problem(tuning=Tuning(4, 3, True)), shape, scale)
    assert (full.runs == 12).all()
    assert spared.runs[0, 0].tolist() == [12, 12, 1, 1, 1]
    assert spared.cost[0] / full.cost[0] == pytest.approx(27 / 60)


def test_at_equal_cost_a_wider_range_beats_more_points_on_klings_law(offered: Catalogue) -> None:
    asked = offered.problem
    found = compare(asked, offered.best(2e21, 1)[0])
    assert found.plain is not None
    assert found.wider is not None
    assert found.denser is not None
    for other in (found.wider, found.denser, found.fixed_ratio):
        assert other.cost_flops == pytest.approx(found.plain.cost_flops, rel=1e-6)
    assert found.wider.shape.decades == found.plain.shape.decades + 1
    assert len(found.denser.params) > 2 * len(found.plain.params) == 2 * len(found.wider.params)
    assert found.wider.half_params < found.denser.half_params < found.plain.half_params
    assert found.width_wins


def test_fixed_tokens_per_parameter_are_flagged_as_collinear() -> None:
    asked = problem()
    spread = kling_design(FIVE, 4, 9, 3e-4)
    fixed = at_fixed_ratio(asked, spread)
    assert np.ptp(fixed.tokens / fixed.params) < 1e-6 * fixed.tokens[0] / fixed.params[0]
    assert tokens_follow_params(fixed.params, fixed.tokens)
    assert not tokens_follow_params(spread.params, spread.tokens)
    assert spread.condition < 300 < 1e4 < fixed.condition
    assert fixed.half_params > 100 * spread.half_params


def test_the_condition_falls_as_the_exponents_part() -> None:
    """At fixed tokens per parameter: as (alpha - beta)^-2 for the amplitudes (arXiv 2605.08541).

    With both exponents unknown as well it is another power worse.
    """

    def fixed(gap: float) -> float:
        law = replace(
            KLING, surface=replace(KLING.surface, alpha=0.3 + gap / 2, beta=0.3 - gap / 2)
        )
        middle = law.surface.best_params(1e18)
        params = np.geomspace(middle / 10, middle * 10, 30)
        made = problem(prior=law, frontier=six_nd(1e3, 1e18))
        spread = np.ones(30)
        return assess(made, Shape(1, 1, 1, 1), spread, params, 100 * params, spread).condition

    assert fixed(0.02) / fixed(0.08) == pytest.approx(4**3, rel=0.15)


def test_a_ladder_gives_its_own_sizes_at_their_own_cost() -> None:
    base = base_of(SPEC)
    rungs = np.array([float(size.block_params) for size in base.ladder])
    asked = problem(frontier=base.frontier(), rungs=rungs, target_flops=1e16)
    found = offer(asked, Shape(4, 1.5, 7, 4.0), np.array([1e14]))
    made = designed(asked, found.layouts, 0)
    assert set(made.params) <= set(rungs)
    assert len(set(zip(made.budgets_flops, made.params, strict=True))) == len(made.params)
    exact = {float(size.block_params): size.flops_per_token for size in base.ladder}
    costs = [exact[n] * d for n, d in zip(made.params, made.tokens, strict=True)]
    np.testing.assert_allclose(costs, made.budgets_flops, rtol=1e-6)


def platform_advice(mup: bool) -> Advice:
    tuning = Tuning(3, 1, mup)
    wish = Wish(1e15, 1e16, 1.2, 1e-3, (3, 4), 1.5, 1e6, tuning, 20, 0)
    return advise(wish, KLING, base_of(SPEC))


@pytest.mark.parametrize("mup", [False, True])
def test_the_commands_run_every_run_of_the_design_once(mup: bool) -> None:
    base, advice = base_of(SPEC), platform_advice(mup)
    lines = commands(advice.settings, base, sweep_name(SPEC))
    seen = []
    for line in lines:
        words = line.split()
        assert words[:3] == ["jobs/sweep.py", "--name", "demo"]
        widths, budget, lrs = (
            words[words.index(f) + 1] for f in ("--widths", "--budgets", "--lrs")
        )
        seen += [(w, budget, lr) for w in widths.split(",") for lr in lrs.split(",")]
    assert len(seen) == len(set(seen)) == advice.chosen.runs.sum()
    sizes = {str(size.model.width): size.block_params for size in base.ladder}
    wanted = {(round(s.params), f"{s.budget_flops:.4g}") for s in advice.settings}
    assert {(sizes[width], budget) for width, budget, _ in seen} == wanted
    assert sorted({float(lr) for _, _, lr in seen}) == [0.004, 0.008, 0.016]


def test_advice_states_precision_cost_and_what_it_would_take() -> None:
    tuning = Tuning(4, 1, False)
    wish = Wish(2e21, TARGET, 1.2, 3e-4, (3, 4), 2.5, 1e6, tuning, 60, 0)
    reached = advise(wish, KLING, None)
    assert reached.reached
    assert reached.needed_flops is not None
    assert reached.needed_flops <= wish.cost_flops
    codes = {finding.code for finding in reached.findings}
    assert {"wider_beats_more", "fixed_ratio_collinear"} <= codes
    short = advise(replace(wish, cost_flops=reached.needed_flops / 3), KLING, None)
    assert not short.reached
    assert short.needed_flops == pytest.approx(reached.needed_flops, rel=0.1)
    assert "beyond_extrapolation" in {finding.code for finding in short.findings}
    paid = advise(replace(wish, cost_flops=short.needed_flops), KLING, None)
    assert paid.reached
