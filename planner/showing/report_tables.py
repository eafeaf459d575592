"""The tables of a report, as rows of text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planner import wording
from planner.fitting.estimators import SurfaceFit
from planner.fitting.fit import Fit
from planner.fitting.forecast import HoldOut
from planner.fitting.hyper import Group
from planner.fitting.hyper_law import HyperLaw
from planner.fitting.isoflop import ComputeLaws
from planner.fitting.laws import Estimate, NotFitted
from planner.fitting.surface import CONSTANTS
from planner.reading.runs import Stopped

Row = tuple[str, ...]
NONE = "–"


@dataclass(frozen=True)
class Table:
    """`words` are the columns that hold text and so start at the left; the others are numbers."""

    head: Row
    rows: tuple[Row, ...]
    words: frozenset[int] = frozenset({0})

    def without_empty_columns(self) -> "Table":
        """Columns in which no row has anything are left out."""
        kept = [
            i for i in range(len(self.head)) if any(row[i] not in ("", NONE) for row in self.rows)
        ]
        return Table(
            tuple(self.head[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
            frozenset(new for new, old in enumerate(kept) if old in self.words),
        )


def groups(fit: Fit) -> Table:
    """Every (N, D): what was tried there, its optimum, and how far the surface is off."""
    head = (
        "N", "D", "FLOPs", "width", "runs", "best lr", "best batch", "loss", "surface off by",
        "verdict",
    )  # fmt: skip
    residuals = fit.huber.residuals if isinstance(fit.huber, SurfaceFit) else None
    rows = []
    for index, group in enumerate(fit.groups):
        off = "" if residuals is None else wording.percent(float(np.expm1(residuals[index])), True)
        rows.append((*_group(group), off, _verdict(group)))
    return Table(head, tuple(rows), frozenset({9})).without_empty_columns()


def _group(group: Group) -> Row:
    return (
        wording.count(group.params),
        wording.count(group.tokens),
        wording.scientific(group.flops),
        "" if group.width is None else str(group.width),
        str(len(group.runs)),
        _or_none(group.lr, wording.scientific),
        _or_none(group.batch_tokens, wording.count),
        ("≤ " if group.loss_is_bound else "") + wording.loss(group.loss),
    )


def _verdict(group: Group) -> str:
    return group.reason if len(group.runs) > 1 else ""


def runs(fit: Fit) -> Table:
    """Every run that is used, as it was read."""
    head = ("row", "run", "N", "D", "FLOPs", "loss", "lr", "batch", "width", "depth", "seed")
    rows = tuple(
        (
            str(run.row),
            run.run,
            wording.count(run.params, 4),
            wording.count(run.tokens, 4),
            wording.scientific(run.flops, 4),
            f"{run.loss:.6g}",
            _or_none(run.lr, wording.scientific),
            _or_none(run.batch_tokens, wording.count),
            _or_none(run.width, str),
            _or_none(run.depth, str),
            _or_none(run.seed, str),
        )
        for run in fit.sweep.runs
    )
    return Table(head, rows, frozenset({1})).without_empty_columns()


def left_out(fit: Fit) -> Table:
    """Rows that are not fitted: rejected ones with the reason, and runs that stopped."""
    rows = [(str(each.row), "rejected", each.reason) for each in fit.sweep.rejections]
    rows += [(str(run.row), run.status, _stopped(run)) for run in fit.sweep.stopped]
    return Table(("row", "what", "why"), tuple(rows), frozenset({1, 2}))


def _stopped(run: Stopped) -> str:
    rate = "" if run.lr is None else f", learning rate {wording.scientific(run.lr)}"
    return f"{run.run}{rate}"


def constants(fit: Fit) -> Table:
    """Both estimators side by side, with what tells whether to trust them."""
    ways = {"huber": fit.huber, "varpro": fit.varpro}
    names = (*CONSTANTS, "a")
    # A floor of zero is held as a tiny number: its logarithm must exist.
    nothing = 1e-9 * float(fit.points.loss.min())
    labels = {"a": "a = β/(α+β), N* ∝ C^a", "alpha": "α", "beta": "β"}
    rows: list[Row] = []
    for name in names:
        cells = [labels.get(name, name)]
        for way, found in ways.items():
            cells += _constant(found, fit.constants.get(way, {}).get(name), name, nothing)
        rows.append(tuple(cells))
    for label, of in _JUDGED.items():
        cells = [label]
        for found in ways.values():
            cells += [of(found) if isinstance(found, SurfaceFit) else NONE, ""]
        rows.append(tuple(cells))
    head = ("", "Huber on ln L", "90% interval", "least squares on L", "90% interval")
    return Table(head, tuple(rows))


_JUDGED: dict[str, Callable[[SurfaceFit], str]] = {
    "objective reached": lambda fit: f"{fit.objective:.6g}",
    "starts that agree": lambda fit: f"{fit.agreeing} of {fit.starts}",
    "condition number": lambda fit: wording.plain(fit.condition),
    "scaled gradient left": lambda fit: wording.scientific(fit.gradient_norm, 2),
    "residual standard deviation": lambda fit: wording.percent(fit.residual_sd),
}


def _constant(
    found: SurfaceFit | NotFitted, known: Estimate | None, name: str, nothing: float
) -> list[str]:
    if isinstance(found, NotFitted):
        return [NONE, NONE]

    def words(value: float) -> str:
        return "0" if name == "E" and value < nothing else wording.plain(value, 4)

    value = getattr(found.surfaces.surface(), name)
    return [words(value), NONE if known is None else wording.interval(known, words)]


def budgets(fit: Fit) -> Table:
    """The verdict on each isoFLOP curve."""
    head = ("budget", "sizes", "N*", "D*", "loss", "N* by Akima", "bias of the parabola", "verdict")
    rows: list[Row] = []
    for budget in fit.isoflop.budgets:
        best = budget.optimum
        start = (wording.scientific(budget.flops), str(len(budget.params)))
        if best is None:
            rows.append((*start, NONE, NONE, NONE, NONE, NONE, budget.verdict))
            continue
        bias = best.bias_ln_params
        rows.append(
            (
                *start,
                wording.count(best.params),
                wording.count(best.tokens),
                wording.loss(best.loss),
                wording.count(best.akima_params),
                NONE if bias is None else wording.percent(float(np.expm1(bias)), True),
                budget.verdict,
            )
        )
    return Table(head, tuple(rows), frozenset({7}))


def exponents(fit: Fit) -> Table:
    """The exponent of N* by every way there is."""
    rows: list[Row] = []
    for name, way in (("huber", "surface, Huber"), ("varpro", "surface, least squares")):
        known = fit.constants.get(name, {}).get("a")
        if known is not None:
            rows.append((way, f"{known.value:.3f}", wording.interval(known, _three)))
    if isinstance(fit.isoflop.laws, ComputeLaws):
        laws = fit.isoflop.laws
        fitted = laws.size.exponent("C")
        for way, value in laws.exponents.items():
            interval = wording.interval(fitted, _three) if way == "parabola" else NONE
            rows.append((f"isoFLOP minima, {way}", f"{value:.3f}", interval))
    return Table(("N* ∝ C^a by", "a", "90% interval"), tuple(rows))


def _three(value: float) -> str:
    return f"{value:.3f}"


def hyper_laws(fit: Fit) -> Table:
    """lr*(N, D) and batch*(N, D)."""
    laws = {"learning rate": fit.hyper.lr, "batch (tokens)": fit.hyper.batch_tokens}
    head = ("law", "coefficient", "exponent of N", "exponent of D", "optima", "rests on")
    rows: list[Row] = []
    for name, law in laws.items():
        if isinstance(law, HyperLaw):
            rows.append((name, *_law_cells(law), str(law.law.optima), law.reason))
        else:
            rows.append((name, *[NONE] * 4, law.reason))
    return Table(head, tuple(rows), frozenset({0, 5}))


def _law_cells(law: HyperLaw) -> Iterator[str]:
    yield _with_interval(law.coefficient, wording.plain)
    for name in ("params", "tokens"):
        has = name in law.law.variables
        yield _with_interval(law.law.exponent(name), _three) if has else NONE


def _with_interval(estimate: Estimate, words: Callable[[float], str]) -> str:
    known = estimate.low is not None
    return words(estimate.value) + (f" ({wording.interval(estimate, words)})" if known else "")


def forecasts(fit: Fit) -> Table:
    """Every way to forecast the held-out budget."""
    found = fit.forecast
    if not isinstance(found, HoldOut):
        return Table((), ())
    rows = tuple(
        (
            way + (" (the one that counts)" if way == found.by else ""),
            wording.loss(found.observed * (1 + error)),
            wording.loss(found.observed),
            wording.percent(error, signed=True),
        )
        for way, error in found.errors.items()
    )
    return Table(("forecast by", "predicted", "observed", "error"), rows)


def _or_none(
    value: "float | int | None", words: "Callable[[float], str] | Callable[[int], str]"
) -> str:
    return NONE if value is None else words(value)  # type: ignore[arg-type]
