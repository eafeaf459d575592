"""What a fit leaves behind: `laws.json`, everything there is to know, and `plan.toml`, a config.

Files are written beside their place and renamed, so that none is ever half there.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.fit import Fit
from planner.hyper import Cell, LearningRateLaw, Regret
from planner.isoflop import Budget, ComputeLaws
from planner.laws import LEVEL, FloorLaw, LogLinear, NotFitted
from planner.plan import Forecast, ForecastOnly, Number, Outcome, Plan

SCHEMA_VERSION = 1
DEFINITIONS = {
    "C": "training FLOPs of the budget, exact: attention and text tokens included",
    "N": "block_params: the matrices of the blocks; no embeddings, modulation or output",
    "D": "visual tokens seen in training",
    "L": "validation loss",
    "lr": "peak learning rate at muP's base width",
    "interval": f"Student-t, two-sided, {LEVEL:.0%}; a prediction's holds one observation's noise",
}


def document(fit: Fit, outcomes: list[Outcome]) -> dict[str, Any]:
    """The object of `laws.json` and of `--json`: equal input gives equal bytes."""
    sweep = fit.sweep
    return {
        "schema_version": SCHEMA_VERSION,
        "level": LEVEL,
        "definitions": DEFINITIONS,
        "sweep": {
            "runs": str(sweep.runs_path),
            "runs_sha256": sweep.runs_sha256,
            "has_sweep_toml": sweep.settings is not None,
            "data_digest": sweep.records[0].data_digest,
            "schedule": sweep.records[0].schedule,
            "counts": counts(fit),
        },
        "used": [record.run for record in sweep.records],
        "stopped": [asdict(run) for run in sweep.stopped],
        "rejected": [
            {"at": f"{sweep.runs_path}:{rejection.line}", "reason": rejection.reason}
            for rejection in sweep.rejections
        ],
        "cells": [_cell(cell) for cell in fit.cells],
        "budgets": [_budget(budget) for budget in fit.budgets],
        "laws": _laws(fit),
        "plans": [_outcome(outcome) for outcome in outcomes],
        "warnings": list(fit.warnings),
    }


def counts(fit: Fit) -> dict[str, int]:
    """How many lines of the sweep went where."""
    return {
        "used": len(fit.sweep.records),
        "diverged": len(fit.sweep.stopped_as("diverged")),
        "failed": len(fit.sweep.stopped_as("failed")),
        "rejected": len(fit.sweep.rejections),
    }


def plan_tables(plan: Plan, fit: Fit) -> dict[str, Any]:
    """The content of `plan.toml`: the RunConfig tables as they are, and `[plan]` beside them."""
    provenance: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target_flops": plan.forecast.target_flops,
        "planned_flops": plan.planned_flops,
        "extrapolation": plan.forecast.extrapolation,
        "level": LEVEL,
        "runs_sha256": fit.sweep.runs_sha256,
        "data_digest": fit.sweep.records[0].data_digest,
        "warnings": [*fit.warnings, *plan.warnings],
    }
    for name, number in plan.numbers.items():
        # TOML has no null: an interval that is not known is left out, and `unknown` says why.
        provenance[name] = {k: v for k, v in _number(number).items() if v is not None}
    return {**plan.config, "plan": provenance}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON (no NaN) atomically."""
    write_bytes(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def write_toml(path: Path, content: Mapping[str, Any]) -> None:
    """Write TOML atomically."""
    import tomli_w

    write_bytes(path, tomli_w.dumps(content).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename over it."""
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "budget_flops": cell.budget_flops,
        "width": cell.width,
        "block_params": cell.block_params,
        "tokens": cell.tokens,
        "verdict": cell.verdict,
        "lr": cell.lr,
        "lr_low": cell.lr_low,
        "lr_high": cell.lr_high,
        "loss": cell.loss,
        "loss_is_upper_bound": not cell.interior,
        "lr_best_run": cell.best.lr,
        "curvature": None if cell.parabola is None else cell.parabola.curvature,
        "runs": [asdict(rung) for rung in cell.rungs],
    }


def _budget(budget: Budget) -> dict[str, Any]:
    optimum = budget.optimum
    return {
        "budget_flops": budget.budget_flops,
        "verdict": budget.verdict,
        "sizes": [cell.block_params for cell in budget.cells],
        "losses": [cell.loss for cell in budget.cells],
        "upper_bounds": budget.upper_bounds,
        "block_params": None if optimum is None else optimum.block_params,
        "tokens": None if optimum is None else optimum.tokens,
        "loss": None if optimum is None else optimum.loss,
        "window": None if optimum is None else [optimum.parabola.x_low, optimum.parabola.x_high],
    }


def _laws(fit: Fit) -> dict[str, Any]:
    compute = fit.compute
    if isinstance(compute, NotFitted):
        of_compute: dict[str, Any] = {"not_fitted": compute.reason}
    else:
        of_compute = _compute(compute)
    return {"compute": of_compute, "learning_rate": _rate(fit.learning_rate)}


def _compute(laws: ComputeLaws) -> dict[str, Any]:
    floor = laws.loss_floor
    return {
        "budgets_flops": list(laws.budgets_flops),
        "N": log_linear(laws.size),
        "D": log_linear(laws.tokens),
        "L": log_linear(laws.loss_power),
        "L_with_floor": _floor(floor)
        if isinstance(floor, FloorLaw)
        else {"not_fitted": floor.reason},
        "L_used": "L_with_floor" if isinstance(floor, FloorLaw) else "L",
    }


def log_linear(law: LogLinear) -> dict[str, Any]:
    """y = scale · Π variable^exponent as plain values."""
    return {
        "form": " ".join(["y = scale", *(f"* {name}^p_{name}" for name in law.variables)]),
        "scale": asdict(law.scale),
        "exponents": {name: asdict(law.exponent(name)) for name in law.variables},
        "residual_sd_ln": law.residual_sd,
        "df": law.df,
    }


def _floor(law: FloorLaw) -> dict[str, Any]:
    return {
        "form": "y = floor + scale * C^-exponent",
        "scale": law.scale,
        **{name: asdict(estimate) for name, estimate in law.parameters().items()},
        "residual_sd_relative": law.residual_sd,
        "df": law.df,
    }


def _rate(rate: LearningRateLaw | NotFitted) -> dict[str, Any]:
    if isinstance(rate, NotFitted):
        return {"not_fitted": rate.reason}
    return {
        **log_linear(rate.law),
        "reason": rate.reason,
        "optima": rate.optima,
        "regret": None if rate.regret is None else _regret(rate.regret),
    }


def _regret(regret: Regret) -> dict[str, Any]:
    return {
        "mean": regret.mean,
        "worst": regret.worst,
        "worst_cell": {
            "budget_flops": regret.worst_cell.budget_flops,
            "block_params": regret.worst_cell.block_params,
        },
        "cells": regret.cells,
        "nearest_diverged": regret.diverged,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Plan):
        return {
            **_forecast(outcome.forecast),
            "planned_flops": outcome.planned_flops,
            "numbers": {name: _number(number) for name, number in outcome.numbers.items()},
            "warnings": list(outcome.warnings),
            "refused": None,
        }
    if isinstance(outcome, ForecastOnly):
        return {**_forecast(outcome.forecast), "no_plan": outcome.reason, "refused": None}
    return {"target_flops": outcome.target_flops, "refused": outcome.reason}


def _forecast(forecast: Forecast) -> dict[str, Any]:
    rate = forecast.lr_peak
    return {
        "target_flops": forecast.target_flops,
        "extrapolation": forecast.extrapolation,
        "forecast": {
            "N": asdict(forecast.block_params),
            "D": asdict(forecast.tokens),
            "L": asdict(forecast.loss),
            "lr": {"not_fitted": rate.reason} if isinstance(rate, NotFitted) else asdict(rate),
        },
    }


def _number(number: Number) -> dict[str, Any]:
    return {
        **asdict(number.estimate),
        "unit": number.unit,
        "reason": number.reason,
        "source": number.source,
    }
