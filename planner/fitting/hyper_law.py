"""The laws lr*(N, D) and batch*(N, D), and what following them costs on the sweep itself.

Form as of Kling (arXiv 2411.17470, Eq. 10 and 13) and Step Law (arXiv 2503.04715): a power law in N
and D. The constants of such laws hardly replicate; what following them costs in loss does, so the
regret on the sweep itself is the headline.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.fitting.grid import AXES, BATCH, LR, SAME_SETTING, Point
from planner.fitting.group_law import NARROW, RESAMPLES, Floats, GroupLaw, fit_group_law
from planner.fitting.hyper import Group, why_no_optimum
from planner.fitting.laws import Estimate, NotFitted


@dataclass(frozen=True, eq=False)
class HyperLaw:
    """y = coefficient · N^params_exponent · D^tokens_exponent, y being lr* or batch* in tokens.

    `bounds` counts the censored groups, which the law was not fitted to; at `violated` of them it
    contradicts the side on which their optimum lies. `other` explains the optima by the variable
    that `law` leaves out although it moved with the one it has: which of the two it is, nobody
    knows, so every interval spans both. `untold` are the ranges of variables that neither tells of;
    beyond them no interval is known.
    """

    law: GroupLaw
    bounds: int
    violated: int
    other: GroupLaw | None = None
    untold: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def coefficient(self) -> Estimate:
        found = self.law.coefficient
        return found if self.other is None else _spanning(found, self.other.coefficient)

    @property
    def params_exponent(self) -> Estimate:
        return self._exponent("params")

    @property
    def tokens_exponent(self) -> Estimate:
        return self._exponent("tokens")

    @property
    def reason(self) -> str:
        if self.other is None:
            return self.law.reason
        (name,) = self.other.variables
        return f"{self.law.reason}; intervals also hold the law in {name} alone"

    def value(self, params: float, tokens: float) -> float:
        return self.law.value(params=params, tokens=tokens)

    def predict(self, params: float, tokens: float) -> Estimate:
        """At a new (N, D), with the scatter of one new optimum in the interval."""
        at = {"params": params, "tokens": tokens}
        found = self.law.predict(**at)
        for name, (low, high) in self.untold.items():
            if not low / NARROW <= at[name] <= high * NARROW:
                text = f"the optima are at {low:.3g} to {high:.3g} {name} and tell of no other"
                return Estimate(found.value, unknown=text)
        return found if self.other is None else _spanning(found, self.other.predict(**at))

    def resampled(self, params: float, tokens: float) -> Floats | None:
        """Its value from each resample of the groups, (resamples,), to carry into what uses it."""
        return self.law.resampled(params=params, tokens=tokens)

    def _exponent(self, name: str) -> Estimate:
        if self.other is None:
            return self.law.exponent(name)
        told = self.law if name in self.law.variables else self.other
        left_out = Estimate(0.0, 0.0, 0.0)
        value = self.law.exponent(name).value
        return replace(_spanning(told.exponent(name), left_out), value=value)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON; `interval` holds [low, high] by name, null where unknown."""
        estimates = {
            "coefficient": self.coefficient,
            "params_exponent": self.params_exponent,
            "tokens_exponent": self.tokens_exponent,
        }
        return {
            **{name: estimate.value for name, estimate in estimates.items()},
            "interval": {
                name: None if estimate.low is None else [estimate.low, estimate.high]
                for name, estimate in estimates.items()
            },
            "reason": self.reason,
            "optima": self.law.optima,
            "residual_sd_ln": self.law.residual_sd,
            "bounds": {"checked": self.bounds, "violated": self.violated},
        }


@dataclass(frozen=True)
class Regret:
    """Loss of the tried run nearest to the laws' setting over the group's best, minus one.

    `diverged` counts groups where that nearest setting diverged; they have no loss to compare, and
    are in neither `mean`, nor `max`, nor `groups`.
    """

    mean: float
    max: float
    worst: Group
    groups: int
    diverged: int

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        worst = {"params": self.worst.params, "tokens": self.worst.tokens}
        counts = {"groups": self.groups, "nearest_diverged": self.diverged}
        return {"mean": self.mean, "max": self.max, "worst": worst, **counts}


