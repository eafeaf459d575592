import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.planner.plans import LRS, foreign_fit, native_fit
from unit.planner.synthetic import Truth, platform_sweep, settings, sweep_of

from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.isoflop import ComputeLaws, IsoFlop
from planner.fitting.laws import NotFitted, power_law
from planner.planning.plan import Plan, make_plan
from planner.planning.plan_file import plan_document, plan_tables, write_plan
from scalewright.model.shape import block_parameters


@pytest.fixture(scope="module")
def native() -> Fit:
    return native_fit()


@pytest.fixture(scope="module")
def plan(native: Fit) -> Plan:
    return make_plan(native, 1e13)


def test_every_number_of_the_document_has_value_interval_unit_reason_and_source(
    plan: Plan,
) -> None:
    document = plan_document(plan)
    assert document["flops"] == 1e13
    assert document["refused"] is False
    for name in ("params", "tokens", "lr", "batch_tokens", "steps", "loss", "gpu_hours", "cost"):
        number = document[name]
        assert number.keys() == {
            "value",
            "interval",
            "unknown",
            "unit",
            "reason",
            "source",
            "parts",
        }
        assert number["unit"]
        assert number["reason"]
        assert number["source"]
        if number["interval"] is None:
            assert number["unknown"]
        else:
            assert number["interval"][0] <= number["value"] <= number["interval"][1]
    assert document["params"]["interval"] is not None
    assert document["batch_tokens"]["interval"] is None
    assert document["config"] == plan.config


def test_the_trade_off_is_told_row_by_row(plan: Plan) -> None:
    rows = plan_document(plan)["tradeoff"]
    assert len(rows) == len(plan.tradeoff) >= 3
    for row, smaller in zip(rows, plan.tradeoff, strict=True):
        assert row["params"] == smaller.params
        assert row["loss_given_up"]["value"] == smaller.loss_given_up.value
        assert (row["break_even_tokens"] is None) == (smaller.break_even_tokens is None)


@pytest.mark.parametrize("target", [1e5, 1e9, 1e13, 2e14, 1e18])
@pytest.mark.parametrize("force", [False, True])
def test_every_document_is_strict_json(native: Fit, target: float, force: bool) -> None:
    for fitted in (native, foreign_fit(), replace(native, resamples=None)):
        document = plan_document(make_plan(fitted, target, force=force))
        assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_an_interval_of_hundreds_of_decades_is_still_told() -> None:
    foreign = foreign_fit()
    laws = foreign.isoflop.laws
    assert isinstance(laws, ComputeLaws)
    vague = power_law([1e10, 1.01e10, 1.02e10], [1e5, 2e7, 1e5])
    moved = IsoFlop(foreign.isoflop.budgets, replace(laws, size=vague))
    plan = make_plan(replace(foreign, resamples=None, isoflop=moved), 1e13, force=True)
    assert "interval_too_wide" in {finding.code for finding in plan.findings}
    assert json.dumps(plan_document(plan), allow_nan=False)


def test_a_refused_plan_says_why(native: Fit) -> None:
    document = plan_document(make_plan(native, 1e18))
    assert document["refused"] is True
    assert document["config"] is None
    assert document["params"] is document["loss"] is document["lr"] is None
    (finding,) = [each for each in document["findings"] if each["refuses"]]
    assert finding["code"] == "extrapolation"


def test_plan_toml_is_the_base_with_its_changes_and_a_table_of_its_own(
    native: Fit, plan: Plan, tmp_path: Path
) -> None:
    write_plan(plan, tmp_path / "plan.toml")
    tables = tomllib.loads((tmp_path / "plan.toml").read_text())
    about = tables.pop("plan")
    base = settings()["base"]
    base["name"], base["steps"] = "tiny-plan-1e13", tables["steps"]
    base["model"]["width"] = tables["model"]["width"]
    for changed in ("lr_peak", "warmup_steps"):
        base["optimizer"][changed] = tables["optimizer"][changed]
    assert tables == base
    for name in ("steps", "width"):
        assert isinstance(about[name]["value"], int)
    assert about["target_flops"] == 1e13
    assert about["sweep_sha256"] == native.sweep.sha256
    assert about["lr"]["value"] == tables["optimizer"]["lr_peak"]
    assert about["loss"]["interval"][0] < about["loss"]["value"]
    assert "interval" not in about["batch_tokens"]
    assert about["batch_tokens"]["unknown"]
    assert {"code", "text", "refuses"} == about["findings"][0].keys()
    assert about["tradeoff"]
    assert about.keys().isdisjoint({"config", "refused", "flops"})


def test_a_plan_file_is_replaced_whole(native: Fit, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    write_plan(make_plan(native, 1e14), path)
    write_plan(plan, path)
    assert tomllib.loads(path.read_text())["plan"]["target_flops"] == 1e13
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_without_a_config_is_not_written(native: Fit, tmp_path: Path) -> None:
    hyper = replace(native.hyper, lr=NotFitted("no rates"))
    refused = make_plan(replace(native, hyper=hyper), 1e13)
    with pytest.raises(ValueError, match="no config"):
        write_plan(refused, tmp_path / "plan.toml")
    assert not list(tmp_path.iterdir())


def test_pretraining_accepts_the_plan_as_a_config(tmp_path: Path) -> None:
    from scalewright.config import merge, read_toml, to_dict
    from scalewright.recipes import demo

    base: dict[str, Any] = to_dict(demo())
    base["model"] |= {"width": 64, "depth": 2, "head_dim": 32, "rope_axes": [8, 12, 12]}
    model = merge(demo(), {"model": base["model"]}, where="test").model
    rows = platform_sweep(Truth(), lrs=LRS)
    for row in rows:
        row["block_params"] = block_parameters(replace(model, width=row["width"]))
    sweep = sweep_of(rows, {"base": base, "clips": settings()["clips"]})
    plan = make_plan(fit_sweep(sweep, FitOptions(resamples=60)), 1e13)
    write_plan(plan, tmp_path / "plan.toml")
    tables = read_toml(tmp_path / "plan.toml")
    assert tables == plan_tables(plan)
    del tables["plan"]
    assert to_dict(merge(demo(), tables, where="plan.toml")) == plan.config
