"""What a sweep's own numbers say against it.

Too few budgets, sizes or token counts only warn: what they do not carry is refused where it is
asked for (no surface, no plan), and what they do carry is told.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from planner.findings import Finding
from planner.reading.runs import Accounting, Run, Stopped, counted
from planner.reading.size_checks import flops_agree, params_definition
from planner.reading.unit_checks import BLOWN_LIMIT, batch_units, loss_units

FEW_BUDGETS = 3
BUDGET_TOLERANCE = 0.05
SIZE_TOLERANCE = 0.01
COLLINEAR_LIMIT = 0.99
NEIGHBOURS = 5  # pairs of N and D that tell what loss to expect at another

Cell = tuple[float, float]  # N and D


def check(
    runs: Sequence[Run], stopped: Sequence[Stopped], accounting: Accounting, left_out: int = 0
) -> list[Finding]:
    """Findings on a whole sweep, the refusing ones first.

    So many rows were `left_out` because their FLOPs contradict their N and D.
    """
    found = [
        *_few_budgets(runs),
        *_one_size(runs),
        *_one_token_count(runs),
        *_collinear(runs),
        *_one_learning_rate(runs),
        *loss_units(runs),
        *batch_units(runs),
        *params_definition(runs, accounting),
        *flops_agree(runs, accounting, left_out),
        *_repeated(runs),
        *_diverged(runs, stopped),
    ]
    return sorted(found, key=lambda finding: not finding.refuses)


def distinct(values: Sequence[float], tolerance: float) -> list[float]:
    """Rising values, of each stretch within `tolerance` of its lowest only that."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value > kept[-1] * (1 + tolerance):
            kept.append(value)
    return kept


def _few_budgets(runs: Sequence[Run]) -> list[Finding]:
    budgets = distinct([run.budget_flops or run.flops for run in runs], BUDGET_TOLERANCE)
    if len(budgets) > FEW_BUDGETS:
        return []
    listed = ", ".join(f"{budget:.3g}" for budget in budgets)
    text = (
        f"{counted(len(budgets), 'budget')} ({listed} FLOPs): an exponent over "
        f"compute needs more than {FEW_BUDGETS} to show how sure it is. Add budgets, wide apart "
        "rather than many (planner design)"
    )
    return [Finding("few_budgets", text)]


def _one_size(runs: Sequence[Run]) -> list[Finding]:
    sizes = distinct([run.params for run in runs], SIZE_TOLERANCE)
    if len(sizes) > 1:
        return []
    text = (
        f"one model size (params {sizes[0]:.4g}): nothing here says how the loss depends on N; "
        "at least two sizes are needed, four or more to know how surely. Add sizes"
    )
    return [Finding("one_size", text)]


def _one_token_count(runs: Sequence[Run]) -> list[Finding]:
    counts = distinct([run.tokens for run in runs], SIZE_TOLERANCE)
    if len(counts) > 1:
        return []
    text = (
        f"one token count ({counts[0]:.4g}): nothing here says how the loss depends on D; at "
        "least two are needed, four or more to know how surely. Add runs of other lengths"
    )
    return [Finding("one_token_count", text)]


def _collinear(runs: Sequence[Run]) -> list[Finding]:
    """Fixed tokens per parameter: N and D then explain the same differences."""
    N, D = (np.log([getattr(run, name) for run in runs]) for name in ("params", "tokens"))
    if len(distinct(np.exp(N).tolist(), SIZE_TOLERANCE)) < 2 or np.ptp(D) == 0:
        return []
    correlation = float(np.corrcoef(N, D)[0, 1])
    if abs(correlation) <= COLLINEAR_LIMIT:
        return []
    per_param = np.exp(D - N)
    ratio = f"tokens per parameter {per_param.min():.3g} to {per_param.max():.3g}"
    text = (
        f"ln N and ln D have correlation {correlation:+.4f} (limit {COLLINEAR_LIMIT}; {ratio}): "
        "what N and what D do to the loss cannot be told apart, so alpha, beta and the best N of "
        "a budget stay open. Add runs with other tokens per parameter at two sizes or more"
    )
    return [Finding("collinear_tokens_per_param", text)]


