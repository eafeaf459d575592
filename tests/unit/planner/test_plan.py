import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.planner.synthetic import (
    Truth,
    flops_per_token,
    model_config,
    platform_sweep,
    settings,
    simple_sweep,
    sweep_of,
)

from planner.cost import Hardware
from planner.fit import Fit, FitOptions, fit_sweep
from planner.group_law import GroupLaw
from planner.hyper_law import HyperLaw
from planner.isoflop import ComputeLaws, IsoFlop
from planner.laws import NotFitted, power_law
from planner.plan import Plan, make_plan
from planner.surface import Surfaces
from planner.target import best_size, loss_at
from scalewright.model.shape import block_parameters, memory_estimate

TRUTH = Truth(noise=5e-4)
LRS = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
ROWS = platform_sweep(TRUTH, lrs=LRS)
OPTIONS = FitOptions(resamples=200)


def fit(rows: Sequence[dict[str, Any]], sweep_toml: dict[str, Any] | None = None) -> Fit:
    return fit_sweep(sweep_of(list(rows), sweep_toml), OPTIONS)


@pytest.fixture(scope="module")
def native() -> Fit:
    return fit(ROWS, settings())


@pytest.fixture(scope="module")
def foreign() -> Fit:
    return fit(simple_sweep(TRUTH))


def codes(plan: Plan) -> set[str]:
    return {finding.code for finding in plan.findings}


def value(plan: Plan, name: str) -> float:
    return plan.numbers[name].estimate.value


def ends(plan: Plan, name: str) -> tuple[float, float]:
    estimate = plan.numbers[name].estimate
    assert estimate.low is not None, estimate.unknown
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.low, estimate.high


def law(scale: float, params: float, tokens: float, scatter: float = 0.1) -> HyperLaw:
    """A law of known constants, its own interval x/÷ e^±0.1 or so."""
    coefficients = (math.log(scale), params, tokens)
    samples = np.array(coefficients) + np.random.default_rng(0).normal(
        0, [0.05, 0, 0], size=(100, 3)
    )
    fitted = GroupLaw(("params", "tokens"), coefficients, samples, scatter, 20, 23, "by hand")
    return HyperLaw(fitted, 0, 0)


def test_the_best_size_of_another_platform_is_where_the_true_loss_is_lowest() -> None:
    truth = replace(TRUTH, noise=0.0)
    plan = make_plan(fit(simple_sweep(truth)), 1e13)
    N = truth.best_size(1e13)
    assert value(plan, "params") == pytest.approx(N, rel=2e-3)
    assert value(plan, "tokens") == pytest.approx(1e13 / 6 / N, rel=2e-3)
    assert value(plan, "loss") == pytest.approx(truth.best_loss(N, 1e13 / 6 / N), rel=1e-4)
    assert plan.config is None
    assert not plan.refused


def test_the_intervals_hold_the_truth(foreign: Fit) -> None:
    plan = make_plan(foreign, 1e13)
    N = TRUTH.best_size(1e13)
    D = 1e13 / 6 / N
    for name, truth in (("params", N), ("tokens", D), ("loss", TRUTH.best_loss(N, D))):
        low, high = ends(plan, name)
        assert low < truth < high
    low, high = ends(plan, "params")
    assert 1.005 < high / low < 1.5
    # On one budget the two ends are the same runs.
    assert ends(plan, "tokens") == pytest.approx((1e13 / 6 / high, 1e13 / 6 / low))


def test_a_loss_holds_the_noise_of_one_observation(foreign: Fit) -> None:
    quiet, loud = (
        make_plan(replace(foreign, noise=noise), 1e13).numbers["loss"].estimate
        for noise in (0.0, 0.05)
    )
    assert quiet.low is not None
    assert loud.low is not None
    assert math.log(loud.value / loud.low) == pytest.approx(
        math.hypot(math.log(quiet.value / quiet.low), 1.645 * 0.05), rel=1e-3
    )


