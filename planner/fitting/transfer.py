"""Does the best learning rate of a small width serve a large one? The test of muP on a sweep.

Under muP (arXiv 2203.03466) lr* should not move with width. A grid step of 2 hides a move or shows
one that is none, so the interpolated optima are regressed on width: the verdict has an interval.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from statistics import median
from typing import Any

from planner.fitting.grid import LR
from planner.fitting.group_law import NARROW, RESAMPLES, SLOPE_MIN_OPTIMA, GroupLaw, fit_group_law
from planner.fitting.hyper import Group, why_no_optimum
from planner.fitting.laws import Estimate, NotFitted

SAME_FACTOR = 1.5  # lr* within this factor either way over all widths: one sweep serves all


class Verdict(Enum):
    """What the interval of the factor says."""

    TRANSFERS = "transfers"
    MOVES = "moves"
    UNDECIDED = "undecided"


@dataclass(frozen=True, eq=False)
class Transfer:
    """How lr* depends on width.

    `exponent` is d ln lr* / d ln width, at equal tokens where `law` holds tokens; `factor` is lr*
    at the widest over that at the narrowest of `widths`. `noise_factor` is the shift of the
    learning rate that costs one standard deviation of the loss, None where that is not known.
    """

    verdict: Verdict
    law: GroupLaw
    exponent: Estimate
    factor: Estimate
    widths: tuple[int, int]
    noise_factor: float | None
    text: str

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict.value,
            "exponent": asdict(self.exponent),
            "factor": asdict(self.factor),
            "widths": list(self.widths),
            "held": [name for name in self.law.variables if name != "width"],
            "optima": self.law.optima,
            "noise_factor": self.noise_factor,
            "text": self.text,
        }


def transfer(
    found: Sequence[Group], *, resamples: int = RESAMPLES, seed: int = 0
) -> Transfer | NotFitted:
    """The verdict over the groups whose width is known and whose lr* is interior.

    lr* is regressed on width, and on tokens where the optima can tell the two apart.
    """
    optima = [group for group in found if group.width is not None and group.lr is not None]
    widths = [float(group.width) for group in optima if group.width is not None]
    tokens = [group.tokens for group in optima]
    if len(optima) < SLOPE_MIN_OPTIMA or max(widths) < NARROW * min(widths):
        return NotFitted(_why_no_verdict(found, widths))
    law = fit_group_law(
        [group.lr for group in optima if group.lr is not None],
        {"tokens": tokens, "width": widths},
        [group.variance(LR) for group in optima],
        resamples=resamples,
        seed=seed,
    )
    exponent = law.exponent("width")
    factor = _power(max(widths) / min(widths), exponent)
    noise_factor = _noise_factor(optima)
    verdict = _judge(factor, noise_factor)
    held = "tokens" in law.variables or max(tokens) < NARROW * min(tokens)
    ends = (int(min(widths)), int(max(widths)))
    text = f"{_change(factor, ends, held)}; {_advice(verdict, factor, ends, law.optima)}"
    return Transfer(verdict, law, exponent, factor, ends, noise_factor, f"{verdict.value}: {text}")


def _why_no_verdict(found: Sequence[Group], widths: Sequence[float]) -> str:
    if all(group.width is None for group in found):
        return "the table has no width: add the column width"
    if not widths:
        return why_no_optimum([group for group in found if group.width is not None], LR)
    distinct = sorted(set(widths))
    listed = ", ".join(f"{width:g}" for width in distinct)
    return (
        f"{len(widths)} interior optima of the learning rate, at width {listed}: a verdict needs "
        f"{SLOPE_MIN_OPTIMA}, over widths that differ; sweep at least 3 rates at more widths"
    )


def _power(ratio: float, exponent: Estimate) -> Estimate:
    """ratio^exponent for a ratio above 1."""
    if exponent.low is None or exponent.high is None:
        return Estimate(ratio**exponent.value, unknown=exponent.unknown)
    return Estimate(ratio**exponent.value, ratio**exponent.low, ratio**exponent.high)


def _noise_factor(optima: Sequence[Group]) -> float | None:
    """exp of the median shift in ln lr that raises a quadratic by the noise of the loss."""
    shifts = [
        math.sqrt(2 * group.noise / group.lr_curvature)
        for group in optima
        if group.noise is not None and group.lr_curvature is not None
    ]
    return math.exp(median(shifts)) if shifts else None


def _judge(factor: Estimate, noise_factor: float | None) -> Verdict:
    if factor.low is None or factor.high is None:
        return Verdict.UNDECIDED
    if factor.low >= 1 / SAME_FACTOR and factor.high <= SAME_FACTOR:
        return Verdict.TRANSFERS
    moved = factor.low > 1 or factor.high < 1
    matters = max(factor.value, 1 / factor.value) > (noise_factor or 1)
    return Verdict.MOVES if moved and matters else Verdict.UNDECIDED


def _change(factor: Estimate, widths: tuple[int, int], held: bool) -> str:
    seen = f"x{factor.value:.2f}"
    if factor.low is not None and factor.high is not None:
        seen += f" ({factor.low:.2f} to {factor.high:.2f})"
    at = "at equal tokens" if held else "along the sweep, where tokens change too"
    return f"from width {widths[0]} to {widths[1]} lr* changes by {seen} {at}"


def _advice(verdict: Verdict, factor: Estimate, widths: tuple[int, int], optima: int) -> str:
    if verdict is Verdict.TRANSFERS:
        return f"tune at the small width, it stays within x{SAME_FACTOR} either way"
    if verdict is Verdict.MOVES:
        return "tune at the target width, or follow the law of N and D"
    ends = f"sweep the learning rate of more groups at widths {widths[0]} and {widths[1]}"
    if factor.low is None or factor.high is None:
        return ends
    # An interval narrows with the root of the number of optima.
    value = abs(math.log(factor.value))
    half = math.log(factor.high / factor.low) / 2
    wanted = math.ceil(optima * (half / max(math.log(SAME_FACTOR) - value, value)) ** 2)
    if wanted <= optima:
        return "the change costs less loss than the noise between runs"
    return f"about {wanted} interior optima instead of {optima} would decide it: {ends}"
