"""Do all rows count loss and batch in one unit?

The searches for two units in one column are built to stay silent on honest sweeps: both units must
hold many rows, and hardly any may lie between.
"""

import math
from collections.abc import Sequence

import numpy as np

from planner.findings import Finding
from planner.reading.mixtures import (
    LEAST_SHARE,
    Floats,
    Mask,
    Mixture,
    known_step,
    quadratic,
    robust_fit,
)
from planner.reading.runs import Run, rows_in_words

BITS_PER_NAT = 1 / math.log(2)
BLOWN_LIMIT = 1.5  # times the best loss of the same N and D: diverged, whatever the status says
SAMPLES_LIMIT = 16_384  # a batch in samples is below
STEPS_LIMIT = 5e6  # more steps than anyone trains for
MIXED_STEPS_LIMIT = 2e5  # enough, where the rest of the table has a hundredth of them
BATCH_APART = 100.0  # between the medians of samples and tokens
BATCH_GAP = 8.0  # between the largest in samples and the smallest in tokens
PASSES = 8.0  # tokens per (batch x steps); 1 where the batch is in tokens

_LEAST_ROWS = 20
_MOST_BUDGETS = 8  # told apart as such; more are taken by equal shares of the rows
_MOST_BETWEEN = 0.25  # rows halfway between two levels, per row of the smaller one
_TWO_BETTER = 3.0  # times nearer to the rows than one level
_STEP = math.log(BITS_PER_NAT)


def loss_units(runs: Sequence[Run]) -> list[Finding]:
    """Part of the losses 1/ln 2 = 1.4427 times the rest at like N, D, lr and batch: bits."""
    usable = _not_blown(runs)
    if len(usable) < _LEAST_ROWS:
        return []
    names = ("params", "tokens", "lr", "batch_tokens")
    columns = [[getattr(run, name) for run in usable] for name in names]
    X = quadratic([np.log(column) for column in columns if None not in column])
    y = np.log([run.loss for run in usable])
    mixture = known_step(X, y, _STEP, _whole_budgets(usable))
    if not _two_levels(mixture, y - X @ robust_fit(X, y)) or _by_lr(usable, mixture):
        return []
    above = [run.row for run, upper in zip(usable, mixture.upper, strict=True) if upper]
    return [
        Finding(
            "loss_units_mixed",
            f"{len(above)} of {len(runs)} losses lie a factor {BITS_PER_NAT:.3f} (1/ln 2) above "
            f"the rest at like N and D ({rows_in_words(above)}): bits among nats. Convert them, "
            "or fit one unit with --where",
            refuses=True,
        )
    ]


def _whole_budgets(runs: Sequence[Run]) -> list[Mask]:
    """The rows from each budget on, those below it, and those of it alone.

    A curve follows a step between budgets half the way: no residual from it shows the rows beyond.
    """
    log_flops = np.log([run.flops for run in runs])
    budgets = np.unique(log_flops.round(1))
    if len(budgets) > _MOST_BUDGETS:
        budgets = np.unique(np.quantile(log_flops, np.linspace(0, 1, _MOST_BUDGETS + 1)[:-1]))
    place = np.searchsorted(budgets, log_flops.round(1), side="right")
    above = [place > at for at in range(1, len(budgets))]
    alone = [place == at for at in range(2, len(budgets))]
    return [*above, *(~mask for mask in above), *alone]


def _not_blown(runs: Sequence[Run]) -> list[Run]:
    """Without runs that diverged by their loss, even where the best one is in the smaller unit."""
    best: dict[tuple[float, float], float] = {}
    for run in runs:
        key = (run.params, run.tokens)
        best[key] = min(run.loss, best.get(key, run.loss))
    limit = BLOWN_LIMIT * BITS_PER_NAT
    return [run for run in runs if run.loss <= limit * best[run.params, run.tokens]]


