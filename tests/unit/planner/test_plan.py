import math
from dataclasses import replace

import numpy as np
import pytest
from unit.planner.plans import (
    TRUTH,
    codes,
    ends,
    fit,
    foreign_fit,
    law,
    model_of,
    native_fit,
    value,
)
from unit.planner.synthetic import flops_per_token, model_config, settings, simple_sweep

from planner.fitting.fit import Fit
from planner.fitting.isoflop import ComputeLaws
from planner.fitting.laws import NotFitted
from planner.planning.cost import Hardware
from planner.planning.plan import make_plan
from planner.planning.target import best_size, loss_at
from scalewright.model.memory import memory_estimate
from scalewright.model.shape import block_parameters


@pytest.fixture(scope="module")
def native() -> Fit:
    return native_fit()


@pytest.fixture(scope="module")
def foreign() -> Fit:
    return foreign_fit()


def test_the_best_size_of_another_platform_is_where_the_true_loss_is_lowest() -> None:
    truth = replace(TRUTH, noise=0.0)
    plan = make_plan(fit(simple_sweep(truth)), 1e13)
    N = truth.best_size(1e13)
    assert value(plan, "params") == pytest.approx(N, rel=2e-3)
    assert value(plan, "tokens") == pytest.approx(1e13 / 6 / N, rel=2e-3)
    assert value(plan, "loss") == pytest.approx(truth.best_loss(N, 1e13 / 6 / N), rel=1e-4)
    assert plan.config is None
    assert not plan.refused


def test_the_rung_is_the_best_of_the_ladder(native: Fit) -> None:
    assert native.resamples is not None
    surface = native.resamples.huber.surface()
    models = [replace(model_config(), width=width) for width in range(32, 4097, 32)]
    rungs = [(model.width, block_parameters(model), flops_per_token(model)) for model in models]
    not_nearest = 0
    for target in np.geomspace(4e9, 2.9e14, 25):
        plan = make_plan(native, float(target), force=True)
        losses = {
            width: surface.loss(N, math.floor(target / cost / 1000) * 1000)
            for width, N, cost in rungs
            if target >= cost * 1000
        }
        best = min(losses, key=lambda width: losses[width])
        assert plan.config is not None
        assert plan.config["model"]["width"] == value(plan, "width") == best
        N = value(plan, "block_params")
        assert block_parameters(model_of(plan)) == N
        wanted = value(plan, "params")
        not_nearest += abs(math.log(N / wanted)) > min(
            abs(math.log(n / wanted)) for _, n, _ in rungs
        )
    assert not_nearest > 0


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
    assert of_narrow[1] / of_narrow[0] > 1.2
    of_law = math.log(value(narrow, "lr") / of_narrow[0])
    below = math.log(value(wide, "params") / low)
    assert math.log(value(wide, "lr") / of_wide[0]) == pytest.approx(math.hypot(of_law, below))


def test_warmup_keeps_its_share_of_the_steps(native: Fit) -> None:
    plan = make_plan(native, 1e13)
    assert plan.config is not None
    warmup = plan.config["optimizer"]["warmup_steps"]
    assert warmup / plan.config["steps"] == pytest.approx(10 / 200, rel=0.02)
    assert native.base is not None
    cold = replace(native, base=replace(native.base, warmup_steps=0))
    again = make_plan(cold, 1e13)
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
    wanted = batch.value(1.0, 1e13 / flops_per_token(model_of(plan))) / 250
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
    assert plan.numbers.keys().isdisjoint(
        {"steps", "batch_tokens", "width", "memory_per_gpu_bytes"}
    )
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
        model_of(plan),
        workers=2,
        packs_per_worker=2,
        pack_tokens=2048,
        compute_bytes=4,
        activation_checkpointing="none",
    )
    assert value(plan, "memory_per_gpu_bytes") == expected.total_bytes
    assert "idle_gpus" not in codes(plan)
    small = make_plan(native, 1e13, Hardware(gpus=8, memory_bytes=1e6))
    assert {"idle_gpus", "memory_exceeds_gpu", "not_bf16"} <= codes(small)
    # Four packs keep four of the eight GPUs busy.
    assert small.numbers["days"].unit == "days on 4 GPUs"
    assert value(small, "days") == pytest.approx(value(small, "gpu_hours") / 24 / 4)
    assert not small.refused


def test_without_a_surface_the_isoflop_laws_plan(native: Fit) -> None:
    plan = make_plan(replace(native, resamples=None), 1e13)
    laws = native.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    assert plan.numbers["params"].estimate == laws.size.predict(C=1e13)
    loss, predicted = plan.numbers["loss"].estimate, laws.loss.predict(C=1e13)
    assert (loss.value, loss.high) == pytest.approx((predicted.value, predicted.high), rel=1e-2)
    assert "no_surface" in codes(plan)
    assert plan.tradeoff == ()
    assert plan.config is not None
    N = laws.size.value(C=1e13)
    sizes = [block_parameters(replace(model_config(), width=w)) for w in range(32, 2049, 32)]
    nearest = min(sizes, key=lambda size: max(size / N, N / size))
    assert value(plan, "block_params") == nearest


def test_a_plan_leaves_the_base_as_it_was(native: Fit) -> None:
    first, second = make_plan(native, 1e13), make_plan(native, 1e14)
    assert first.config is not None
    assert second.config is not None
    assert first.config["model"]["width"] < second.config["model"]["width"]
    assert native.base is not None
    assert native.base.tables == settings()["base"]


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