@pytest.mark.parametrize("target", [1e11, 1e13, 2.9e14])
def test_the_rung_is_the_best_of_the_ladder(native: Fit, target: float) -> None:
    plan = make_plan(native, target)
    assert native.resamples is not None
    surface = native.resamples.huber.surface()
    losses = {}
    for width in range(32, 4097, 32):
        model = replace(model_config(), width=width)
        steps = math.floor(target / flops_per_token(model) / 1000)
        if steps:
            losses[width] = surface.loss(block_parameters(model), steps * 1000)
    best = min(losses, key=lambda width: losses[width])
    assert plan.config is not None
    assert plan.config["model"]["width"] == value(plan, "width") == best
    assert value(plan, "block_params") == block_parameters(replace(model_config(), width=best))


def test_the_plan_spends_the_target_in_whole_steps_and_not_more(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    assert plan.config is not None
    model = replace(model_config(), width=plan.config["model"]["width"])
    spent = plan.config["steps"] * 1000 * flops_per_token(model)
    assert value(plan, "planned_flops") == pytest.approx(spent)
    assert 1e13 - 1000 * flops_per_token(model) < spent <= 1e13
    assert value(plan, "tokens") == plan.config["steps"] * 1000 == value(plan, "steps") * 1000


def test_the_learning_rate_is_that_of_the_plans_own_size_and_tokens(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    assert plan.config is not None
    N, D = value(plan, "block_params"), value(plan, "tokens")
    lr = plan.config["optimizer"]["lr_peak"]
    assert lr == value(plan, "lr")
    assert lr == pytest.approx(TRUTH.lr(N, D), rel=0.1)
    low, high = ends(plan, "lr")
    assert low < TRUTH.lr(N, D) < high


def test_the_interval_of_a_learning_rate_holds_the_law_and_the_size(foreign: Fit) -> None:
    of_size = law(0.1, 0.5, -0.5)
    flat = law(0.1, 0.0, 0.0)
    wide, narrow = (
        make_plan(replace(foreign, hyper=replace(foreign.hyper, lr=each)), 1e13)
        for each in (of_size, flat)
    )
    low, high = ends(wide, "params")
    parts = wide.numbers["lr"].estimate.parts
    assert parts["best size"] == pytest.approx(math.log(high / low) / 2, rel=1e-6)
    assert narrow.numbers["lr"].estimate.parts["best size"] == 0
    of_wide, of_narrow = ends(wide, "lr"), ends(narrow, "lr")
    assert of_wide[1] / of_wide[0] > of_narrow[1] / of_narrow[0] > 1.2


def test_warmup_keeps_its_share_of_the_steps(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    assert plan.config is not None
    warmup = plan.config["optimizer"]["warmup_steps"]
    assert warmup / plan.config["steps"] == pytest.approx(10 / 200, rel=0.02)
    cold = settings()
    cold["base"]["optimizer"]["warmup_steps"] = 0
    base = replace(native.base, warmup_steps=0)  # type: ignore[type-var]
    again = make_plan(replace(native, base=base), 1e13)
    assert again.config is not None
    assert again.config["optimizer"]["warmup_steps"] == 0


def test_one_batch_is_kept_and_said(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    assert plan.config is not None
    assert plan.config["data"]["packs_per_step"] == 4
    assert value(plan, "batch_tokens") == 1000
    assert plan.numbers["batch_tokens"].estimate.low is None
    assert "batch_not_swept" in codes(plan)


def test_a_law_of_the_batch_sets_the_packs_nearest_to_it(native: Fit) -> None:
    batch = law(0.1, 0.0, 0.8)
    plan = make_plan(replace(native, hyper=replace(native.hyper, batch_tokens=batch)), 1e13)
    assert plan.config is not None
    packs = plan.config["data"]["packs_per_step"]
    wanted = batch.value(1.0, 1e13 / flops_per_token(_model(plan))) / 250
    assert wanted > 8
    # One worker or two share any number of packs.
    assert abs(math.log(packs / wanted)) <= abs(math.log((packs + 1) / wanted))
    assert abs(math.log(packs / wanted)) <= abs(math.log((packs - 1) / wanted))
    assert value(plan, "batch_tokens") == packs * 250
    assert value(plan, "steps") * packs * 250 == value(plan, "tokens")
    assert codes(plan).isdisjoint({"batch_not_swept", "no_batch", "no_batch_law"})
    assert ends(plan, "batch_tokens")[0] < packs * 250
    # Twice the batch is half the steps: the law's own uncertainty is also that of the steps.
    low, high = ends(plan, "steps")
    own = ends(plan, "batch_tokens")
    assert high / low > own[1] / own[0] * 0.9


def _model(plan: Plan) -> Any:
    assert plan.config is not None
    return replace(model_config(), width=plan.config["model"]["width"])


def test_batches_that_differ_without_a_law_give_that_of_the_best_large_run(foreign: Fit) -> None:
    rows = simple_sweep(TRUTH)
    for row in rows:
        row["batch_tokens"] = 500.0 if row["budget_flops"] < 1e12 else 4000.0
    plan = make_plan(fit(rows), 1e13)
    assert "no_batch_law" in codes(plan)
    assert value(plan, "batch_tokens") == 4000
    assert value(plan, "steps") == round(value(plan, "tokens") / 4000)


def test_without_batches_there_are_no_steps() -> None:
    rows = [{**row, "batch_tokens": None} for row in simple_sweep(TRUTH)]
    plan = make_plan(fit(rows), 1e13)
    assert plan.numbers.keys().isdisjoint({"steps", "batch_tokens", "width", "memory_per_gpu"})
    assert "no_batch" in codes(plan)
    assert not plan.refused


def test_hours_and_cost_are_those_of_the_planned_flops(native: Fit) -> None:
    gpu = Hardware(peak_flops=1e12, utilisation=0.5, price_per_gpu_hour=3.0, gpus=2)
    plan = make_plan(native, 1e14, gpu)
    flops = value(plan, "planned_flops")
    assert value(plan, "gpu_hours") == pytest.approx(flops / 5e11 / 3600)
    assert value(plan, "cost") == pytest.approx(3 * flops / 5e11 / 3600)
    assert value(plan, "days") == pytest.approx(flops / 5e11 / 86_400 / 2)
    for name in ("gpu_hours", "days", "cost"):
        assert "50% utilisation (assumed)" in plan.numbers[name].reason
        assert "assumed" in (plan.numbers[name].estimate.unknown or "")
    assert "at 3 each (assumed)" in plan.numbers["cost"].reason


def test_memory_is_that_of_the_planned_model_on_these_gpus(native: Fit) -> None:
    plan = make_plan(native, 1e13, Hardware(gpus=2))
    expected = memory_estimate(
        _model(plan),
        workers=2,
        packs_per_worker=2,
        pack_tokens=2048,
        compute_bytes=4,
        activation_checkpointing=False,
    )
    assert value(plan, "memory_per_gpu") == expected.total_bytes
    assert "idle_gpus" not in codes(plan)
    small = make_plan(native, 1e13, Hardware(gpus=8, memory_bytes=1e6))
    assert {"idle_gpus", "memory_exceeds_gpu", "not_bf16"} <= codes(small)
    # Four packs keep four of the eight GPUs busy.
    assert small.numbers["days"].unit == "days on 4 GPUs"
    assert not small.refused


def test_far_extrapolation_is_refused_unless_forced(foreign: Fit) -> None:
    near, far = make_plan(foreign, 2.9e14), make_plan(foreign, 4e14)
    assert not near.refused
    assert "extrapolation" not in codes(near)
    assert far.refused
    assert not far.numbers
    (finding,) = [each for each in far.findings if each.refuses]
    assert finding.code == "extrapolation"
    assert "400x" in finding.text
    assert "the limit is 300x" in finding.text
    forced = make_plan(foreign, 4e14, force=True)
    assert not forced.refused
    assert "extrapolation" in codes(forced)
    assert value(forced, "params") == pytest.approx(TRUTH.best_size(4e14), rel=0.3)


def test_a_size_off_the_ladder_has_numbers_but_no_config_unless_forced(native: Fit) -> None:
    small = make_plan(native, 1e9)
    assert "off_ladder" in codes(small)
    assert small.refused
    assert small.config is None
    assert value(small, "width") == 32
    forced = make_plan(native, 1e9, force=True)
    assert not forced.refused
    assert forced.config is not None
    assert forced.config["model"]["width"] == 32


def test_a_target_below_one_step_is_refused_even_when_forced(native: Fit) -> None:
    for force in (False, True):
        plan = make_plan(native, 1e5, force=force)
        assert "less_than_a_step" in codes(plan)
        assert plan.config is None
        assert plan.numbers.keys() <= {"params"}


def test_no_law_of_the_learning_rate_leaves_no_config_unless_forced(native: Fit) -> None:
    reason = NotFitted("every group is at the edge")
    censored = replace(native, hyper=replace(native.hyper, lr=reason))
    plan = make_plan(censored, 1e13)
    assert plan.refused
    assert plan.config is None
    assert "lr" not in plan.numbers
    assert {"params", "tokens", "loss", "width", "steps"} <= plan.numbers.keys()
    forced = make_plan(censored, 1e13, force=True)
    assert forced.config is not None
    largest = [row for row in ROWS if row["budget_flops"] == 1e12 and row["status"] == "done"]
    groups = {}
    for row in largest:
        groups.setdefault(row["width"], []).append(row)
    best = min((min(group, key=lambda row: row["loss"]) for group in groups.values()),
               key=lambda row: row["loss"])  # fmt: skip
    assert forced.config["optimizer"]["lr_peak"] == best["lr_peak"]
    assert forced.numbers["lr"].estimate.unknown == reason.reason


def test_a_foreign_sweep_without_learning_rates_is_planned_without_one(foreign: Fit) -> None:
    plan = make_plan(replace(foreign, hyper=replace(foreign.hyper, lr=NotFitted("none"))), 1e13)
    assert not plan.refused
    assert "lr" not in plan.numbers


def falling(fitted: Fit, exponents: tuple[float, ...]) -> Fit:
    """The same fit with minima of the sizes that these exponents over the budgets make."""
    laws = fitted.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [1e10, 1e11, 1e12, 1e13][: len(exponents)]
    sizes = [1e6 * (C / 1e10) ** p for C, p in zip(flops, exponents, strict=True)]
    moved = replace(laws, size=power_law(flops, sizes))
    return replace(fitted, isoflop=IsoFlop(fitted.isoflop.budgets, moved))


def test_minima_that_surely_fall_with_compute_are_refused(foreign: Fit) -> None:
    sure = falling(foreign, (-0.2, -0.2, -0.21, -0.2))
    plan = make_plan(sure, 1e13)
    assert plan.refused
    assert not plan.numbers
    assert "minima_are_noise" in codes(plan)
    assert make_plan(sure, 1e13, force=True).numbers


def test_minima_that_may_fall_only_warn_beside_a_surface(foreign: Fit) -> None:
    unsure = falling(foreign, (0.0, -0.3))
    plan = make_plan(unsure, 1e13)
    assert "minima_are_noise" in codes(plan)
    assert not plan.refused
    assert make_plan(replace(unsure, resamples=None), 1e13).refused


def test_without_a_surface_the_isoflop_laws_plan(native: Fit) -> None:
    plan = make_plan(replace(native, resamples=None), 1e13)
    laws = native.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    assert plan.numbers["params"].estimate == laws.size.predict(C=1e13)
    assert plan.numbers["loss"].estimate == laws.loss.predict(C=1e13)
    assert "no_surface" in codes(plan)
    assert plan.tradeoff == ()
    assert plan.config is not None
    N = laws.size.value(C=1e13)
    sizes = [block_parameters(replace(model_config(), width=w)) for w in range(32, 2049, 32)]
    nearest = min(sizes, key=lambda size: max(size / N, N / size))
    assert value(plan, "block_params") == nearest


def test_without_any_law_there_is_no_plan_even_when_forced(foreign: Fit) -> None:
    bare = IsoFlop(foreign.isoflop.budgets, NotFitted("one budget"))
    for force in (False, True):
        plan = make_plan(replace(foreign, resamples=None, isoflop=bare), 1e13, force=force)
        assert not plan.numbers
        assert codes(plan) == {"no_law"}
        assert "one budget" in plan.findings[0].text


def test_minima_that_disagree_beyond_their_interval_widen_that_of_the_size(foreign: Fit) -> None:
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [1e10, 1e11, 1e12]
    sizes = [3 * laws.size.value(C=C) for C in flops]
    off = replace(laws, size=power_law(flops, sizes))
    apart = replace(foreign, isoflop=IsoFlop((), off))
    before, after = make_plan(foreign, 1e13), make_plan(apart, 1e13)
    assert value(before, "params") == value(after, "params")
    assert ends(after, "params")[1] > 2.5 * value(after, "params")
    assert after.numbers["params"].estimate.parts["isoFLOP minima"] == pytest.approx(
        math.log(3), abs=0.3
    )


def test_the_known_bias_of_the_parabolas_is_no_disagreement(foreign: Fit) -> None:
    """Minima that are off by just what the surface says their parabolas are, agree with it."""
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    flops = [flops for flops, _ in foreign.isoflop.optima]
    sizes = [1.5 * laws.size.value(C=C) for C in flops]
    budgets = tuple(
        replace(
            budget,
            optimum=replace(
                budget.optimum, bias_ln_params=(budget.optimum.bias_ln_params or 0) + math.log(1.5)
            ),
        )
        for budget in foreign.isoflop.budgets
        if budget.optimum is not None
    )
    moved = replace(laws, size=power_law(flops, sizes))
    biased = best_size(replace(foreign, isoflop=IsoFlop(budgets, moved)), 1e13)
    unknown = best_size(replace(foreign, isoflop=IsoFlop((), moved)), 1e13)
    assert not isinstance(biased, NotFitted)
    assert not isinstance(unknown, NotFitted)
    assert biased.params.parts.get("isoFLOP minima", 0.0) < 0.1
    assert unknown.params.parts["isoFLOP minima"] > 0.3


def test_an_interval_wider_than_tenfold_is_warned_about(foreign: Fit) -> None:
    assert foreign.resamples is not None
    theta = foreign.resamples.huber.theta.copy()
    theta[1:, 1] += np.linspace(-3, 3, len(theta) - 1)
    vague = replace(foreign.resamples, huber=Surfaces(theta, foreign.resamples.huber.centre))
    plan = make_plan(replace(foreign, resamples=vague), 1e13)
    assert "interval_too_wide" in codes(plan)
    assert not plan.refused
    assert "interval_too_wide" not in codes(make_plan(foreign, 1e13))


def test_a_surface_without_a_best_size_is_refused(foreign: Fit) -> None:
    assert foreign.resamples is not None
    theta = foreign.resamples.huber.theta.copy()
    theta[:, 2] = -60.0
    vanished = replace(foreign.resamples, huber=Surfaces(theta, foreign.resamples.huber.centre))
    plan = make_plan(replace(foreign, resamples=vanished), 1e13)
    assert "no_best_size" in codes(plan)
    assert plan.refused


def test_without_resamples_the_numbers_stand_and_say_why_there_is_no_interval() -> None:
    rows = simple_sweep(TRUTH)
    plan = make_plan(fit_sweep(sweep_of(rows), FitOptions(resamples=0)), 1e13)
    for name in ("params", "tokens", "loss"):
        assert plan.numbers[name].estimate.low is None
        assert "0 resamples" in (plan.numbers[name].estimate.unknown or "")


def test_a_plan_leaves_the_base_as_it_was(native: Fit) -> None:
    before = copy.deepcopy(native.base.tables)  # type: ignore[union-attr]
    first, second = make_plan(native, 1e13), make_plan(native, 1e14)
    assert first.config is not None
    assert second.config is not None
    assert first.config["model"]["width"] < second.config["model"]["width"]
    assert native.base is not None
    assert native.base.tables == before == settings()["base"]


def test_the_trade_off_of_a_ladder_is_among_its_rungs(native: Fit) -> None:
    plan = make_plan(native, 1e14)
    widths = [row.width for row in plan.tradeoff]
    assert all(width and width % 32 == 0 for width in widths)
    assert widths == sorted(widths, reverse=True)
    (own,) = [row for row in plan.tradeoff if row.ratio == 1]
    assert own.width == value(plan, "width")
    assert all(row.loss_given_up.value >= 0 for row in plan.tradeoff)
    assert own.evaluations == 48


def test_the_loss_of_a_plan_is_the_surfaces_at_its_own_size_and_tokens(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    best = best_size(native, 1e13)
    assert not isinstance(best, NotFitted)
    N, D = value(plan, "block_params"), value(plan, "tokens")
    assert best.surface is not None
    assert value(plan, "loss") == pytest.approx(best.surface.loss(N, D), rel=1e-9)
    assert value(plan, "loss") == pytest.approx(TRUTH.best_loss(N, D), rel=0.01)
    assert plan.numbers["loss"].estimate == loss_at(native, best, N, D)
