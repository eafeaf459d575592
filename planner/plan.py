"""A compute target -> the run that the laws choose, each number with interval and reason."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from planner.base import Base
from planner.fit import Fit
from planner.hyper import LearningRateLaw
from planner.isoflop import ComputeLaws
from planner.laws import Estimate, NotFitted
from planner.records import SWEEP_FILE
from scalewright.model.shape import ModelConfig, block_parameters

MAX_EXTRAPOLATION = 300.0
DEFAULT_TARGET_RATIO = 10.0
FAR_FROM_OPTIMUM = 1.3

ISOFLOP = "isoFLOP minima, arXiv 2203.15556 approach 2"
OPTIMAL_RATE = "quadratic in ln lr, arXiv 2601.05049; law in N and D, arXiv 2411.17470 Eq. 13"
EXACT_FLOPS = "scalewright.model.shape.train_flops"


@dataclass(frozen=True)
class Number:
    """One planned number: its interval (or why there is none), why it is so, and who says so."""

    estimate: Estimate
    unit: str
    reason: str
    source: str


@dataclass(frozen=True)
class Forecast:
    """What the laws alone say at a target."""

    target_flops: float
    extrapolation: float
    block_params: Estimate
    tokens: Estimate
    loss: Estimate
    lr_peak: Estimate | NotFitted


@dataclass(frozen=True)
class Plan:
    """A run: `config` holds the tables of its RunConfig, `numbers` what the laws chose."""

    forecast: Forecast
    config: Mapping[str, Any]
    numbers: Mapping[str, Number]
    planned_flops: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ForecastOnly:
    """Laws without a platform config to fill in: the sweep has no `sweep.toml`."""

    forecast: Forecast
    reason: str


@dataclass(frozen=True)
class Refusal:
    """Why the fit is not trusted at this target."""

    target_flops: float
    reason: str


Outcome = Plan | ForecastOnly | Refusal


def default_target(fit: Fit) -> float:
    """Ten times the largest budget of the sweep."""
    return DEFAULT_TARGET_RATIO * fit.sweep.largest_budget_flops


def make_plan(fit: Fit, target_flops: float, force: bool = False) -> Outcome:
    """Plan a run of `target_flops`; `force` lifts the limit on extrapolation and nothing else."""
    if isinstance(fit.compute, NotFitted):
        return Refusal(target_flops, fit.compute.reason)
    reason = _distrust(fit.compute, target_flops, force)
    if reason is not None:
        return Refusal(target_flops, reason)
    forecast = _forecast(fit.compute, fit.learning_rate, target_flops)
    if fit.base is None:
        why = (
            f"no {SWEEP_FILE} beside the records: the laws hold, but there is no config to fill in"
        )
        return ForecastOnly(forecast, why)
    if isinstance(fit.learning_rate, NotFitted):
        return Refusal(target_flops, fit.learning_rate.reason)
    return _run(fit, fit.base, fit.learning_rate, forecast)


def _distrust(laws: ComputeLaws, target_flops: float, force: bool) -> str | None:
    for name, law in (("best size N*", laws.size), ("best token count D*", laws.tokens)):
        exponent = law.exponent("C").value
        if exponent <= 0:
            return (
                f"the {name} falls with compute (exponent {exponent:.3g}): the minima are noise; "
                "add budgets further apart, or more sizes to each"
            )
    ratio = target_flops / laws.largest_flops
    if ratio > MAX_EXTRAPOLATION and not force:
        return (
            f"{target_flops:.3g} FLOPs is {ratio:.4g}x the largest budget with an interior minimum "
            f"({laws.largest_flops:.3g}); the limit is {MAX_EXTRAPOLATION:.0f}x. Sweep larger "
            "budgets, lower --target, or pass --force"
        )
    return None


def _forecast(laws: ComputeLaws, rate: LearningRateLaw | NotFitted, target: float) -> Forecast:
    size, tokens = laws.size.predict(C=target), laws.tokens.predict(C=target)
    return Forecast(
        target_flops=target,
        extrapolation=target / laws.largest_flops,
        block_params=size,
        tokens=tokens,
        loss=laws.loss.predict(C=target),
        lr_peak=rate
        if isinstance(rate, NotFitted)
        else rate.law.predict(**rate.variables(size.value, tokens.value)),
    )


def _run(fit: Fit, base: Base, rate: LearningRateLaw, forecast: Forecast) -> Plan | Refusal:
    smallest, largest = base.ladder[0], base.ladder[-1]
    wanted = forecast.block_params.value
    if not smallest.block_params <= wanted <= largest.block_params:
        return Refusal(
            forecast.target_flops,
            f"the best size N* = {wanted:.3g} is off the ladder of sizes at depth "
            f"{base.model.depth} ({smallest.block_params:.3g} at width {smallest.model.width} to "
            f"{largest.block_params:.3g} at width {largest.model.width}); change --target, or "
            "sweep at another depth",
        )
    run = _Run(base, fit.batch_tokens, forecast, base.nearest_size(wanted))
    if run.steps(run.model) < 1:
        return Refusal(
            forecast.target_flops,
            f"{forecast.target_flops:.3g} FLOPs do not pay for one step of {fit.batch_tokens:.4g} "
            f"tokens at width {run.model.width}; raise --target",
        )
    numbers = _numbers(run, rate)
    return Plan(
        forecast=forecast,
        config=_config(base, forecast, numbers),
        numbers=numbers,
        planned_flops=run.tokens(run.model) * base.flops_per_token(run.model),
        warnings=_warnings(forecast, run.model),
    )


@dataclass(frozen=True)
class _Run:
    """A size, and what follows from it at the target: steps, tokens, warm-up."""

    base: Base
    batch_tokens: float
    forecast: Forecast
    model: ModelConfig

    def steps(self, model: ModelConfig) -> int:
        flops_per_step = self.base.flops_per_token(model) * self.batch_tokens
        return round(self.forecast.target_flops / flops_per_step)

    def tokens(self, model: ModelConfig) -> float:
        return self.steps(model) * self.batch_tokens

    def warmup_steps(self, model: ModelConfig) -> int:
        """The sweep's share of the steps; at least one where the sweep warmed up at all."""
        share = self.base.warmup_share
        return max(round(share * self.steps(model)), 1 if share > 0 else 0)

    def estimate(self, quantity: Callable[[ModelConfig], float]) -> Estimate:
        """`quantity` of the chosen size, between its values at the ends of N*'s interval."""
        size, value = self.forecast.block_params, quantity(self.model)
        if size.low is None or size.high is None:
            return Estimate(value, unknown=size.unknown)
        ends = [quantity(self.base.nearest_size(bound)) for bound in (size.low, size.high)]
        return Estimate(value, min(ends), max(ends))


