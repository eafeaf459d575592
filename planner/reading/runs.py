"""What one row of a sweep can be: a finished run, a stopped run or a rejection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FlopsAccounting = Literal["exact", "6nd"]

_LISTED = 8


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run with a usable loss (nats, or the diffusion loss as it is).

    `row` is its 1-based place in the source: the line of a JSONL or CSV file (header = 1), the row
    of a Parquet file, or the place among MLflow's runs in order of their start. `run` is its name,
    or "row N". `budget_flops` is the nominal budget, where the table has one.
    """

    row: int
    run: str
    params: float
    tokens: float
    flops: float
    loss: float
    budget_flops: float | None = None
    lr: float | None = None
    batch_tokens: float | None = None
    width: int | None = None
    depth: int | None = None
    seed: int | None = None
    steps: float | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that diverged or failed: no usable loss, but a diverged one bounds the learning rate.

    What such a row does not say is None; `flops` and `tokens` may be those reached.
    """

    row: int
    run: str
    status: Literal["diverged", "failed"]
    params: float | None = None
    tokens: float | None = None
    flops: float | None = None
    budget_flops: float | None = None
    lr: float | None = None
    batch_tokens: float | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that was not used, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Accounting:
    """How a sweep counts: `flops` "exact", "6nd", or None where nothing says; N in words."""

    flops: FlopsAccounting | None = None
    params: str | None = None


def counted(count: int, noun: str) -> str:
    """The count with its noun, for a message."""
    return f"{count} {noun}{'s' * (count != 1)}"


def rows_in_words(rows: Sequence[int]) -> str:
    """The first rows by number, for a message."""
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    noun = "row" if len(rows) == 1 else "rows"
    return f"{noun} {', '.join(map(str, rows[:_LISTED]))}{more}"
