"""A compute target -> the run that the laws choose, each number with interval and reason."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.base import Base
from planner.choice import Candidate, batch_of, choose
from planner.cost import Hardware
from planner.distrust import doubts_of_laws, doubts_of_size
from planner.draft import Draft, Number, less_than_a_step, number_of_params
from planner.findings import Finding
from planner.laws import NotFitted
from planner.target import Evidence, best_size
from planner.tradeoff import Smaller

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
    findings += doubts_of_size(fit, best)
    findings += [batch.finding] if batch.finding else []
    if fit.base is not None and isinstance(fit.hyper.lr, NotFitted):
        findings.append(_no_lr_law(fit.hyper.lr))
    choice = choose(fit, best, batch)
    if choice is None:
        findings.append(less_than_a_step(target_flops, batch.own or 0.0))
        return _plan(fit, target_flops, force, findings, {"params": number_of_params(best)})
    draft = Draft(fit, best, batch, choice, hardware, lr_at_hand=force)
    findings += draft.doubts()
    config = None
    if fit.base is not None and "lr" in draft.numbers and (force or not _refused(findings)):
        config = _config(fit.base, choice.chosen, draft.numbers, target_flops)
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


def _no_lr_law(law: NotFitted) -> Finding:
    return Finding(
        "no_lr_law",
        f"no config without a law of the learning rate: {law.reason}. With --force the plan takes "
        "that of the best of the largest runs",
        refuses=True,
    )


def _config(
    base: Base, run: Candidate, numbers: Mapping[str, Number], target_flops: float
) -> dict[str, Any]:
    """The base's tables with what the plan chose in their places."""
    config = copy.deepcopy(dict(base.tables))
    # A run's name is a folder's: no '+' in it.
    config["name"] = f"{base.name}-plan-{target_flops:.3g}".replace("+", "")
    config["steps"] = run.steps
    config["model"]["width"] = numbers["width"].estimate.value
    config["data"]["packs_per_step"] = run.packs_per_step
    config["optimizer"]["lr_peak"] = numbers["lr"].estimate.value
    config["optimizer"]["warmup_steps"] = numbers["warmup_steps"].estimate.value
    return config
