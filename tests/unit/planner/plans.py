"""Fits of synthetic sweeps, and what to ask of their plans."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from unit.planner.synthetic import (
    Truth,
    model_config,
    platform_sweep,
    settings,
    simple_sweep,
    sweep_of,
)

from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.group_law import GroupLaw
from planner.fitting.hyper_law import HyperLaw
from planner.planning.plan import Plan
from scalewright.model.shape import ModelConfig

TRUTH = Truth(noise=5e-4)
LRS = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
OPTIONS = FitOptions(resamples=200)


def fit(rows: Sequence[dict[str, Any]], sweep_toml: dict[str, Any] | None = None) -> Fit:
    return fit_sweep(sweep_of(list(rows), sweep_toml), OPTIONS)


@cache
def rows_of_platform() -> tuple[dict[str, Any], ...]:
    return tuple(platform_sweep(TRUTH, lrs=LRS))


@cache
def native_fit() -> Fit:
    """Of a sweep of this platform: a ladder of widths by 32, 1,000 tokens a step in four packs."""
    return fit(rows_of_platform(), settings())


@cache
def foreign_fit() -> Fit:
    """Of a sweep under C = 6ND, centred on the best sizes."""
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


def model_of(plan: Plan) -> ModelConfig:
    assert plan.config is not None
    return replace(model_config(), width=plan.config["model"]["width"])
