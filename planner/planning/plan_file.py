"""A plan as others read it: `plan.toml` for jobs/pretrain.py, and an object of the JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.files import write_bytes
from planner.findings import Finding
from planner.fitting.laws import LEVEL, Estimate
from planner.planning.draft import Number
from planner.planning.plan import Plan
from planner.planning.tradeoff import Smaller

SCHEMA_VERSION = 2
ALWAYS = ("params", "tokens", "lr", "batch_tokens", "steps", "loss")


def plan_document(plan: Plan) -> dict[str, Any]:
    """Plain values for JSON; `interval` is [low, high], null where `unknown` says why.

    The numbers of `ALWAYS` are there in every plan, null where nothing is known of them.
    """
    return {
        "flops": plan.target_flops,
        "extrapolation": plan.extrapolation,
        "refused": plan.refused,
        "forced": plan.forced,
        **dict.fromkeys(ALWAYS),
        **{name: _number(number) for name, number in plan.numbers.items()},
        "tradeoff": [_smaller(each) for each in plan.tradeoff],
        "findings": [_finding(each) for each in plan.findings],
        "config": plan.config,
    }


def plan_tables(plan: Plan) -> dict[str, Any]:
    """The content of `plan.toml`: the tables of the run's config, and `[plan]` beside them.

    `ValueError` for a plan without a config.
    """
    if plan.config is None:
        raise ValueError(f"the plan for {plan.target_flops:.3g} FLOPs has no config to write")
    document = plan_document(plan)
    about = {
        "schema_version": SCHEMA_VERSION,
        "target_flops": document.pop("flops"),
        "level": LEVEL,
        "sweep": plan.source,
        "sweep_sha256": plan.sha256,
        **document,
    }
    del about["config"], about["refused"]
    return {**plan.config, "plan": _without_none(about)}


def write_plan(plan: Plan, path: Path) -> None:
    """Write `plan.toml` atomically."""
    import tomli_w

    write_bytes(path, tomli_w.dumps(plan_tables(plan)).encode())


def _number(number: Number) -> dict[str, Any]:
    return {
        **_estimate(number.estimate),
        "unit": number.unit,
        "reason": number.reason,
        "source": number.source,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    known = estimate.low is not None and estimate.high is not None
    return {
        "value": estimate.value,
        "interval": [estimate.low, estimate.high] if known else None,
        "unknown": estimate.unknown,
        "parts": dict(estimate.parts),
    }


def _smaller(smaller: Smaller) -> dict[str, Any]:
    estimates = ("loss_given_up", "equal_loss_flops", "break_even_tokens")
    values: dict[str, Any] = {name: getattr(smaller, name) for name in smaller.__dataclass_fields__}
    for name in estimates:
        values[name] = None if values[name] is None else _estimate(values[name])
    return values


def _finding(finding: Finding) -> dict[str, Any]:
    return asdict(finding)


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not known is left out."""
    if isinstance(value, Mapping):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    return value