@dataclass(frozen=True, eq=False)
class HyperLaws:
    """Both laws, and their regret together; None where no group tells it."""

    lr: HyperLaw | NotFitted
    batch_tokens: HyperLaw | NotFitted
    regret: Regret | None


def fit_hyper_laws(
    found: Sequence[Group], *, resamples: int = RESAMPLES, seed: int = 0
) -> HyperLaws:
    """The laws through the interior optima of `found`, with intervals by resampling the groups."""
    lr, batch_tokens = (_fit(found, axis, resamples, seed) for axis in (LR, BATCH))
    return HyperLaws(lr, batch_tokens, regret(found, lr, batch_tokens))


def _fit(found: Sequence[Group], axis: int, resamples: int, seed: int) -> HyperLaw | NotFitted:
    optima = [(g, value) for g in found if (value := g.optimum[axis]) is not None]
    if not optima:
        return NotFitted(why_no_optimum(found, axis))
    columns = {"params": [g.params for g, _ in optima], "tokens": [g.tokens for g, _ in optima]}
    law, other = (
        fit_group_law(
            [value for _, value in optima],
            variables,
            [g.variance(axis) for g, _ in optima],
            resamples=resamples,
            seed=seed,
        )
        for variables in (columns, {"params": columns["params"]})
    )
    either = law.variables == ("tokens",) and other.variables == ("params",)
    told = (*law.variables, "params") if either else law.variables
    untold = {name: (min(x), max(x)) for name, x in columns.items() if name not in told}
    checks = [_agrees(law, g, axis) for g in found if g.bounds[axis] != (None, None)]
    return HyperLaw(law, len(checks), checks.count(False), other if either else None, untold)


def _spanning(first: Estimate, second: Estimate) -> Estimate:
    """The first value, with an interval that holds both."""
    if first.low is None or first.high is None:
        return first
    if second.low is None or second.high is None:
        return Estimate(first.value, unknown=second.unknown)
    return Estimate(first.value, min(first.low, second.low), max(first.high, second.high))


def _agrees(law: GroupLaw, group: Group, axis: int) -> bool:
    value = law.value(params=group.params, tokens=group.tokens)
    low, high = group.bounds[axis]
    return (low is None or value > low) and (high is None or value < high)


def regret(
    found: Sequence[Group], lr: HyperLaw | NotFitted, batch_tokens: HyperLaw | NotFitted
) -> Regret | None:
    """What following the laws costs on the groups with two settings or more to choose from.

    An axis without a law, or one that a group did not record, is left at its best.
    """
    laws = {LR: lr, BATCH: batch_tokens}
    fitted = {axis: law for axis, law in laws.items() if isinstance(law, HyperLaw)}
    costs: list[tuple[float, Group]] = []
    diverged = 0
    for group in found:
        targets = {axis: law.value(group.params, group.tokens) for axis, law in fitted.items()}
        nearest = _nearest(group, targets)
        if len(group.grid.stable) < 2 or not nearest:
            continue
        losses = [point.loss for point in nearest if point.loss is not None]
        if losses:
            costs.append((min(losses) / group.grid.best_loss - 1, group))
        else:
            diverged += 1
    if not costs:
        return None
    worst, where = max(costs, key=lambda cost: cost[0])
    mean = math.fsum(cost for cost, _ in costs) / len(costs)
    return Regret(mean, worst, where, len(costs), diverged)


def _nearest(group: Group, targets: dict[int, float]) -> list[Point]:
    """The tried settings nearest to the targets: one, or all that differ on another axis alone."""
    told = [axis for axis in targets if group.grid.points[0].values[axis] is not None]
    if not told:
        return []
    distances = [
        math.dist([math.log(point.setting(a)) for a in told], [math.log(targets[a]) for a in told])
        for point in group.grid.points
    ]
    limit = min(distances) + (0 if len(told) == len(AXES) else min(SAME_SETTING) / 2)
    return [
        p for p, distance in zip(group.grid.points, distances, strict=True) if distance <= limit
    ]
