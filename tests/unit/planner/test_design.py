"""Design before a sweep, and next runs after one, on laws whose answers are known."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.advice import Advice, Wish, advise
from planner.cli import main
from planner.comparison import at_fixed_ratio, compare
from planner.descent import LOG_HUBER, descend
from planner.design import (
    Catalogue,
    Design,
    Problem,
    Shape,
    Tuning,
    assess,
    catalogue,
    designed,
    lay_out,
    offer,
    shapes,
)
from planner.design_runs import base_of, commands, sweep_name
from planner.distrust import MAX_EXTRAPOLATION
from planner.errors import InputError
from planner.estimators import centred, fit_huber
from planner.frontier import Frontier, six_nd
from planner.information import (
    aim,
    centred_surfaces,
    gradients,
    half_width,
    information,
    inverse,
    tokens_follow_params,
    unit_sd,
)
from planner.next_runs import Candidates, NextRuns, Per, candidate_runs, next_runs, updated
from planner.prior import CHINCHILLA, KLING, read_prior
from planner.simulation import simulate
from planner.surface import Points, Surface, Surfaces

ROOT = Path(__file__).parents[3]
SPEC = ROOT / "sweeps/demo/sweep.toml"
FIVE, SIX = (3e17, 6e17, 1e18, 3e18, 6e18), (1e17, 3e17, 1e18, 3e18, 1e19, 3e19)
TARGET = 1e22

Planner = Callable[..., "subprocess.CompletedProcess[str]"]


FULL_GRID = Tuning(4, 1, False)


def problem(noise: float = 3e-4, tuning: Tuning = FULL_GRID, **other: Any) -> Problem:
    wide = six_nd(1e6, 1e15)
    known = {"prior": KLING, "frontier": wide, "rungs": None, "target_flops": TARGET}
    return Problem(**{**known, **other}, noise=noise, tuning=tuning)


def kling_runs(
    budgets: tuple[float, ...], width: float, sizes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spread = np.geomspace(1 / width, width, sizes)
    params = np.concatenate([KLING.surface.best_params(c) * spread for c in budgets])
    flops = np.repeat(budgets, sizes)
    return params, flops / 6 / params, flops


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


def made_points(
    params: np.ndarray, tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray
) -> Points:
    return Points(
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        bound=np.zeros(len(loss), dtype=bool),
        cluster=np.arange(len(loss)),
        names=tuple(map(str, range(len(loss)))),
    )


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


def test_learning_rates_and_batches_are_those_of_klings_law() -> None:
    """Figure 4 of arXiv 2411.17470: 1.07B parameters, 10B tokens: 1.78e-4 and 1.42e5."""
    assert KLING.lr is not None
    assert KLING.batch_tokens is not None
    assert KLING.lr.value(1.07e9, 1e10) == pytest.approx(1.78e-4, rel=0.01)
    assert KLING.batch_tokens.value(1.07e9, 1e10) == pytest.approx(1.42e5, rel=0.01)
    assert KLING.surface.loss(1.07e9, 1e10) == pytest.approx(0.51268, abs=1e-5)
    assert CHINCHILLA.surface.a == pytest.approx(0.5139, abs=1e-4)


@pytest.fixture(scope="module")
def swept() -> tuple[Surfaces, Points]:
    params, tokens, flops = kling_runs(FIVE, 4, 5)
    surfaces = centred_surfaces(KLING.surface, 1e8, 1e10)
    loss = np.exp(surfaces.log_loss(params, tokens)[0])
    return surfaces, made_points(params, tokens, flops, loss)


FRONTIER = six_nd(1e4, 1e14)


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


# The command line.


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Run the command in this process."""

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        command = ["planner", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as done:
            main()
        seen = capsys.readouterr()
        assert isinstance(done.value.code, int)
        return subprocess.CompletedProcess(command, done.value.code, seen.out, seen.err)

    return run


def one_object(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_json_before_a_sweep_is_one_object_and_the_same_each_time(planner: Planner) -> None:
    asked = ["design", "--cost", "1e21", "--target", "1e22", "--budgets", "3..4", "--batches", "2"]
    asked += ["--sweeps", "60"]
    first, second = planner(*asked, "--json"), planner(*asked, "--json")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    found = one_object(first.stdout)
    assert (found["schema_version"], found["kind"]) == (1, "before")
    assert sum(run["flops"] for run in found["runs"]) == pytest.approx(
        found["design"]["cost_flops"]
    )
    assert found["design"]["cost_flops"] <= 1e21
    for run in found["runs"]:
        assert run["runs"] == len(run["lrs"]) * len(run["batch_tokens"]) == 8
        centre = math.sqrt(run["lrs"][1] * run["lrs"][2])
        assert KLING.lr is not None
        assert centre == pytest.approx(KLING.lr.value(run["params"], run["tokens"]))
    simulated = found["design"]["simulated"]["params_factor"]
    assert math.log(simulated) == pytest.approx(
        math.log(found["design"]["predicted"]["params_factor"]), rel=0.25
    )
    assert "Design for 1e22 FLOPs" in first.stderr


def test_the_least_cost_that_a_refusal_names_is_enough(planner: Planner) -> None:
    asked = ("design", "--target", "1e20", "--budgets", "3", "--decades", "1", "--sweeps", "20")
    refused = planner(*asked, "--cost", "1e10")
    assert refused.returncode == 2
    assert refused.stdout == ""
    least = float(refused.stderr.split("the least is ")[1].split(". Raise")[0])
    assert planner(*asked, "--cost", f"{least * 0.99}").returncode == 2
    assert planner(*asked, "--cost", f"{least * 1.01}").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cost", "1e20"], "--target missing"),
        ([], "--cost and --target missing"),
        (["--cost", "-1", "--target", "1e22"], "--cost -1: give a finite number above 0"),
        (["--cost", "nan", "--target", "1e22"], "--cost nan: give a finite number above 0"),
        (["--cost", "1e20", "--target", "1e22", "--noise", "0"], "--noise 0: give a finite"),
        (["--cost", "1e20", "--target", "1e22", "--precision", "1"], "--precision 1: a factor"),
        (["--cost", "1e20", "--target", "1e22", "--budgets", "9..4"], "counts go from 3 to 12"),
        (["--cost", "1e20", "--target", "1e22", "--budgets", "five"], "expected a count such as 5"),
        (["--cost", "1e20", "--target", "1e22", "--lrs", "0"], "0 is not in the range"),
        (["--cost", "1e20", "--target", "1e14"], "no design fits below --target"),
        (
            ["--cost", "1e20", "--target", "1e22", "--next", "3"],
            "--next: for a sweep that is there",
        ),
        (
            ["--cost", "1e20", "--target", "1e22", "--prior", "gpt"],
            "--prior gpt: neither kling nor",
        ),
        (["--cost", "1", "--target", "2", "--spec", str(SPEC), "--batches", "3"], "--batches 3:"),
        (["sweeps/demo"], "--next missing"),
        (["sweeps/demo", "--next", "0"], "0 is not in the range"),
        (["sweeps/demo", "--next", "2", "--cost", "1e20"], "--cost: for a design before a sweep"),
    ],
)
def test_bad_input_before_anything_is_computed(
    planner: Planner, arguments: list[str], told: str
) -> None:
    done = planner("design", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_fitted_law_is_a_prior(tmp_path: Path) -> None:
    laws = {
        "surface": {
            "huber": {"E": 0.5, "A": 10.0, "B": 20.0, "alpha": 0.3, "beta": 0.35, "a": 0.5}
        },
        "hyper": {
            "laws": {
                "lr": {"coefficient": 2.0, "params_exponent": -0.3, "tokens_exponent": 0.1},
                "batch_tokens": {"not_fitted": "one batch"},
            }
        },
    }
    prior = read_prior(str(write(tmp_path / "laws.json", laws)))
    assert prior.surface == Surface(0.5, 10.0, 20.0, 0.3, 0.35)
    assert prior.lr is not None
    assert prior.lr.value(1e6, 1e9) == pytest.approx(2 * 1e6**-0.3 * 1e9**0.1)
    assert prior.batch_tokens is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"surface": {"huber": {"not_fitted": "too few"}}}, "has E = None"),
        ({"surface": {}}, "no fitted surface"),
        ({"groups": {"a": {}}}, "of one group (this one holds several)"),
        ([], "no fitted surface"),
        ({"surface": {"huber": {"E": 0, "A": 1, "B": 1, "alpha": 1, "beta": 1}}}, "E = 0"),
    ],
)
def test_a_prior_that_is_none_says_what_is_missing(
    tmp_path: Path, content: object, told: str
) -> None:
    path = write(tmp_path / "laws.json", content)
    with pytest.raises(InputError) as refused:
        read_prior(str(path))
    assert told in str(refused.value)
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(InputError, match="not JSON"):
        read_prior(str(tmp_path / "text"))


