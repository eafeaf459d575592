"""Tables on disk for the tests of the reader, and the published ones with their mappings."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.reading.records import Sweep, read_sweeps
from planner.reading.spec import ReadOptions

Cells = Mapping[str, Any]


def cells(**changes: Any) -> dict[str, Any]:
    """One row under canonical names, with C = 6ND."""
    return {"params": 1e8, "tokens": 2e9, "flops": 1.2e18, "loss": 3.0, **changes}


def ladder(count: int = 6) -> list[dict[str, Any]]:
    """Rows that differ in every column."""
    rows = []
    for k in range(count):
        N, D = 1e7 * 2**k, 1e9 * 3 ** (k % 3)
        rows.append(cells(params=N, tokens=D, flops=6 * N * D, loss=4 - 0.2 * k))
    return rows


def write_csv(path: Path, rows: Sequence[Cells]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Cells]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(source: Path | str, *maps: str, **options: Any) -> list[Sweep]:
    return read_sweeps(str(source), ReadOptions(maps=maps, **options))


def read_one(source: Path | str, *maps: str, **options: Any) -> Sweep:
    (sweep,) = read(source, *maps, **options)
    return sweep


def published(shared_data: Path) -> dict[str, Sweep]:
    """Every published sweep, and the sweep of the repository, as each is meant to be read."""
    data = shared_data / "scaling"
    misfitting = data / "misfitting/scaling_results_last_ckpt_only.csv"
    as_given = {
        "chinchilla": read(
            data / "epoch_chinchilla", "params=Model Size", "flops=Training FLOP", "loss=loss"
        ),
        "openathena": read(
            data / "openathena_isoflops/dev_isoflops.csv", "flops=budget", group="experiment"
        ),
        "porian": read(data / "porian2024/dev_rw_isoflop_points.csv", group="config"),
        "steplaw": read(
            data / "steplaw", "batch_tokens=bs*2048", "params=N", "tokens=D", "loss=smooth loss"
        ),
        "misfitting": read(misfitting, "params=N", "tokens=D", "flops=C", "lr=peak_lr"),
        "misfitting_no_emb": read(
            misfitting, "params=N_no_emb", "tokens=D", "flops=C", "lr=peak_lr"
        ),
        "misfitting_checkpoints": read(
            data / "misfitting/scaling_results.csv.gz",
            *("params=N", "tokens=D", "flops=C", "lr=peak_lr"),
        ),
        "kling": read(data / "kling_video_fig4", "loss=val_loss"),
        "demo": read(Path(__file__).parents[3] / "sweeps/demo"),
    }
    return {
        name if sweep.group is None else f"{name} {sweep.group}": sweep
        for name, sweeps in as_given.items()
        for sweep in sweeps
    }
