"""Over-training: what a smaller model than the best one gives up, and what it then saves.

Training FLOPs are least at N*, but every use of the model costs in proportion to its size. A
smaller one trained further reaches the same loss for more training FLOPs (Hoffmann et al.,
arXiv 2203.15556, section 3; De Vries, "Go smol or go home", 2023), until its size alone stands
in the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.fitting.bands import Resamples, Spread, band, finite_exp, log_band, spread_of
from planner.fitting.laws import Estimate
from planner.fitting.surface import Floats, Surfaces
from planner.planning.choice import Candidate, nearest

SHARES = (2.0, 1.0, 1 / 2, 1 / 4, 1 / 8)
FORWARD_SHARE = 1 / 3  # of the training FLOPs of a token: the backward pass costs twice the forward
UNREACHED = 0.05  # a share of the resamples that leaves no upper end to a 90% interval
SOURCE = "loss surface at equal training FLOPs; inference by forward FLOPs"


@dataclass(frozen=True)
class Smaller:
    """Another size in place of the one planned, trained for the same FLOPs or to the same loss.

    `ratio` is its N over the planned one's. `loss_given_up` is at equal training FLOPs.
    `equal_loss_flops` and `equal_loss_tokens` train it to the planned run's loss, None where no
    number of tokens does. `inference_flops_per_token` is of one evaluation of the model,
    `inference_ratio` over the planned one's. `break_even_tokens` have been generated when
    training to equal loss and using it has become cheaper than the planned model, None where it
    never does.
    """

    params: float
    width: int | None
    ratio: float
    tokens: float
    loss: float
    loss_given_up: Estimate
    equal_loss_flops: Estimate | None
    equal_loss_tokens: float | None
    inference_flops_per_token: float
    inference_ratio: float
    break_even_tokens: Estimate | None
    evaluations: int
    reason: str
    source: str = SOURCE


def tradeoff(
    resamples: Resamples,
    planned: Candidate,
    others: Sequence[Candidate],
    evaluations: int = 1,
) -> tuple[Smaller, ...]:
    """The sizes nearest to 2, 1, 1/2, 1/4 and 1/8 of the planned one's, largest first.

    `others` cost what the planned run does. `evaluations` is how often the model is evaluated for
    each generated token: once by a model that writes one token after the other.
    """
    chosen = [nearest(others, planned.params * share) for share in SHARES]
    distinct = {candidate.params: candidate for candidate in chosen}
    return tuple(_smaller(resamples, planned, each, evaluations) for each in distinct.values())


def _smaller(
    resamples: Resamples, planned: Candidate, other: Candidate, evaluations: int
) -> Smaller:
    given_up = _given_up(resamples, planned, other)
    flops = _equal_loss_flops(resamples, planned, other)
    forward = other.flops_per_token * FORWARD_SHARE
    saved = (planned.flops_per_token * FORWARD_SHARE - forward) * evaluations
    return Smaller(
        params=other.params,
        width=None if other.rung is None else other.rung.model.width,
        ratio=other.params / planned.params,
        tokens=other.tokens,
        loss=resamples.huber.surface().loss(other.params, other.tokens),
        loss_given_up=given_up,
        equal_loss_flops=flops,
        equal_loss_tokens=None if flops is None else flops.value / other.flops_per_token,
        inference_flops_per_token=forward,
        inference_ratio=other.flops_per_token / planned.flops_per_token,
        break_even_tokens=_break_even(flops, planned.flops, saved),
        evaluations=evaluations,
        reason=_reason(planned, other, given_up, flops),
    )


def _given_up(resamples: Resamples, planned: Candidate, other: Candidate) -> Estimate:
    """L(other) - L(planned): no noise, since it is the same for both on the mean of many runs."""

    def quantity(surfaces: Surfaces) -> Floats:
        losses = finite_exp(
            surfaces.log_loss(
                np.array([planned.params, other.params]), np.array([planned.tokens, other.tokens])
            )
        )
        return np.asarray(losses[:, 1] - losses[:, 0])

    if other == planned:
        return Estimate(0.0, 0.0, 0.0)
    spread = spread_of(resamples, quantity)
    return band(quantity(resamples.huber), resamples.stretch, spread)


def _equal_loss_flops(
    resamples: Resamples, planned: Candidate, other: Candidate
) -> Estimate | None:
    if other == planned:
        return Estimate(planned.flops, unknown="it is the planned run")

    def quantity(surfaces: Surfaces) -> Floats:
        return log_equal_loss_tokens(surfaces, planned, other.params)

    samples = quantity(resamples.huber) + np.log(other.flops_per_token)
    if not np.isfinite(samples[0]):
        return None
    unreached = float(np.mean(~np.isfinite(samples)))
    if unreached > UNREACHED:
        text = f"{unreached:.0%} of the resamples never reach that loss at this size"
        return Estimate(float(finite_exp(samples)[0]), unknown=text)
    spread: Spread = spread_of(resamples, quantity)
    return log_band(finite_exp(samples), resamples.stretch, spread)


def log_equal_loss_tokens(surfaces: Surfaces, planned: Candidate, params: float) -> Floats:
    """ln of the tokens on which a model of `params` reaches the planned loss, (R,).

    NaN where E + A N^-alpha alone is above it.
    """
    ln_e, ln_a, ln_b, alpha, beta = surfaces.theta.T
    at = np.array([planned.params]), np.array([planned.tokens])
    target = finite_exp(surfaces.log_loss(*at)[:, 0])
    n = np.log(params) - surfaces.centre[0]
    room = target - finite_exp(ln_e) - finite_exp(ln_a - alpha * n)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_room = np.log(np.where(room > 0, room, np.nan))
    return np.asarray((ln_b - log_room) / beta + surfaces.centre[1])


def _break_even(flops: Estimate | None, planned_flops: float, saved: float) -> Estimate | None:
    """Extra training FLOPs over what each generated token saves."""
    if flops is None or saved <= 0:
        return None
    low, high = (
        None if bound is None else max(bound - planned_flops, 0.0) / saved
        for bound in (flops.low, flops.high)
    )
    return Estimate(max(flops.value - planned_flops, 0.0) / saved, low, high, flops.unknown)


def _reason(
    planned: Candidate, other: Candidate, given_up: Estimate, flops: Estimate | None
) -> str:
    if other == planned:
        return "the planned run"
    cost = other.flops_per_token / planned.flops_per_token
    used = f"{cost:.2f}x the inference cost, {given_up.value:+.4g} loss for the same training"
    if flops is None:
        return f"{used}; never reaches the planned loss"
    return f"{used}; {flops.value / planned.flops:.2f}x the training for the same loss"