LRS = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)


def kling_sweep(path: Path, budgets: tuple[float, ...] = FIVE, noise: float = 3e-4) -> Path:
    """JSONL of Kling's law, with a bowl in ln lr; the smallest (N, D) has its best at an edge."""
    assert KLING.lr is not None
    params, tokens, flops = kling_runs(budgets, 4, 5)
    rng = np.random.default_rng(1)
    rows = []
    for index, (n, d, c) in enumerate(zip(params, tokens, flops, strict=True)):
        best = 4 * LRS[-1] if index == 0 else KLING.lr.value(n, d)
        loss = KLING.surface.loss(n, d) * math.exp(noise * rng.standard_normal())
        for lr in LRS:
            bowl = 1 + 2e-3 * math.log(lr / best) ** 2
            row = {"params": n, "tokens": d, "flops": c, "lr": lr, "loss": loss * bowl}
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_after_a_sweep_edges_come_first_and_runs_follow_the_laws(
    planner: Planner, tmp_path: Path
) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl")
    done = planner("design", table, "--next", "4", "--target", "1e21", "--json")
    assert done.returncode == 0, done.stderr
    found = one_object(done.stdout)
    assert (found["schema_version"], found["kind"]) == (1, "after")
    assert [(run["beyond"], run["side"], run["lr"]) for run in found["edges"]] == [
        ("lr", "upper", pytest.approx(3.2e-3))
    ]
    before = found["params_factor"]["before"]
    for run in found["next"]:
        assert run["params_factor"]["before"] == pytest.approx(before)
        before = run["params_factor"]["after"]
        assert run["params_factor"]["after"] < run["params_factor"]["before"]
        assert run["flops"] <= 3 * 6e18 * (1 + 1e-9)
        assert KLING.lr is not None
        expected = KLING.lr.value(run["params"], run["tokens"])
        assert run["lrs"] == [pytest.approx(expected, rel=0.3)]
    assert found["params_factor"]["after"] == pytest.approx(before)
    assert done.stderr.index("First: grids whose best is at an edge") < done.stderr.index("Then")
    assert "edges_first" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "1e18"], "--target 1e+18 FLOPs is not above the largest budget"),
        (["--budget-cap", "1e17"], "--budget-cap 1e+17 FLOPs leaves no run"),
        (["--noise", "0"], "the noise of a loss is 0"),
        (["--next", "5000"], "candidate runs up to"),
    ],
)
def test_bad_input_after_a_sweep(
    planner: Planner, tmp_path: Path, arguments: list[str], told: str
) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl")
    done = planner("design", table, "--next", "2", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_a_sweep_without_a_surface_is_to_be_designed_anew(planner: Planner, tmp_path: Path) -> None:
    table = kling_sweep(tmp_path / "runs.jsonl", budgets=FIVE[:1])
    lines = table.read_text().splitlines()[:10]  # two sizes
    table.write_text("\n".join(lines) + "\n")
    done = planner("design", table, "--next", "2")
    assert done.returncode == 2
    assert "no loss surface to improve" in done.stderr


def test_a_sweep_at_one_ratio_is_told_to_leave_that_line(planner: Planner, tmp_path: Path) -> None:
    law = replace(KLING.surface, alpha=0.5, A=KLING.surface.A * 40)
    rng = np.random.default_rng(0)
    rows = []
    for n in np.geomspace(1e7, 1e9, 14):
        d = 100 * n * math.exp(0.05 * rng.standard_normal())
        loss = law.loss(n, d) * math.exp(1e-4 * rng.standard_normal())
        rows.append({"params": n, "tokens": d, "flops": 6 * n * d, "loss": loss})
    table = tmp_path / "runs.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")
    done = planner("design", table, "--next", "3", "--noise", "1e-4", "--json")
    assert done.returncode == 0, done.stderr
    found = one_object(done.stdout)
    assert "fixed_ratio_collinear" in [finding["code"] for finding in found["findings"]]
    ratio = [run["tokens"] / run["params"] for run in found["next"]]
    assert max(abs(math.log(each / 100)) for each in ratio) > math.log(2)
    assert found["params_factor"]["after"] < found["params_factor"]["before"]


def test_help_needs_nothing_but_click() -> None:
    code = (
        "import sys; sys.argv = ['planner', 'design', '--help']\n"
        "from planner.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert not {'numpy', 'scipy'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "planner design sweeps/demo --next 6" in done.stdout
