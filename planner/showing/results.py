"""What a fit leaves behind for machines: one JSON object (docs/planner-json.md describes it)."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from planner.findings import Finding
from planner.fitting.estimators import SurfaceFit
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.fitting.hyper import Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.isoflop import Budget, ComputeLaws, IsoFlop
from planner.fitting.laws import LEVEL, Estimate, FloorLaw, LogLinear, NotFitted
from planner.fitting.surface import CONSTANTS, Surfaces
from planner.fitting.transfer import Transfer
from planner.planning.plan import Plan
from planner.planning.plan_file import plan_document
from planner.reading.checks import blown_runs

SCHEMA_VERSION = 2
DEFINITIONS = {
    "C": "training FLOPs; how they are counted is data.accounting.flops",
    "N": "parameters, as data.accounting.params says (the platform's own: those of the blocks)",
    "D": "tokens seen in training (the platform's own: visual tokens)",
    "L": "loss of a run, in nats where it is a likelihood",
    "interval": f"two-sided, {LEVEL:.0%}; a plan's loss holds one observation's noise",
}


def document(fit: Fit, plans: Sequence[Plan]) -> dict[str, Any]:
    """The object of `laws.json` and of `--json`: equal input gives equal bytes."""
    findings = [*fit.findings, *(finding for plan in plans for finding in plan.findings)]
    return {
        "schema_version": SCHEMA_VERSION,
        "level": LEVEL,
        "trusted": not any(finding.refuses for finding in findings),
        "definitions": DEFINITIONS,
        "data": _data(fit),
        "surface": _surfaces(fit),
        "isoflop": _isoflop(fit.isoflop),
        "hyper": _hyper(fit),
        "forecast": _forecast(fit.forecast),
        "plan": [plan_document(plan) for plan in plans],
        "warnings": [_finding(finding) for finding in unique(findings)],
        "options": {"resamples": fit.options.resamples, "seed": fit.options.seed},
        "versions": versions(),
    }


def unique(findings: Sequence[Finding]) -> list[Finding]:
    """Each finding once, in order; several targets may raise the same one."""
    return list(dict.fromkeys(findings))


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    return {
        "scalewright": _version("scalewright"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "scipy": _version("scipy"),
    }


def to_json(content: Mapping[str, Any]) -> str:
    """Strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def interval(estimate: Estimate) -> list[float] | None:
    """[low, high], None where unknown."""
    if estimate.low is None or estimate.high is None:
        return None
    return [estimate.low, estimate.high]


def _data(fit: Fit) -> dict[str, Any]:
    sweep = fit.sweep
    return {
        "source": sweep.source,
        "group": sweep.group,
        "hash": f"sha256:{sweep.sha256}",
        "rows": sweep.rows,
        "used": len(sweep.runs),
        "rejected": [{"row": each.row, "reason": each.reason} for each in sweep.rejections],
        "stopped": [
            {"row": run.row, "run": run.run, "status": run.status, "lr": run.lr}
            for run in sweep.stopped
        ],
        "diverged_by_loss": [run.row for run in blown_runs(sweep.runs)],
        "points": len(fit.points),
        "accounting": {
            "flops": sweep.accounting.flops,
            "params": sweep.accounting.params,
            "planned_with": fit.frontier.source,
        },
        "noise": fit.noise,
    }


def _surfaces(fit: Fit) -> dict[str, Any]:
    resamples = fit.resamples
    ways = (
        ("huber", fit.huber, None if resamples is None else resamples.huber),
        ("varpro", fit.varpro, None if resamples is None else resamples.varpro),
    )
    return {
        name: {"not_fitted": found.reason}
        if isinstance(found, NotFitted)
        else _surface(found, samples, fit.constants.get(name, {}))
        for name, found, samples in ways
    }


def _surface(
    found: SurfaceFit, samples: Surfaces | None, constants: Mapping[str, Estimate]
) -> dict[str, Any]:
    surface = found.surfaces.surface()
    names = (*CONSTANTS, "a")
    return {
        **{name: getattr(surface, name) for name in names},
        "objective": found.objective,
        "se": _standard_errors(samples),
        "interval": {
            name: interval(constants[name]) if name in constants else None for name in names
        },
        "starts": found.starts,
        "agreeing": found.agreeing,
        "condition": found.condition,
        "gradient_norm": found.gradient_norm,
        "residual_sd": found.residual_sd,
    }


def _standard_errors(samples: Surfaces | None) -> dict[str, float | None]:
    """Half of the central 68% of the resamples, which one far-off resample does not blow up."""
    if samples is None or len(samples) < 3:
        return dict.fromkeys((*CONSTANTS, "a"))
    return {
        name: float(np.diff(np.percentile(values[1:], (16, 84)))[0]) / 2
        for name, values in samples.constants().items()
    }


