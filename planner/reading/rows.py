"""One raw row -> a run, a stopped run, or a rejection with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planner.reading.expressions import Expression, as_text, number_of
from planner.reading.runs import Rejection, Run, Stopped
from planner.reading.sources import Row

SIZES = ("params", "tokens", "flops")
FLOPS_PER_PARAM_TOKEN = 6.0  # Kaplan et al., arXiv 2001.08361: C = 6ND
OFF_BUDGET_LIMIT = 0.10
NATIVE_SCHEMA = 1
# What no run that was ever made lies outside of, and what arithmetic carries.
RANGES = {
    "params": (1.0, 1e18),
    "tokens": (1.0, 1e21),
    "flops": (1e-9, 1e40),
    "budget": (1e-9, 1e40),
    "loss": (1e-9, 1e9),
    "lr": (1e-15, 1e6),
    "batch_tokens": (1.0, 1e15),
    "steps": (1.0, 1e15),
}

_FINISHED = ("done", "finished", "completed", "ok")
_Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True, slots=True)
class Reading:
    """How cells become a run: what each canonical column is read from, and the loss's unit.

    `derived` is the one of `SIZES` that no column gives; it follows by C = 6ND. `native` rows are
    the platform's own records, of one schema.
    """

    columns: Mapping[str, Expression]
    derived: str | None
    loss_in_bits: bool
    native: bool


class _RowError(Exception):
    """Why a row is not used."""


def build(row: Row, reading: Reading) -> Run | Stopped | Rejection:
    """What the row is; bits become nats."""
    values = {name: one.value(row.cells) for name, one in reading.columns.items()}
    name = as_text(values.get("run")) or f"row {row.number}"
    try:
        if reading.native and row.cells.get("schema_version") != NATIVE_SCHEMA:
            seen = row.cells.get("schema_version")
            raise _RowError(f"schema_version is {seen!r}; this planner reads {NATIVE_SCHEMA}")
        status = _status(values)
        if status == "finished":
            return _run(row.number, name, values, reading)
        return _stopped(row.number, name, status, values, reading)
    except _RowError as fault:
        return Rejection(row.number, str(fault))


def _status(values: Mapping[str, Any]) -> _Status:
    """A run whose loss is NaN has diverged, whatever its process thought of it."""
    text = as_text(values.get("status"))
    known = text.lower()
    if known == "diverged" or known == "failed":
        return known  # type: ignore[return-value]
    if text and known not in _FINISHED:
        raise _RowError(
            f"status is {text!r}; known: {', '.join((*_FINISHED, 'diverged', 'failed'))} "
            "(map status to nothing to use such rows)"
        )
    return "diverged" if _is_nan(values.get("loss")) else "finished"


def _run(number: int, name: str, values: Mapping[str, Any], reading: Reading) -> Run:
    sizes = {size: _measure(values, size) for size in SIZES if size != reading.derived}
    params, tokens, flops = map(_in_range, _with_third(sizes), SIZES)
    loss = _measure(values, "loss")
    budget_flops = _optional(values, "budget")
    if budget_flops is not None and reading.derived is None:
        _check_budget(flops, budget_flops)
    return Run(
        row=number,
        run=name,
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss * math.log(2) if reading.loss_in_bits else loss,
        budget_flops=budget_flops,
        lr=_optional(values, "lr"),
        batch_tokens=_optional(values, "batch_tokens"),
        width=_whole(values, "width", least=1),
        depth=_whole(values, "depth", least=1),
        seed=_whole(values, "seed", least=-math.inf),
        steps=_optional(values, "steps"),
    )


def _stopped(
    number: int, name: str, status: _Status, values: Mapping[str, Any], reading: Reading
) -> Stopped:
    sizes = {size: _reached(values, size) for size in SIZES if size != reading.derived}
    known = {size: value for size, value in sizes.items() if value is not None}
    params, tokens, flops = (known.get(size) for size in SIZES)
    if reading.derived is not None and len(known) == len(SIZES) - 1:
        params, tokens, flops = _with_third(known)
    return Stopped(
        row=number,
        run=name,
        status="failed" if status == "failed" else "diverged",
        params=params,
        tokens=tokens,
        flops=flops,
        budget_flops=_reached(values, "budget"),
        lr=_reached(values, "lr"),
        batch_tokens=_reached(values, "batch_tokens"),
        width=_whole(values, "width", least=1),
    )


def _with_third(sizes: Mapping[str, float]) -> tuple[float, float, float]:
    """Params, tokens and flops, the one not there by C = 6ND."""
    per_token = FLOPS_PER_PARAM_TOKEN
    if "flops" not in sizes:
        return sizes["params"], sizes["tokens"], per_token * sizes["params"] * sizes["tokens"]
    if "tokens" not in sizes:
        return sizes["params"], sizes["flops"] / (per_token * sizes["params"]), sizes["flops"]
    if "params" not in sizes:
        return sizes["flops"] / (per_token * sizes["tokens"]), sizes["tokens"], sizes["flops"]
    return sizes["params"], sizes["tokens"], sizes["flops"]


def _measure(values: Mapping[str, Any], name: str) -> float:
    """A positive number within `RANGES`."""
    value = values.get(name)
    if value is None:
        raise _RowError(f"{name} is missing")
    if _is_nan(value):
        raise _RowError(f"{name} is NaN; expected a number")
    number = number_of(value)
    if number is None:
        raise _RowError(f"{name} is {value!r}; expected a number")
    if math.isinf(number):
        raise _RowError(f"{name} is {number}; expected a finite number")
    if number <= 0:
        raise _RowError(f"{name} is {number:.6g}; it must be above 0")
    return _in_range(number, name)


def _in_range(number: float, name: str) -> float:
    low, high = RANGES[name]
    if not low <= number <= high:
        raise _RowError(
            f"{name} is {number:.6g}; no run has less than {low:.6g} or more than {high:.6g}: "
            f'correct it, or map the number itself, as in {name}="COLUMN*1e9"'
        )
    return number


def _optional(values: Mapping[str, Any], name: str) -> float | None:
    """A positive number within `RANGES` where the row has one."""
    value = values.get(name)
    return None if value is None or _is_nan(value) else _measure(values, name)


def _reached(values: Mapping[str, Any], name: str) -> float | None:
    """Of a stopped run: what it had not reached (0) is not known."""
    return None if number_of(values.get(name)) == 0 else _optional(values, name)


def _whole(values: Mapping[str, Any], name: str, least: float) -> int | None:
    value = values.get(name)
    if value is None or _is_nan(value):
        return None
    number = number_of(value)
    if number is None or math.isinf(number) or number != int(number):
        raise _RowError(f"{name} is {value!r}; expected a whole number")
    if number < least:
        raise _RowError(f"{name} is {number:.0f}; expected at least {least:.0f}")
    return int(number)


def _check_budget(flops: float, budget_flops: float) -> None:
    off = flops / budget_flops - 1
    if abs(off) > OFF_BUDGET_LIMIT:
        raise _RowError(
            f"flops {flops:.3g} is {off:+.0%} off its budget {budget_flops:.3g} "
            f"(limit {OFF_BUDGET_LIMIT:.0%}): not on its isoFLOP curve"
        )


def _is_nan(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in ("nan", "+nan", "-nan")
    return isinstance(value, float) and math.isnan(value)
