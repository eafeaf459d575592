"""Which runs a target could pay for: a size, its whole steps, its batch; and which of them is best.

On the platform's ladder that is one candidate a rung. A sweep of another platform has no ladder:
there the candidate is the best size itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.findings import Finding
from planner.fitting.base import SAME_BATCH, Base, Size
from planner.fitting.hyper import Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import Surface
from planner.planning.target import BestSize, Evidence
from scalewright.model.shape import ModelConfig


@dataclass(frozen=True, slots=True)
class Rung:
    """What the platform calls a candidate: its model, and the packs of a step."""

    model: ModelConfig
    packs_per_step: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run of N parameters on D tokens.

    `batch_tokens` and `steps` are None where no batch is known, `rung` off the ladder.
    """

    params: float
    tokens: float
    flops_per_token: float
    batch_tokens: float | None = None
    steps: int | None = None
    rung: Rung | None = None

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch law, or the one batch there is; neither where the table has no batches."""

    law: HyperLaw | None
    own: float | None
    finding: Finding | None

    def tokens(self, params: float, tokens: float) -> float | None:
        """Tokens of a step at (N, D)."""
        return self.own if self.law is None else self.law.value(params, tokens)


def batch_of(law: HyperLaw | NotFitted, groups: Sequence[Group]) -> Batch:
    """The law where the sweep carries one, else the sweep's own batch.

    Where batches differ and no law is fitted, it is that of the best run of the largest group.
    """
    if isinstance(law, HyperLaw):
        return Batch(law, None, None)
    seen = [run.batch_tokens for group in groups for run in group.runs if run.batch_tokens]
    if not seen:
        text = "the table has no batch_tokens, so neither batch nor steps are planned; map it"
        return Batch(None, None, Finding("no_batch", text))
    if max(seen) <= SAME_BATCH * min(seen):
        own = math.fsum(seen) / len(seen)
        text = (
            f"the sweep holds one batch ({own:.4g} tokens), so the plan keeps it: its learning "
            "rates are best at this batch alone. Sweep batches to plan another"
        )
        return Batch(None, own, Finding("batch_not_swept", text))
    own = batch_of_largest(groups)
    text = (
        f"no law of the batch ({law.reason}); the plan takes that of the best of the largest runs, "
        f"{own:.4g} tokens"
    )
    return Batch(None, own, Finding("no_batch_law", text))


def batch_of_largest(groups: Sequence[Group]) -> float:
    """Of the run with the lowest loss in the group of most FLOPs that knows its batch."""
    known = [
        (group.flops, -run.loss, run.batch_tokens)
        for group in groups
        for run in group.runs
        if run.batch_tokens is not None
    ]
    return max(known)[2]


def lr_of_largest(groups: Sequence[Group]) -> float | None:
    """Of the run with the lowest loss in the group of most FLOPs that knows its learning rate."""
    known = [
        (group.flops, -run.loss, run.lr)
        for group in groups
        for run in group.runs
        if run.lr is not None
    ]
    return max(known)[2] if known else None


@dataclass(frozen=True)
class Choice:
    """The run that is planned, and those at the ends of N*'s interval, None where it has none.

    `others` are all that there was to choose from, off the ladder just the one chosen.
    """

    chosen: Candidate
    ends: tuple[Candidate, Candidate] | None
    others: tuple[Candidate, ...]


def choose(fit: Evidence, best: BestSize, batch: Batch) -> Choice | None:
    """The run of the lowest fitted loss; None where the target pays for no step of any rung."""
    if fit.base is None:
        return _off_ladder(fit, best, batch)
    per_pack = fit.base.tokens_per_pack(
        run.batch_tokens for group in fit.groups for run in group.runs if run.batch_tokens
    )
    rungs = [_rung(fit.base, size, best.target_flops, batch, per_pack) for size in fit.base.ladder]
    paid = tuple(rung for rung in rungs if rung.steps)
    if not paid:
        return None
    ends = _ends(best.params)
    return Choice(
        chosen=_lowest(paid, best),
        ends=None if ends is None else (nearest(paid, ends[0]), nearest(paid, ends[1])),
        others=paid,
    )


def nearest(candidates: Sequence[Candidate], params: float) -> Candidate:
    """By ratio of N."""
    wanted = math.log(params)
    return min(candidates, key=lambda candidate: abs(math.log(candidate.params) - wanted))


def at_size(fit: Evidence, target_flops: float, batch: Batch, params: float) -> Candidate:
    """The run of this very size off the ladder."""
    tokens = fit.frontier.tokens(params, target_flops)
    batch_tokens = batch.tokens(params, tokens)
    return Candidate(
        params=params,
        tokens=tokens,
        flops_per_token=target_flops / tokens,
        batch_tokens=batch_tokens,
        steps=None if batch_tokens is None else round(tokens / batch_tokens),
    )


def _off_ladder(fit: Evidence, best: BestSize, batch: Batch) -> Choice:
    chosen = at_size(fit, best.target_flops, batch, best.params.value)
    ends = _ends(best.params)
    if ends is None:
        return Choice(chosen, None, (chosen,))
    # A law through few minima can have an interval of hundreds of decades.
    smallest, largest = fit.frontier.smallest_params, fit.frontier.largest_params
    low, high = (
        at_size(fit, best.target_flops, batch, min(max(params, smallest), largest))
        for params in ends
    )
    return Choice(chosen, (low, high), (chosen,))


def _rung(
    base: Base, size: Size, target_flops: float, batch: Batch, tokens_per_pack: float
) -> Candidate:
    """Whole steps within the target; the batch nearest to the law's that workers can share."""
    tokens = target_flops / size.flops_per_token
    packs = base.packs_per_step
    if batch.law is not None:
        packs = base.packs_for(batch.law.value(size.block_params, tokens) / tokens_per_pack)
    batch_tokens = packs * tokens_per_pack
    steps = math.floor(tokens / batch_tokens)
    return Candidate(
        params=size.block_params,
        tokens=steps * batch_tokens,
        flops_per_token=size.flops_per_token,
        batch_tokens=batch_tokens,
        steps=steps,
        rung=Rung(size.model, packs),
    )


def _lowest(candidates: Sequence[Candidate], best: BestSize) -> Candidate:
    if best.surface is None:
        return nearest(candidates, best.params.value)
    losses = _losses(best.surface, candidates)
    return candidates[int(np.argmin(losses))]


def _losses(surface: Surface, candidates: Sequence[Candidate]) -> list[float]:
    return [surface.loss(candidate.params, candidate.tokens) for candidate in candidates]


def _ends(params: Estimate) -> tuple[float, float] | None:
    return None if params.low is None or params.high is None else (params.low, params.high)