def _isoflop(curves: IsoFlop) -> dict[str, Any]:
    budgets = [_budget(budget) for budget in curves.budgets]
    if isinstance(curves.laws, NotFitted):
        nothing = {"exponent": None, "interval": None, "not_fitted": curves.laws.reason}
        return {**nothing, "budgets": budgets}
    return {**_compute(curves.laws), "budgets": budgets}


def _compute(laws: ComputeLaws) -> dict[str, Any]:
    exponent = laws.size.exponent("C")
    floor = laws.loss_floor
    return {
        "exponent": exponent.value,
        "interval": interval(exponent),
        "exponents": dict(laws.exponents),
        "bias": laws.bias,
        "laws": {
            "params": log_linear(laws.size),
            "tokens": log_linear(laws.tokens),
            "loss": log_linear(laws.loss_power),
            "loss_above_floor": {"not_fitted": floor.reason}
            if isinstance(floor, NotFitted)
            else _floor(floor),
        },
    }


def _budget(budget: Budget) -> dict[str, Any]:
    best = budget.optimum
    return {
        "flops": budget.flops,
        "params": None if best is None else best.params,
        "tokens": None if best is None else best.tokens,
        "loss": None if best is None else best.loss,
        "verdict": budget.verdict,
        "akima_params": None if best is None else best.akima_params,
        "bias_ln_params": None if best is None else best.bias_ln_params,
        "window": None if best is None else [best.parabola.x_low, best.parabola.x_high],
        "sizes": list(budget.params),
        "losses": list(budget.loss),
        "upper_bounds": budget.upper_bounds,
    }


def log_linear(law: LogLinear) -> dict[str, Any]:
    """y = coefficient · Π variable^exponent as plain values."""
    return {
        "coefficient": law.scale.value,
        "exponents": {name: law.exponent(name).value for name in law.variables},
        "interval": {
            "coefficient": interval(law.scale),
            **{name: interval(law.exponent(name)) for name in law.variables},
        },
        "residual_sd_ln": law.residual_sd,
        "df": law.df,
    }


def _floor(law: FloorLaw) -> dict[str, Any]:
    parameters = law.parameters()
    return {
        "floor": law.floor,
        "coefficient": law.scale,
        "exponent": law.exponent_value,
        "interval": {name: interval(estimate) for name, estimate in parameters.items()},
        "budgets": law.df + 3,
    }


def _hyper(fit: Fit) -> dict[str, Any]:
    laws = {"lr": fit.hyper.lr, "batch_tokens": fit.hyper.batch_tokens}
    regret = fit.hyper.regret
    return {
        "groups": [_group(group) for group in fit.groups],
        "laws": {
            name: law.document() if isinstance(law, HyperLaw) else {"not_fitted": law.reason}
            for name, law in laws.items()
        },
        "regret": None if regret is None else regret.document(),
        "transfer": _transfer(fit.transfer),
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "params": group.params,
        "tokens": group.tokens,
        "flops": group.flops,
        "width": group.width,
        "runs": len(group.runs),
        "lr_edge": group.lr_edge.value,
        "batch_edge": group.batch_edge.value,
        "lr": group.lr,
        "batch_tokens": group.batch_tokens,
        "lr_bounds": list(group.lr_bounds),
        "batch_bounds": list(group.batch_bounds),
        "lr_unstable": group.lr_unstable,
        "loss": group.loss,
        "loss_is_bound": group.loss_is_bound,
        "reason": group.reason,
    }


def _transfer(found: Transfer | NotFitted) -> dict[str, Any]:
    if isinstance(found, NotFitted):
        return {"verdict": None, "text": found.reason}
    return {
        "verdict": found.verdict.value,
        "width_exponent": found.exponent.value,
        "interval": interval(found.exponent),
        "factor": found.factor.value,
        "factor_interval": interval(found.factor),
        "widths": list(found.widths),
        "text": found.text,
    }


def _forecast(found: HoldOut | NotFitted) -> dict[str, Any]:
    if isinstance(found, NotFitted):
        return {"not_fitted": found.reason}
    return {
        "held_out_flops": found.held_out_flops,
        "runs": found.runs,
        "ratio": found.ratio,
        "predicted": found.predicted,
        "observed": found.observed,
        "relative_error": found.relative_error,
        "by": found.by,
        "errors": dict(found.errors),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {"code": finding.code, "text": finding.text, "refuses": finding.refuses}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
