import copy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.planner.synthetic import (
    Truth,
    flops_per_token,
    model_config,
    platform_sweep,
    settings,
    write_sweep,
)

from planner.errors import InputError
from planner.fit import Fit, fit_sweep
from planner.plan import ForecastOnly, Plan, Refusal, default_target, make_plan
from planner.records import read_sweep
from planner.results import plan_tables, write_toml
from scalewright.model.shape import block_parameters


def fit(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    sweep_toml: dict[str, Any] | None = None,
) -> Fit:
    rows = platform_sweep(Truth()) if rows is None else rows
    return fit_sweep(read_sweep(write_sweep(folder, rows, sweep_toml or settings())))


def planned(fitted: Fit, target: float, force: bool = False) -> Plan:
    plan = make_plan(fitted, target, force)
    assert isinstance(plan, Plan), plan
    return plan


def test_the_plan_spends_the_target_in_exact_flops_at_the_nearest_size(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    plan = planned(fitted, 1e13)
    width, steps = plan.config["model"]["width"], plan.config["steps"]
    spent = steps * 1000.0 * flops_per_token(replace(model_config(), width=width))
    assert plan.planned_flops == pytest.approx(spent)
    one_step = spent / steps
    assert abs(spent - 1e13) <= one_step / 2
    wanted = plan.forecast.block_params.value
    sizes = [block_parameters(replace(model_config(), width=w)) for w in range(32, 1025, 32)]
    nearest = min(sizes, key=lambda size: max(size / wanted, wanted / size))
    assert block_parameters(replace(model_config(), width=width)) == nearest


def test_the_plan_has_the_learning_rate_of_its_own_size_and_tokens(tmp_path: Path) -> None:
    truth = Truth()
    plan = planned(fit(tmp_path), 1e13)
    N = block_parameters(replace(model_config(), width=plan.config["model"]["width"]))
    lr = plan.config["optimizer"]["lr_peak"]
    assert lr == pytest.approx(truth.lr(N, plan.config["steps"] * 1000.0), rel=0.01)


def test_the_forecast_loss_is_near_the_truth(tmp_path: Path) -> None:
    truth = Truth()
    plan = planned(fit(tmp_path), 1e13)
    N = block_parameters(replace(model_config(), width=plan.config["model"]["width"]))
    loss = truth.best_loss(N, plan.config["steps"] * 1000.0)
    assert plan.numbers["loss"].estimate.value == pytest.approx(loss, rel=0.01)


def test_warmup_keeps_its_share_of_the_steps(tmp_path: Path) -> None:
    plan = planned(fit(tmp_path / "a"), 1e13)
    share = plan.config["optimizer"]["warmup_steps"] / plan.config["steps"]
    assert share == pytest.approx(10 / 200, rel=0.02)
    without = settings()
    without["base"]["optimizer"]["warmup_steps"] = 0
    cold = planned(fit(tmp_path / "b", sweep_toml=without), 1e13)
    assert cold.config["optimizer"]["warmup_steps"] == 0


def test_plan_toml_is_the_base_with_five_changes_and_a_table_of_its_own(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    path = tmp_path / "plan.toml"
    write_toml(path, plan_tables(planned(fitted, 1e13), fitted))
    tables = tomllib.loads(path.read_text())
    provenance = tables.pop("plan")
    base = copy.deepcopy(settings()["base"])
    assert tables.keys() == base.keys()
    base["name"], base["steps"] = tables["name"], tables["steps"]
    base["model"]["width"] = tables["model"]["width"]
    for changed in ("lr_peak", "warmup_steps"):
        base["optimizer"][changed] = tables["optimizer"][changed]
    assert tables == base
    assert tables["name"] == "tiny-plan-1e13"
    assert isinstance(tables["steps"], int)
    assert provenance["target_flops"] == 1e13
    assert provenance["runs_sha256"] == fitted.sweep.runs_sha256
    for name in ("best_block_params", "width", "steps", "lr_peak", "warmup_steps", "loss"):
        number = provenance[name]
        assert number["reason"]
        assert number["source"]
        assert number["low"] <= number["value"] <= number["high"]
    assert provenance["batch_tokens"]["unknown"] == "the sweep holds one batch size"


def test_pretraining_accepts_the_plan_as_a_config(tmp_path: Path) -> None:
    from scalewright.config import merge, read_toml, to_dict
    from scalewright.recipes import demo

    base = to_dict(demo())
    small = {"width": 64, "depth": 2, "head_dim": 32, "rope_axes": [8, 12, 12]}
    sweep_toml = {"base": base, "clips": settings()["clips"]}
    base["model"] |= small
    rows = [{**row, "block_params": None} for row in platform_sweep(Truth())]
    model = merge(demo(), {"model": small}, where="test").model
    for row in rows:
        row["block_params"] = block_parameters(replace(model, width=row["width"]))
    fitted = fit(tmp_path, rows, sweep_toml)
    plan = planned(fitted, 1e13)
    write_toml(tmp_path / "plan.toml", plan_tables(plan, fitted))
    tables = read_toml(tmp_path / "plan.toml")
    del tables["plan"]
    config = merge(demo(), tables, where="plan.toml")
    assert to_dict(config) == plan.config


def test_a_plan_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    first, second = planned(fitted, 1e13), planned(fitted, 1e14)
    assert first.config["model"]["width"] < second.config["model"]["width"]
    assert fitted.base is not None
    assert fitted.base.tables == settings()["base"]


def test_intervals_without_a_degree_of_freedom_say_so(tmp_path: Path) -> None:
    plan = planned(fit(tmp_path, platform_sweep(Truth(), budgets=(3e10, 3e11))), 1e12)
    for name in ("width", "steps", "tokens", "loss"):
        estimate = plan.numbers[name].estimate
        assert estimate.low is None
        assert "no degree of freedom" in (estimate.unknown or "")


def test_the_default_target_is_ten_times_the_largest_budget(tmp_path: Path) -> None:
    assert default_target(fit(tmp_path)) == 1e13


def test_far_extrapolation_is_refused_unless_forced(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    assert isinstance(make_plan(fitted, 2.9e14), Plan)
    refusal = make_plan(fitted, 4e14)
    assert isinstance(refusal, Refusal)
    assert "400x" in refusal.reason
    assert "the limit is 300x" in refusal.reason
    forced = planned(fitted, 4e14, force=True)
    assert any("forced" in warning for warning in forced.warnings)


def test_one_interior_budget_is_refused_even_when_forced(tmp_path: Path) -> None:
    fitted = fit(tmp_path, platform_sweep(Truth(), budgets=(1e11,)))
    refusal = make_plan(fitted, 1e12, force=True)
    assert isinstance(refusal, Refusal)
    assert "1 of 1 budgets" in refusal.reason


def test_a_size_off_the_ladder_is_refused_even_when_forced(tmp_path: Path) -> None:
    fitted = fit(tmp_path)
    small, large = make_plan(fitted, 1e9), make_plan(fitted, 1e22, force=True)
    for refusal in (small, large):
        assert isinstance(refusal, Refusal)
        assert "off the ladder" in refusal.reason


def test_learning_rates_all_at_the_edge_are_refused(tmp_path: Path) -> None:
    fitted = fit(tmp_path, platform_sweep(Truth(), lrs=(1e-4, 2e-4, 4e-4)))
    refusal = make_plan(fitted, 1e13)
    assert isinstance(refusal, Refusal)
    assert "no cell has an interior best learning rate" in refusal.reason


def test_a_best_size_that_falls_with_compute_is_refused(tmp_path: Path) -> None:
    rows = platform_sweep(Truth(), budgets=(3e10, 3e11))
    flipped = {3e10: 3e11, 3e11: 3e10}
    swapped = [{**row, "budget_flops": flipped[row["budget_flops"]]} for row in rows]
    for row in swapped:
        row["flops"] = row["budget_flops"]
        row["run"] += "-swapped"
    refusal = make_plan(fit(tmp_path, swapped), 1e12)
    assert isinstance(refusal, Refusal)
    assert "falls with compute" in refusal.reason


def test_a_sweep_of_another_platform_gets_a_forecast_and_no_plan(tmp_path: Path) -> None:
    fitted = fit_sweep(read_sweep(write_sweep(tmp_path, platform_sweep(Truth()))))
    outcome = make_plan(fitted, 1e13)
    assert isinstance(outcome, ForecastOnly)
    assert "no sweep.toml" in outcome.reason
    assert outcome.forecast.block_params.low is not None


def spoiled(path: str, value: Any) -> dict[str, Any]:
    tables = copy.deepcopy(settings())
    *parents, last = path.split(".")
    table = tables
    for parent in parents:
        table = table[parent]
    if value is None:
        del table[last]
    else:
        table[last] = value
    return tables


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("base", None, r"the table \[base\] is missing"),
        ("base.optimizer", None, r"the table \[optimizer\] is missing"),
        ("base.steps", 0, "steps is 0; expected a whole number from 1"),
        ("base.name", None, "name is None; expected text"),
        ("base.model.width", 65, "not a multiple"),
        ("base.model.heads", 2, "unknown keys heads"),
        ("base.model.depth", 3, "has block_params 25152, but the model of"),
        ("base.optimizer.schedule", "constant", "made with 'cosine'"),
        ("base.optimizer.warmup_steps", -1, "warmup_steps is -1"),
        ("clips.visual", [], "none empty"),
        ("clips.count", [1], "one length"),
        ("clips.text", [8, 0], "at least 1"),
    ],
)
def test_a_sweep_toml_that_does_not_fit_is_refused(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, sweep_toml=spoiled(path, value))


def test_clips_that_do_not_explain_the_flops_are_warned_about(tmp_path: Path) -> None:
    assert not fit(tmp_path / "a").warnings
    other = spoiled("clips.visual", [640, 3200])
    assert any("FLOPs per token" in w for w in fit(tmp_path / "b", sweep_toml=other).warnings)


def test_mixed_batches_are_warned_about(tmp_path: Path) -> None:
    rows = platform_sweep(Truth())
    rows[0]["batch_tokens"] = 2000.0
    assert any("batch_tokens runs from" in warning for warning in fit(tmp_path, rows).warnings)