def _one_learning_rate(runs: Sequence[Run]) -> list[Finding]:
    rates = {run.lr for run in runs if run.lr is not None}
    if len(rates) != 1 or len(runs) < 2:
        return []
    text = (
        f"one learning rate ({rates.pop():.3g}) for all runs: no law of it can be fitted, and "
        "sizes it does not suit look worse than they are. Add two rates or more at each size"
    )
    return [Finding("one_learning_rate", text)]


def _repeated(runs: Sequence[Run]) -> list[Finding]:
    """Runs equal in all but the seed: their spread is the noise no law gets below."""
    cells: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for run in runs:
        key = (run.params, run.tokens, run.lr, run.batch_tokens, run.width, run.depth, run.steps)
        cells[key].append(run.loss)
    repeated = [losses for losses in cells.values() if len(losses) > 1]
    if not repeated:
        return []
    spreads = [float(np.std(losses, ddof=1) / np.mean(losses)) for losses in repeated]
    doubt = (
        ""
        if all(run.lr is not None for run in runs)
        else ("; as no lr is mapped, they may differ in more than the seed")
    )
    text = (
        f"{sum(map(len, repeated))} runs repeat {len(repeated)} settings with different losses; "
        f"the relative standard deviation within a setting is {np.median(spreads):.2%} (median), "
        f"an estimate of the noise between seeds{doubt}"
    )
    return [Finding("repeated_runs", text)]


def _diverged(runs: Sequence[Run], stopped: Sequence[Stopped]) -> list[Finding]:
    """How many runs diverged, and the lowest learning rate that did."""
    gone = [run for run in stopped if run.status == "diverged"]
    blown = blown_runs(runs)
    if not gone and not blown:
        return []
    parts = [
        *([f"{len(gone)} without a loss"] if gone else []),
        *([f"{len(blown)} above {BLOWN_LIMIT} times the best of their N and D"] if blown else []),
    ]
    best_lr = {(best.params, best.tokens): best.lr for best in _best(runs).values()}
    rates = [run.lr for run in gone if run.lr is not None]
    for run in blown:
        best = best_lr[run.params, run.tokens]
        if run.lr is not None and best is not None and run.lr > best:
            rates.append(run.lr)
    bound = f"; the lowest learning rate that did is {min(rates):.3g}" if rates else ""
    text = f"{counted(len(gone) + len(blown), 'run')} diverged ({', '.join(parts)}){bound}"
    return [Finding("diverged", text)]


def blown_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs that ended, but with over 1.5 times the best loss of their N and D.

    A best loss that stands alone far below its own N and D and its neighbours makes no other run
    diverged: there the next one counts.
    """
    best = _best(runs)
    return [r for r in runs if r.loss > BLOWN_LIMIT * best[r.params, r.tokens].loss]


def _best(runs: Sequence[Run]) -> dict[Cell, Run]:
    """The best run of each N and D that its neighbours do not belie."""
    ranked: dict[Cell, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.loss):
        ranked[run.params, run.tokens].append(run)
    lone = {cell for cell, found in ranked.items() if _stands_alone(found)}
    usual = {cell: found[0].loss for cell, found in ranked.items() if cell not in lone}
    return {
        cell: found[1] if cell in lone and _belied(found, cell, usual) else found[0]
        for cell, found in ranked.items()
    }


def _stands_alone(ranked: Sequence[Run]) -> bool:
    return len(ranked) > 1 and ranked[1].loss > BLOWN_LIMIT * ranked[0].loss


def _belied(ranked: Sequence[Run], cell: Cell, usual: Mapping[Cell, float]) -> bool:
    """Whether the nearest N and D say that the second loss is the true one, not the first."""
    nearest = sorted(usual, key=lambda other: math.dist(*(map(math.log, c) for c in (cell, other))))
    if not nearest:
        return False
    level = float(np.median([usual[other] for other in nearest[:NEIGHBOURS]]))
    first, second = (abs(math.log(run.loss / level)) for run in ranked[:2])
    return level > BLOWN_LIMIT * ranked[0].loss and second < first
