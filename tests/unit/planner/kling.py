"""Sweeps and designs on Kling's law (arXiv 2411.17470), C = 6ND."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from planner.designing.design import (
    Problem,
    Tuning,
)
from planner.designing.prior import KLING
from planner.fitting.frontier import six_nd
from planner.fitting.surface import Points

FIVE, SIX = (3e17, 6e17, 1e18, 3e18, 6e18), (1e17, 3e17, 1e18, 3e18, 1e19, 3e19)
TARGET = 1e22
LRS = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
FULL_GRID = Tuning(4, 1, False)


def problem(noise: float = 3e-4, tuning: Tuning = FULL_GRID, **other: Any) -> Problem:
    wide = six_nd(1e6, 1e15)
    known = {"prior": KLING, "frontier": wide, "rungs": None, "target_flops": TARGET}
    return Problem(**{**known, **other}, noise=noise, tuning=tuning)


def kling_runs(
    budgets: tuple[float, ...], width: float, sizes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spread = np.geomspace(1 / width, width, sizes)
    params = np.concatenate([KLING.surface.best_params(c) * spread for c in budgets])
    flops = np.repeat(budgets, sizes)
    return params, flops / 6 / params, flops


def made_points(
    params: np.ndarray, tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray
) -> Points:
    return Points(
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        bound=np.zeros(len(loss), dtype=bool),
        cluster=np.arange(len(loss)),
        names=tuple(map(str, range(len(loss)))),
    )


def kling_sweep(path: Path, budgets: tuple[float, ...] = FIVE, noise: float = 3e-4) -> Path:
    """JSONL of Kling's law, with a bowl in ln lr; the smallest (N, D) has its best at an edge."""
    assert KLING.lr is not None
    params, tokens, flops = kling_runs(budgets, 4, 5)
    rng = np.random.default_rng(1)
    rows = []
    for index, (n, d, c) in enumerate(zip(params, tokens, flops, strict=True)):
        best = 4 * LRS[-1] if index == 0 else KLING.lr.value(n, d)
        loss = KLING.surface.loss(n, d) * math.exp(noise * rng.standard_normal())
        for lr in LRS:
            bowl = 1 + 2e-3 * math.log(lr / best) ** 2
            row = {"params": n, "tokens": d, "flops": c, "lr": lr, "loss": loss * bowl}
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path
