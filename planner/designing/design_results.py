"""A design for machines: the JSON of `planner design` (docs/design-of-sweeps.md)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from planner.designing.advice import Advice, assumptions
from planner.designing.comparison import Comparison
from planner.designing.design import Design
from planner.designing.design_runs import Setting
from planner.designing.information import factor
from planner.designing.next_advice import NextAdvice, NextSetting
from planner.designing.next_runs import EdgeRun
from planner.designing.simulation import Simulation
from planner.findings import Finding
from planner.fitting.laws import LEVEL

SCHEMA_VERSION = 1


def design_document(advice: Advice, commands: Sequence[str] | None) -> dict[str, Any]:
    """The object of `planner design --cost`; a factor that is null has no bound."""
    wish, problem = advice.wish, advice.problem
    prior = problem.prior
    laws = {"lr": prior.lr, "batch_tokens": prior.batch_tokens}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "before",
        "level": LEVEL,
        "cost_flops": wish.cost_flops,
        "target_flops": wish.target_flops,
        "precision": wish.precision,
        "noise": wish.noise,
        "seed": wish.seed,
        "prior": {
            "name": prior.name,
            "source": prior.source,
            "surface": asdict(prior.surface),
            **{name: None if law is None else asdict(law) for name, law in laws.items()},
        },
        "flops": problem.frontier.source,
        "tuning": asdict(wish.tuning),
        "target": {
            "params": problem.aim.params, "tokens": problem.aim.tokens, "loss": problem.aim.loss,
        },
        "design": {
            **_design(advice.chosen, advice.simulated),
            "extrapolation": advice.extrapolation,
        },
        "reached": advice.reached,
        "needed_flops": advice.needed_flops,
        "runs": [_run(each) for each in advice.settings],
        "tried": [_design(design, seen) for design, seen in advice.tried],
        "comparison": _comparison(advice.comparison),
        "commands": None if commands is None else list(commands),
        "assumptions": assumptions(advice),
        "findings": _findings(advice.findings),
    }  # fmt: skip


def next_document(advice: NextAdvice) -> dict[str, Any]:
    """The object of `planner design PATH --next`."""
    fit, found = advice.fit, advice.found
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "after",
        "level": LEVEL,
        "trusted": advice.trusted,
        "data": {
            "source": fit.sweep.source,
            "hash": f"sha256:{fit.sweep.sha256}",
            "points": len(fit.points),
            "largest_flops": fit.largest_flops,
        },
        "target_flops": advice.target_flops,
        "budget_cap_flops": advice.cap_flops,
        "noise": advice.noise,
        "per": advice.per.value,
        "flops": fit.frontier.source,
        "target": {
            "params": found.aim.params, "tokens": found.aim.tokens, "loss": found.aim.loss,
        },
        "condition": found.condition,
        "params_factor": {
            "before": _bounded(found.half_before), "after": _bounded(found.half_after),
        },
        "cost_flops": sum(each.flops for each in advice.settings),
        "edges": [_edge(run) for run in advice.edges],
        "next": [_next(each) for each in advice.settings],
        "findings": _findings([*advice.fit.findings, *advice.findings]),
    }  # fmt: skip


def _design(design: Design, seen: Simulation | None) -> dict[str, Any]:
    budgets = sorted(set(design.budgets_flops.tolist()))
    return {
        **asdict(design.shape),
        "budgets_flops": budgets if len(budgets) <= design.shape.budgets else None,
        "largest_flops": design.largest_flops,
        "points": len(design.params),
        "runs": round(float(design.runs.sum())),
        "cost_flops": design.cost_flops,
        "condition": design.condition,
        "predicted": {
            "params_factor": _bounded(design.half_params),
            "loss_factor": _bounded(design.half_loss),
        },
        "simulated": None if seen is None else {
            "params_factor": _bounded(seen.half_params),
            "loss_factor": _bounded(seen.half_loss),
            "sweeps": seen.sweeps,
            "converged": seen.converged,
        },
    }  # fmt: skip


def _bounded(half: float) -> float | None:
    return None if half > 100 else factor(half)


def _comparison(found: Comparison) -> dict[str, Any]:
    ways = {
        "plain": found.plain,
        "one_decade_more": found.wider,
        "more_sizes": found.denser,
        "fixed_tokens_per_param": found.fixed_ratio,
    }
    return {name: None if way is None else _design(way, None) for name, way in ways.items()}


def _run(setting: Setting) -> dict[str, Any]:
    return {
        "budget_flops": setting.budget_flops,
        "params": setting.params,
        "tokens": setting.tokens,
        "tuned": setting.tuned,
        "lrs": None if setting.lrs is None else list(setting.lrs),
        "batch_tokens": None if setting.batches is None else list(setting.batches),
        "runs": setting.runs,
        "flops": setting.flops,
    }


def _next(setting: NextSetting) -> dict[str, Any]:
    run = setting.run
    return {
        "params": run.params,
        "width": setting.width,
        "tokens": run.tokens,
        "lrs": None if setting.lrs is None else list(setting.lrs),
        "batch_tokens": setting.batch_tokens,
        "flops": setting.flops,
        "params_factor": {
            "before": _bounded(run.half_before),
            "after": _bounded(run.half_after),
        },
    }


def _edge(run: EdgeRun) -> dict[str, Any]:
    return {
        "params": run.params,
        "tokens": run.tokens,
        "flops": run.flops,
        "beyond": run.beyond,
        "side": run.side.value,
        "lr": run.lr,
        "batch_tokens": run.batch_tokens,
    }


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]