def _two_levels(mixture: Mixture, from_one: Floats) -> bool:
    """Rows near either level abound, few are between, and one level leaves far more to explain.

    Near is within a quarter of the step; `from_one` are the residuals from a single level.
    """
    above = mixture.residuals + _STEP * mixture.upper
    fewest = min(int((np.abs(above - level) < _STEP / 4).sum()) for level in (0.0, _STEP))
    between = int((np.abs(above - _STEP / 2) <= _STEP / 4).sum())
    one, two = (np.minimum(np.abs(r), _STEP).mean() for r in (from_one, mixture.residuals))
    abound = mixture.balanced and fewest >= LEAST_SHARE * len(above)
    return bool(abound and between <= _MOST_BETWEEN * fewest and one >= _TWO_BETTER * two)


def _by_lr(runs: Sequence[Run], mixture: Mixture) -> bool:
    """The higher losses go with learning rates beyond those of the rest: no matter of units."""
    upper = [run.lr for run, is_upper in zip(runs, mixture.upper, strict=True) if is_upper]
    lower = [run.lr for run, is_upper in zip(runs, mixture.upper, strict=True) if not is_upper]
    if None in upper or None in lower:
        return False
    low, high = np.quantile(np.array(lower, float), [0.1, 0.9])
    return not low <= float(np.median(np.array(upper, float))) <= high


def batch_units(runs: Sequence[Run]) -> list[Finding]:
    """Batches in samples: of some rows, or of all."""
    known = sorted((run for run in runs if run.batch_tokens), key=_batch)
    if not known:
        return []
    batches = np.array([_batch(run) for run in known])
    return _some_in_samples(known, batches) or _all_in_samples(known, batches)


def _some_in_samples(runs: Sequence[Run], batches: Floats) -> list[Finding]:
    """`runs` in order of their batch, cut where neighbours are farthest apart."""
    if len(runs) < 2:
        return []
    cut = int(np.argmax(batches[1:] / batches[:-1])) + 1
    small, large = batches[:cut], batches[cut:]
    near = large[0] / small[-1] < BATCH_GAP or np.median(large) / np.median(small) < BATCH_APART
    if near or not _looks_like_samples(runs[:cut], small, MIXED_STEPS_LIMIT):
        return []
    if _looks_like_samples(runs[cut:], large, STEPS_LIMIT):
        return []
    return [
        Finding(
            "batch_units_mixed",
            f"{cut} of {len(runs)} batches are at most {small[-1]:.6g} "
            f"({rows_in_words(sorted(run.row for run in runs[:cut]))}), the rest at least "
            f"{large[0]:.6g}, {np.median(large) / np.median(small):.0f} times as large in the "
            "median: samples among tokens. Multiply those by the tokens of a sample, or fit one "
            "unit with --where",
            refuses=True,
        )
    ]


def _all_in_samples(runs: Sequence[Run], batches: Floats) -> list[Finding]:
    if not _looks_like_samples(runs, batches, STEPS_LIMIT):
        return []
    return [
        Finding(
            "batch_in_samples",
            f"batches of {batches[0]:.6g} to {batches[-1]:.6g} would take "
            f"{np.median([run.tokens / _batch(run) for run in runs]):.2g} steps (median; at most "
            f"{STEPS_LIMIT:.0e} is usual): they look like samples. Map the tokens, as in "
            '--map batch_tokens="batch*2048"',
        )
    ]


def _looks_like_samples(runs: Sequence[Run], batches: Floats, most_steps: float) -> bool:
    """Small numbers that the tokens of the runs would take too many steps with.

    They need not be whole: a mean over packs, or tokens divided by those of a sample, is none.
    """
    if batches[-1] >= SAMPLES_LIMIT:
        return False
    tokens = np.array([run.tokens for run in runs])
    steps = [run.steps for run in runs]
    if None in steps:
        return bool(np.median(tokens / batches) > most_steps)
    return bool(np.median(tokens / batches / np.array(steps, float)) > PASSES)


def _batch(run: Run) -> float:
    return run.batch_tokens or math.nan
