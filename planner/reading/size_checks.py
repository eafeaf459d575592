"""Do all rows count parameters alike, and do their FLOPs agree with N and D?"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from planner.findings import Finding
from planner.reading.mixtures import Floats, Mixture, polynomial, robust_fit, two_curves
from planner.reading.runs import Accounting, Run, rows_in_words

FLOPS_TOLERANCE = 0.10  # from C = 6ND, where the table is said to count so
TREND_TOLERANCE = 0.30  # from the trend of C / 6ND over N
REFUSED_SHARE = 0.10  # of the rows beyond either
SHAPE_TOLERANCE = 0.02  # between the N of one width and depth: rounding
ISOFLOP_TOLERANCE = 0.15  # between the N of one D and C: budgets are nominal
GROSS_LIMIT = 5.0  # from rows of like size: an error in a cell, not a way to count
EXACT_GROSS_LIMIT = 10.0  # where FLOPs are said to be exact: samples may differ in length
LEVEL_LIMIT = 10.0  # of C / 6ND, either way; video's attention stays below
EXACT_LEVEL_LIMIT = 100.0  # where FLOPs are said to be exact
FLAT_LIMIT = 1.5  # of a C / 6ND that does not vary with N, as attention and embeddings do
SHOWN_LIMIT = 1.2  # a smooth trend below is not worth a word

_NEAR_SIZES = 3  # to either side, of like size
_TREND_SIZES = 6
_FLAT = math.log(1.1)
_FLAT_RANGE = 4.0  # over at least this range of N
_FLAT_SIZES = 4  # and so many sizes
_CURVES_APART = 0.15  # in ln(C / 6ND), between two ways to count N
_CURVES_CLEAR = 4.0  # times the distance of most rows from their curve
_TWO_BETTER = 4.0  # times nearer to the rows than one curve
_ROWS_SPARE = 3  # on either curve, beyond those that fix it
_SMOOTH = 0.03  # no two curves where 95% of the rows are as near to one
_INTERLEAVED = 5  # changes of curve along N; fewer could be a change of architecture


def params_definition(runs: Sequence[Run], accounting: Accounting) -> list[Finding]:
    """N with and without embeddings in one column, by three signs of it."""
    signs = (
        _two_sizes(_by_shape(runs), SHAPE_TOLERANCE, "width and depth"),
        _two_sizes(_by_isoflop(runs), ISOFLOP_TOLERANCE, "tokens and flops"),
        _two_ratios(runs),
    )
    found = [sign for sign in signs if sign is not None]
    if not found:
        return []
    text = (
        f"{'; '.join(found)}: N with and without embeddings, or flops counted two ways, seem to "
        "be mixed. Count one way in every row, or fit one kind with --where"
    )
    # Exact FLOPs differ with the length of the samples, so of these signs one alone says little.
    doubtful = accounting.flops == "exact" and signs[0] is None
    return [Finding("params_mixed", text, refuses=not doubtful)]


def _by_shape(runs: Sequence[Run]) -> Mapping[Hashable, list[Run]]:
    shaped = [run for run in runs if run.width is not None and run.depth is not None]
    return _cells(shaped, [(run.width, run.depth) for run in shaped])


def _by_isoflop(runs: Sequence[Run]) -> Mapping[Hashable, list[Run]]:
    return _cells(runs, [(run.tokens, run.flops) for run in runs])


def _cells(runs: Sequence[Run], keys: Sequence[Hashable]) -> Mapping[Hashable, list[Run]]:
    cells: dict[Hashable, list[Run]] = defaultdict(list)
    for key, run in zip(keys, runs, strict=True):
        cells[key].append(run)
    return cells


def _two_sizes(cells: Mapping[Hashable, list[Run]], tolerance: float, of_one: str) -> str | None:
    """The sign that rows alike in `of_one` have params apart."""
    for cell in cells.values():
        low, high = min(cell, key=_params), max(cell, key=_params)
        if high.params > low.params * (1 + tolerance):
            return (
                f"rows {low.row} and {high.row} are of one {of_one}, but have params "
                f"{low.params:.6g} and {high.params:.6g}"
            )
    return None


def _params(run: Run) -> float:
    return run.params


def _two_ratios(runs: Sequence[Run]) -> str | None:
    """The sign that C / 6ND follows two curves over N, each with rows all along."""
    N, ratios = _ratios(runs)
    X = _trend_terms(N)
    residuals = ratios - X @ robust_fit(X, ratios)
    if np.quantile(np.abs(residuals), 0.95) < _SMOOTH:
        return None
    mixture = two_curves(X, ratios)
    if mixture is None or not _clear(mixture, N, X.shape[1], residuals):
        return None
    few = mixture.upper if mixture.upper.mean() <= 0.5 else ~mixture.upper
    rows = [run.row for run, is_few in zip(runs, few, strict=True) if is_few]
    return (
        f"flops / (6 params tokens) follows two curves over params, a factor "
        f"{math.exp(float(np.median(mixture.gap))):.2f} apart, with {len(rows)} of {len(runs)} "
        f"rows on the less frequent ({rows_in_words(rows)})"
    )


def _clear(mixture: Mixture, N: Floats, terms: int, one_curve: Floats) -> bool:
    fewest = min(mixture.upper.sum(), (~mixture.upper).sum())
    better = np.abs(one_curve).mean() >= _TWO_BETTER * np.abs(mixture.residuals).mean()
    if fewest < terms + _ROWS_SPARE or not better:
        return False
    gap = float(np.median(mixture.gap))
    most = float(np.quantile(np.abs(mixture.residuals), 0.9))
    along = mixture.upper[np.argsort(N, kind="stable")]
    changes = int((along[1:] != along[:-1]).sum())
    return gap >= max(_CURVES_APART, _CURVES_CLEAR * most) and changes >= _INTERLEAVED


def contradicting(runs: Sequence[Run], accounting: Accounting) -> dict[int, float]:
    """The rows whose C / 6ND is off that of rows of like size by so much that a cell is wrong.

    By row: how many times off. Empty where that is more than a tenth of the rows: no error of some
    cells but another way to count, for `flops_agree` and `params_definition` to judge.
    """
    N, ratios = _ratios(runs)
    off = ratios - _of_like_size(N, ratios)
    beyond = np.abs(off) > math.log(_gross_limit(accounting))
    if beyond.mean() > REFUSED_SHARE:
        return {}
    places = zip(runs, off.tolist(), beyond, strict=True)
    return {run.row: math.exp(times) for run, times, is_beyond in places if is_beyond}


def _gross_limit(accounting: Accounting) -> float:
    return EXACT_GROSS_LIMIT if accounting.flops == "exact" else GROSS_LIMIT


def _of_like_size(N: Floats, ratios: Floats) -> Floats:
    """The median over each size and the three nearest to either side: no single N moves it."""
    sizes, place = np.unique(N, return_inverse=True)
    medians = [
        float(np.median(ratios[np.abs(place - at) <= _NEAR_SIZES])) for at in range(len(sizes))
    ]
    return np.array(medians)[place]


def contradiction_finding(
    off: Mapping[int, float], rows: int, accounting: Accounting
) -> list[Finding]:
    """What was left out by `contradicting`, of so many rows."""
    if not off:
        return []
    worst = sorted(off, key=lambda row: -abs(math.log(off[row])))[:3]
    listed = ", ".join(f"row {row} x{off[row]:.3g}" for row in worst)
    return [
        Finding(
            "flops_contradict",
            f"flops of {len(off)} of {rows} rows are more than a factor "
            f"{_gross_limit(accounting):.0f} off what params and tokens say in rows of like size "
            f"(the worst: {listed}): left out. Correct params, tokens or flops there",
        )
    ]


def flops_agree(runs: Sequence[Run], accounting: Accounting, left_out: int = 0) -> list[Finding]:
    """FLOPs against C = 6ND where that is stated, else against their own trend over N.

    So many rows were `left_out` for the same reason: they count towards a refusal.
    """
    N, ratios = _ratios(runs)
    if accounting.flops == "6nd":
        stated = "6ND, the stated accounting"
        return _off_rows(runs, ratios, math.log1p(FLOPS_TOLERANCE), stated, left_out)
    X = _trend_terms(N) if len(np.unique(N)) >= _TREND_SIZES else _each_size(N)
    trend = X @ robust_fit(X, ratios)
    own = "the trend of flops / 6ND over params"
    rows = _off_rows(runs, ratios - trend, math.log1p(TREND_TOLERANCE), own, left_out)
    return rows or _level(N, trend, accounting)


def _off_rows(
    runs: Sequence[Run], off: Floats, tolerance: float, reference: str, left_out: int
) -> list[Finding]:
    # A hair of room: 10% off as the user reckons it is not beyond 10%.
    beyond = np.abs(off) > tolerance + 1e-9
    if not beyond.any():
        return []
    worst = sorted(range(len(runs)), key=lambda i: -abs(off[i]))[: min(3, int(beyond.sum()))]
    listed = ", ".join(f"row {runs[i].row} x{math.exp(off[i]):.3g}" for i in worst)
    return [
        Finding(
            "flops_contradict",
            f"flops of {int(beyond.sum())} of {len(runs)} rows are more than a factor "
            f"{math.exp(tolerance):.2g} off {reference} (the worst: {listed}). Correct params, "
            "tokens or flops there, or leave them out with --where; with more than "
            f"{REFUSED_SHARE:.0%} of the rows off, no law is to be trusted",
            refuses=bool(beyond.sum() + left_out > REFUSED_SHARE * (len(runs) + left_out)),
        )
    ]


def _level(N: Floats, trend: Floats, accounting: Accounting) -> list[Finding]:
    """The trend as a whole against C = 6ND: other units, or what 6ND leaves out."""
    middle = abs(float(np.median(trend)))
    exact = accounting.flops == "exact"
    wide = len(np.unique(N)) >= _FLAT_SIZES and N.max() / N.min() >= _FLAT_RANGE
    flat = wide and np.ptp(trend) < _FLAT
    far = middle > math.log(EXACT_LEVEL_LIMIT if exact else LEVEL_LIMIT)
    span = f"flops are {math.exp(trend.min()):.3g} to {math.exp(trend.max()):.3g} times 6ND"
    if far or (flat and not exact and middle > math.log(FLAT_LIMIT)):
        text = (
            f"{span} at every size: params, tokens or flops are in another unit or counted "
            'another way. Map them in numbers (as in flops="PFLOPs*1e15"), or, if the flops are '
            'what training took, state [accounting] flops = "exact" in sweep.toml'
        )
        return [Finding("flops_contradict", text, refuses=True)]
    if exact or np.abs(trend).max() < math.log(SHOWN_LIMIT):
        return []
    text = (
        f"{span}, a smooth trend over params: the flops count what N does not (embeddings, head, "
        "attention), or the reverse. Map the N that the flops were counted with, or state "
        '[accounting] flops = "exact" in sweep.toml'
    )
    return [Finding("flops_contradict", text)]


def _ratios(runs: Sequence[Run]) -> tuple[Floats, Floats]:
    """N and ln(C / 6ND) of each run."""
    N = np.array([run.params for run in runs])
    return N, np.log([run.flops / (6 * run.params * run.tokens) for run in runs])


def _each_size(N: Floats) -> Floats:
    """A level for every size: too few to tell a bent trend from a row that is off."""
    return np.asarray(N[:, None] == np.unique(N), np.float64)


def _trend_terms(N: Floats) -> Floats:
    """A smooth curve over ln N, a plainer one where there are few sizes."""
    degree = min(2, max(0, len(np.unique(N)) - 2))
    return polynomial(np.log(N), degree)
