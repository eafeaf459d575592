"""A compute target -> the run that the laws choose, each number with interval and reason."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.findings import Finding
from planner.fitting.laws import NotFitted
from planner.planning.choice import batch_of, choose
from planner.planning.cost import Hardware
from planner.planning.distrust import (
    doubts_of_laws,
    doubts_of_run,
    doubts_of_settings,
    doubts_of_size,
    less_than_a_step,
)
from planner.planning.draft import Draft, Number, number_of_params
from planner.planning.target import Evidence, best_size
from planner.planning.tradeoff import Smaller

__all__ = ["Number", "Plan", "make_plan"]

H100 = Hardware()


@dataclass(frozen=True)
class Plan:
    """The run for one target.

    `extrapolation` is the target over the largest run. `numbers` are in the order a reader asks
    for them, without those that nothing is known of; there are none where the laws are not to be
    trusted and nothing was forced. `config` holds the tables of the run's config, None for a sweep
    of another platform and where there is no run to start. `sha256` is that of the sweep.
    """

    target_flops: float
    extrapolation: float
    forced: bool
    source: str
    sha256: str
    findings: tuple[Finding, ...]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    tradeoff: tuple[Smaller, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether a refusal stands that was not forced."""
        return not self.forced and any(finding.refuses for finding in self.findings)


def make_plan(
    fit: Evidence, target_flops: float, hardware: Hardware = H100, force: bool = False
) -> Plan:
    """Plan a run of `target_flops`; with `force` also where that is refused, as far as it can be.

    A refusal of the laws leaves no number; one of the run alone leaves the numbers, but no config.
    """
    best = best_size(fit, target_flops)
    findings = list(doubts_of_laws(fit, best, target_flops))
    if isinstance(best, NotFitted) or (_refused(findings) and not force):
        return _plan(fit, target_flops, force, findings)
    batch = batch_of(fit.hyper.batch_tokens, fit.groups)
    findings += [*doubts_of_size(fit, best), *doubts_of_settings(fit, batch)]
    choice = choose(fit, best, batch)
    if choice is None:
        findings.append(less_than_a_step(target_flops, batch.own))
        return _plan(fit, target_flops, force, findings, {"params": number_of_params(fit, best)})
    draft = Draft(fit, best, batch, choice, hardware, lr_at_hand=force)
    findings += doubts_of_run(fit, choice.chosen, best, draft.memory, hardware)
    config = _config(draft) if force or not _refused(findings) else None
    return _plan(fit, target_flops, force, findings, draft.numbers, config, draft.tradeoff())


def _plan(
    fit: Evidence,
    target_flops: float,
    force: bool,
    findings: list[Finding],
    numbers: Mapping[str, Number] | None = None,
    config: Mapping[str, Any] | None = None,
    smaller: tuple[Smaller, ...] = (),
) -> Plan:
    return Plan(
        target_flops=target_flops,
        extrapolation=target_flops / fit.largest_flops,
        forced=force,
        source=fit.sweep.source,
        sha256=fit.sweep.sha256,
        findings=tuple(findings),
        numbers=numbers or {},
        config=config,
        tradeoff=smaller,
    )


def _refused(findings: list[Finding]) -> bool:
    return any(finding.refuses for finding in findings)


def _config(draft: Draft) -> dict[str, Any] | None:
    """The base's tables with what the plan chose in their places; None where a part is missing."""
    base, rung, numbers = draft.fit.base, draft.run.rung, draft.numbers
    if base is None or rung is None or "lr" not in numbers:
        return None
    config = copy.deepcopy(dict(base.tables))
    # A run's name is a folder's: no '+' in it.
    config["name"] = f"{base.name}-plan-{draft.best.target_flops:.3g}".replace("+", "")
    config["steps"] = draft.run.steps
    config["model"]["width"] = rung.model.width
    config["data"]["packs_per_step"] = rung.packs_per_step
    config["optimizer"]["lr_peak"] = numbers["lr"].estimate.value
    config["optimizer"]["warmup_steps"] = numbers["warmup_steps"].estimate.value
    return config
