"""What one row of a sweep can be: a finished run, a stopped run or a rejection."""

from dataclasses import dataclass
from typing import Literal

FlopsAccounting = Literal["exact", "6nd"]


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