def _numbers(run: _Run, rate: LearningRateLaw) -> dict[str, Number]:
    """What the plan changes or promises, in the order a reader asks for it."""
    return {
        "best_block_params": Number(
            run.forecast.block_params, "block parameters", "N*(C) at the target", ISOFLOP
        ),
        "width": _width(run),
        "steps": _steps(run),
        "lr_peak": _lr_peak(run, rate),
        "warmup_steps": Number(
            run.estimate(run.warmup_steps),
            "steps",
            f"the sweep's share of the steps ({run.base.warmup_share:.2%})",
            SWEEP_FILE,
        ),
        "batch_tokens": Number(
            Estimate(run.batch_tokens, unknown="the sweep holds one batch size"),
            "visual tokens a step",
            "as in the sweep, whose learning rates are best at this batch",
            SWEEP_FILE,
        ),
        "tokens": Number(
            run.estimate(run.tokens), "visual tokens", "steps x tokens a step", EXACT_FLOPS
        ),
        "loss": Number(
            run.forecast.loss,
            "validation loss",
            "L*(C) at the target, for the best size and learning rate",
            ISOFLOP,
        ),
    }


def _width(run: _Run) -> Number:
    wanted, chosen = run.forecast.block_params.value, block_parameters(run.model)
    return Number(
        run.estimate(lambda model: model.width),
        "model width",
        f"N = {chosen:.3g}, the nearest on the ladder to N* = {wanted:.3g}",
        ISOFLOP,
    )


def _steps(run: _Run) -> Number:
    per_token = run.base.flops_per_token(run.model)
    return Number(
        run.estimate(run.steps),
        "steps",
        f"{run.forecast.target_flops:.3g} FLOPs at {per_token:.4g} a token (exact) and "
        f"{run.batch_tokens:.4g} tokens a step; D*(C), at N*, is {run.forecast.tokens.value:.3g}",
        EXACT_FLOPS,
    )


def _lr_peak(run: _Run, rate: LearningRateLaw) -> Number:
    N, D = block_parameters(run.model), run.tokens(run.model)
    return Number(
        rate.law.predict(**rate.variables(N, D)),
        "learning rate at muP's base width",
        f"law of the best learning rates at N = {N:.3g}, D = {D:.3g}; {rate.reason}",
        OPTIMAL_RATE,
    )


def _config(base: Base, forecast: Forecast, numbers: Mapping[str, Number]) -> dict[str, Any]:
    config = copy.deepcopy(dict(base.tables))
    # A run's name is a folder's: no '+' in it.
    config["name"] = f"{base.name}-plan-{forecast.target_flops:.3g}".replace("+", "")
    config["steps"] = int(numbers["steps"].estimate.value)
    config["model"]["width"] = int(numbers["width"].estimate.value)
    config["optimizer"]["lr_peak"] = numbers["lr_peak"].estimate.value
    config["optimizer"]["warmup_steps"] = int(numbers["warmup_steps"].estimate.value)
    return config


def _warnings(forecast: Forecast, model: ModelConfig) -> tuple[str, ...]:
    found = []
    if forecast.extrapolation > MAX_EXTRAPOLATION:
        found.append(
            f"forced: {forecast.extrapolation:.4g}x beyond the largest budget, "
            f"the limit is {MAX_EXTRAPOLATION:.0f}x"
        )
    ratio = block_parameters(model) / forecast.block_params.value
    if abs(math.log(ratio)) > math.log(FAR_FROM_OPTIMUM):
        found.append(
            f"the nearest size on the ladder is {ratio:.2f} N*: widths come in steps of one head"
        )
    if forecast.loss.unknown is not None:
        found.append(f"no intervals: {forecast.loss.unknown}")
    return tuple(found)
