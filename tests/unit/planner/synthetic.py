"""Sweeps made from a known law, for tests: L = E + A N^-a + B D^-b, times a bowl in ln lr."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from planner.fitting.bands import Resamples
from planner.fitting.surface import Surface, Surfaces
from planner.reading.records import Accounting, Run, Stopped, Sweep
from scalewright.model.shape import ClipTokens, ModelConfig, block_parameters, train_flops

CLIPS = ((ClipTokens(64, 8), 700), (ClipTokens(320, 12), 300))
BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12)
WIDTHS = (32, 64, 96, 128, 160, 192, 256)
LRS = tuple(4e-3 * 2.0**power for power in range(-4, 5))
MODEL = {
    "width": 64,
    "depth": 2,
    "head_dim": 32,
    "ff_mult": 4,
    "patch": [1, 2, 2],
    "rope_axes": [8, 12, 12],
    "mup_base_width": 64,
}


@dataclass(frozen=True)
class Truth:
    """The law behind a sweep; `noise` is the relative standard deviation of its losses."""

    E: float = 0.4
    A: float = 12.0
    B: float = 9.0
    a: float = 0.35
    b: float = 0.35
    lr_scale: float = 0.05
    lr_n: float = -0.10
    lr_d: float = -0.12
    bowl: float = 0.02
    noise: float = 0.0

    def lr(self, N: float, D: float) -> float:
        return self.lr_scale * N**self.lr_n * D**self.lr_d

    def best_loss(self, N: float, D: float) -> float:
        return self.E + self.A * N**-self.a + self.B * D**-self.b

    def loss(self, N: float, D: float, lr: float) -> float:
        return self.best_loss(N, D) * (1 + self.bowl * math.log(lr / self.lr(N, D)) ** 2)

    def best_size(self, C: float) -> float:
        """N* where C = 6ND."""
        ratio = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        return ratio * (C / 6) ** (self.b / (self.a + self.b))


def flops_per_token(model: ModelConfig) -> float:
    flops = sum(train_flops(model, [clip]) * count for clip, count in CLIPS)
    return flops / sum(clip.visual * count for clip, count in CLIPS)


def record(**changes: Any) -> dict[str, Any]:
    """One valid record."""
    fields = {
        "schema_version": 1,
        "run": "w064-b3e+10-lr4e-03-s0",
        "status": "done",
        "reason": None,
        "width": 64,
        "depth": 2,
        "params": 250_000,
        "block_params": 98_304,
        "budget_flops": 3e10,
        "flops": 3.01e10,
        "flops_6nd": 2.5e10,
        "tokens": 42_000,
        "steps": 42,
        "batch_tokens": 1000.0,
        "lr_peak": 4e-3,
        "seed": 0,
        "schedule": "cosine",
        "loss": 0.9,
        "config_digest": "c",
        "data_digest": "d" * 12,
        "code_version": "v",
    }
    return {**fields, **changes}


def simple_sweep(
    truth: Truth,
    budgets: Sequence[float] = BUDGETS,
    span: float = 4.0,
    sizes: int = 9,
    lrs: Sequence[float] = (),
) -> list[dict[str, Any]]:
    """C = 6ND, sizes centred on N*: what the closed forms hold for. Without `lrs`, lr is lr*."""
    rng = np.random.default_rng(7)
    rows = []
    for C in budgets:
        for ratio in np.geomspace(1 / span, span, sizes):
            N = round(truth.best_size(C) * ratio)
            D = C / (6 * N)
            for lr in lrs or [truth.lr(N, D)]:
                loss = truth.loss(N, D, lr) * (1 + truth.noise * rng.standard_normal())
                rows.append(
                    record(
                        run=f"n{N}-b{C:.0e}-lr{lr:.2e}",
                        width=max(N // 1000, 1),
                        block_params=N,
                        budget_flops=C,
                        flops=C,
                        tokens=D,
                        lr_peak=lr,
                        loss=loss,
                    )
                )
    return rows


def platform_sweep(
    truth: Truth,
    budgets: Sequence[float] = BUDGETS,
    widths: Sequence[int] = WIDTHS,
    lrs: Sequence[float] = LRS,
    diverge_above: float = 3e-2,
) -> list[dict[str, Any]]:
    """Exact FLOPs of real model sizes; runs above `diverge_above` diverge."""
    rng = np.random.default_rng(7)
    rows = []
    for C in budgets:
        for width in widths:
            model = replace(model_config(), width=width)
            N, D = block_parameters(model), C / flops_per_token(model)
            for lr in lrs:
                fields = {
                    "run": f"w{width:03d}-b{C:.0e}-lr{lr:.2e}-s0",
                    "width": width,
                    "block_params": N,
                    "budget_flops": C,
                    "lr_peak": lr,
                }
                noise = 1 + truth.noise * rng.standard_normal()
                if lr > diverge_above:
                    rows.append(record(**fields, status="diverged", loss=None, flops=0, tokens=0))
                else:
                    loss = truth.loss(N, D, lr) * noise
                    rows.append(record(**fields, flops=C, tokens=D, loss=loss))
    return rows


def model_config() -> ModelConfig:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in MODEL.items()}
    return ModelConfig(**values)


def settings() -> dict[str, Any]:
    """What `sweep.toml` holds."""
    return {
        "base": {
            "name": "tiny",
            "seed": 0,
            "steps": 200,
            "model": dict(MODEL),
            "data": {"path": "data/shapes", "pack_tokens": 2048, "packs_per_step": 4},
            "flow": {},
            "optimizer": {"lr_peak": 4e-3, "warmup_steps": 10, "schedule": "cosine"},
            "parallel": {
                "workers": 2,
                "min_workers": 1,
                "compute": "float32",
                "activation_checkpointing": "none",
            },
            "log": {"sample_steps": 24},
        },
        "clips": {
            "visual": [clip.visual for clip, _ in CLIPS],
            "text": [clip.text for clip, _ in CLIPS],
            "count": [count for _, count in CLIPS],
        },
    }


def sweep_of(
    rows: Sequence[dict[str, Any]], sweep_toml: dict[str, Any] | None = None, **changes: Any
) -> Sweep:
    """The sweep of these records, as the reader would hand it on; `changes` to its fields."""
    known = {"source": "synthetic", "folder": None, "group": None, "sha256": "0" * 64}
    values: dict[str, Any] = {
        **known,
        "rows": len(rows),
        "runs": tuple(_run(row, i) for i, row in enumerate(rows, 1) if row["status"] == "done"),
        "stopped": tuple(
            Stopped(row=i, run=row["run"], status=row["status"], **_cell(row))
            for i, row in enumerate(rows, 1)
            if row["status"] != "done"
        ),
        "rejections": (),
        "accounting": Accounting("exact" if sweep_toml else "6nd"),
        "noise": None,
        "findings": (),
        "settings": sweep_toml,
    }
    return Sweep(**{**values, **changes})


def _run(row: dict[str, Any], place: int) -> Run:
    names = ("run", "tokens", "flops", "loss", "depth", "seed", "steps")
    return Run(row=place, **_cell(row), **{name: row[name] for name in names})


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    names = ("budget_flops", "batch_tokens", "width")
    values = {name: row[name] for name in names}
    return {"params": row["block_params"], "lr": row["lr_peak"], **values}


def write_sweep(
    folder: Path, rows: Sequence[dict[str, Any]], sweep_toml: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if sweep_toml is not None:
        (folder / "sweep.toml").write_text(tomli_w.dumps(sweep_toml))
    return folder


def resamples_of(surface: Surface, count: int = 100, jitter: float = 0.0) -> Resamples:
    """An estimate and `count` resamples whose constants differ by `jitter` in the logarithm."""
    centre = (math.log(1e9), math.log(1e10))
    theta = np.array(
        [
            math.log(surface.E),
            math.log(surface.A) - surface.alpha * centre[0],
            math.log(surface.B) - surface.beta * centre[1],
            surface.alpha,
            surface.beta,
        ]
    )
    noise = np.random.default_rng(3).standard_normal((count + 1, 5)) * jitter
    noise[0] = 0.0
    surfaces = Surfaces(theta + noise * [1, 1, 1, 0.3, 0.3], centre)
    return Resamples(surfaces, surfaces, surfaces[:0], (), stretch=1.0, converged=1.0)
