"""Sweeps of learning rate and batch: made from a known optimum, and the published ones."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planner.reading.records import Accounting, Run, Stopped, Sweep

RATES = tuple(5e-4 * 2.0**power for power in range(6))
BATCHES = tuple(2.5e4 * 2.0**power for power in range(6))


def sweep_of(
    runs: Iterable[Run], stopped: Iterable[Stopped] = (), noise: float | None = None
) -> Sweep:
    held = tuple(runs)
    return Sweep(
        source="made",
        folder=None,
        group=None,
        sha256="0" * 64,
        rows=len(held),
        runs=held,
        stopped=tuple(stopped),
        rejections=(),
        accounting=Accounting(),
        noise=noise,
        findings=(),
        settings=None,
    )


def run(loss: float, **changes: Any) -> Run:
    fields = {"row": 1, "run": "a", "params": 1e8, "tokens": 1e9, "flops": 6e17, **changes}
    return Run(loss=loss, **fields)


def diverged(**changes: Any) -> Stopped:
    fields = {"row": 99, "run": "x", "params": 1e8, "tokens": 1e9, **changes}
    return Stopped(status="diverged", **fields)


def bowl(lr_star: float, rates: Sequence[float] = RATES, **changes: Any) -> list[Run]:
    """One group over these rates, its optimum at `lr_star` with a loss of 2."""
    return [run(2 * (1 + 0.01 * math.log(lr / lr_star) ** 2), lr=lr, **changes) for lr in rates]


def grid(
    lr_star: float,
    batch_star: float,
    tilt: float = 0.0,
    steep: float = 0.01,
    rates: Sequence[float] = RATES,
    batches: Sequence[float] = BATCHES,
    **changes: Any,
) -> list[Run]:
    """One group over rates x batches; `tilt` (-1 to 1) correlates the two."""
    found = []
    for lr in rates:
        for batch in batches:
            u, v = math.log(lr / lr_star), math.log(batch / batch_star)
            loss = 2 * (1 + steep * (u * u + v * v - 2 * tilt * u * v))
            found.append(run(loss, lr=lr, batch_tokens=batch, **changes))
    return found


@dataclass(frozen=True)
class Law:
    """lr* = 2e-3 (N / 1e8)^p (D / 1e9)^q and batch* = 2e5 (N / 1e8)^r (D / 1e9)^s."""

    p: float = -0.3
    q: float = 0.1
    r: float = -0.2
    s: float = 0.3

    def lr(self, params: float, tokens: float) -> float:
        return 2e-3 * (params / 1e8) ** self.p * (tokens / 1e9) ** self.q

    def batch(self, params: float, tokens: float) -> float:
        return 2e5 * (params / 1e8) ** self.r * (tokens / 1e9) ** self.s

    def sweep(
        self,
        sizes: Sequence[float] = (3e7, 1e8, 3e8),
        tokens: Sequence[float] = (1e9, 4e9, 1.6e10),
        rates: Sequence[float] = RATES,
        batches: Sequence[float | None] = (None,),
        noise: float = 0.0,
        seed: int = 0,
        width: Callable[[float], int] | None = None,
    ) -> Sweep:
        """A grid of groups; `noise` is relative. `width` gives a size its width."""
        rng = np.random.default_rng(seed)
        runs = []
        for n in sizes:
            for d in tokens:
                floor = 2 + 400 * n**-0.34 + 400 * d**-0.28
                for lr in rates:
                    for batch in batches:
                        u = math.log(lr / self.lr(n, d))
                        v = 0.0 if batch is None else math.log(batch / self.batch(n, d))
                        loss = floor * (1 + 0.01 * (u * u + v * v - u * v))
                        loss *= 1 + noise * rng.standard_normal()
                        runs.append(
                            run(
                                loss,
                                row=len(runs) + 1,
                                run=f"r{len(runs)}",
                                params=n,
                                tokens=d,
                                flops=6 * n * d,
                                lr=lr,
                                batch_tokens=batch,
                                width=None if width is None else width(n),
                            )
                        )
        return sweep_of(runs)


def steplaw(data: Path) -> Sweep:
    """1,911 runs: learning rate x batch in 17 groups."""
    rows = _rows(data / "scaling/steplaw/dense_lr_bs_loss.csv")
    return sweep_of(
        _real(i, row, "N", "D", "smooth loss", "lr", float(row["bs"]) * 2048)
        for i, row in enumerate(rows)
    )


def misfitting(data: Path) -> Sweep:
    """261 runs: learning rate, size and tokens; many repeats without a seed."""
    rows = _rows(data / "scaling/misfitting/scaling_results_last_ckpt_only.csv")
    return sweep_of(
        _real(i, row, "N_no_emb", "D", "loss", "peak_lr", None) for i, row in enumerate(rows)
    )


def kling(data: Path) -> Sweep:
    """36 runs: learning rate x batch of one video model, for 4e9 and 1e10 tokens."""
    rows = _rows(data / "scaling/kling_video_fig4/fig4_1p07B_lr_bs_heatmap.csv")
    return sweep_of(
        _real(i, row, "params", "tokens", "val_loss", "lr", float(row["batch_tokens"]))
        for i, row in enumerate(rows)
    )


def demo() -> Sweep:
    """The sweep of this repository: learning rates over widths and budgets, one diverged run."""
    path = Path(__file__).parents[3] / "sweeps/demo/runs.jsonl"
    runs: list[Run] = []
    stopped: list[Stopped] = []
    for row, line in enumerate(path.read_text().splitlines(), start=1):
        record = json.loads(line)
        fields = {
            "row": row,
            "run": record["run"],
            "params": float(record["block_params"]),
            "tokens": float(record["tokens"]),
            "flops": float(record["flops"]),
            "budget_flops": record["budget_flops"],
            "lr": record["lr_peak"],
            "batch_tokens": record["batch_tokens"],
            "width": record["width"],
        }
        if record["status"] == "done":
            runs.append(Run(loss=record["loss"], seed=record["seed"], **fields))
        else:
            stopped.append(Stopped(status=record["status"], **fields))
    return sweep_of(runs, stopped)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _real(
    index: int, row: dict[str, str], n: str, d: str, loss: str, lr: str, batch: float | None
) -> Run:
    params, tokens = float(row[n]), float(row[d])
    return Run(
        row=index + 2,
        run=f"row {index + 2}",
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=float(row[loss]),
        lr=float(row[lr]),
        batch_tokens=batch,
    )
