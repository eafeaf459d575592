#!/usr/bin/env python3
"""Does the best learning rate carry over between widths? muP against standard parametrisation.

    benchmarks/mup_transfer.py run transfer.jsonl            # hours; the same command goes on
    benchmarks/mup_transfer.py report transfer.jsonl --figure transfer.png

Every cell trains one model on an endless stream of a synthetic task, from text to latent, and is
one line of the file. Both parametrisations get the same grid of learning rates, seeds, data and
steps. Standard parametrisation is the same model with every factor at 1: one learning rate for all
tensors, the output not divided by the width. At the base width the two are one.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import click
import torch
from torch import Tensor

from scalewright import command
from scalewright.config import digest
from scalewright.errors import ConfigError
from scalewright.model.mmdit import MMDiT
from scalewright.model.mup import materialise, meta_model, optimizer_groups, param_rules
from scalewright.model.packed import PackedBatch, PackItem, pack, patchify
from scalewright.model.shape import ModelConfig, parameters
from scalewright.objective.flow import (
    FlowConfig,
    keyed_generator,
    noise_level,
    stratified_levels,
)
from scalewright.train.optimizer import OptimizerConfig, lr_at

Parametrisation = Literal["mup", "standard"]
BOTH: tuple[Parametrisation, ...] = ("mup", "standard")

BASE = ModelConfig(
    width=64,
    depth=2,
    head_dim=16,
    rope_axes=(4, 6, 6),
    time_freq_dim=64,
    time_dim=64,
    text_dim=16,
    latent_channels=8,
    mup_base_width=64,
)
LATENT = (2, BASE.latent_channels, 4, 4)
WORDS = 2
FLOW = FlowConfig()
TAIL_SHARE = 0.05  # of the steps; their mean training loss is kept beside the evaluation's


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all cells share. `clips` a step; `evaluation_clips` that no step sees."""

    steps: int = 2000
    warmup_share: float = 0.05
    clips: int = 16
    evaluation_clips: int = 256
    text_rank: int = 4


@dataclass(frozen=True)
class Cell:
    parametrisation: Parametrisation
    width: int
    lr: float
    seed: int

    @property
    def model(self) -> ModelConfig:
        base = BASE.mup_base_width if self.parametrisation == "mup" else self.width
        return replace(BASE, width=self.width, mup_base_width=base)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Learning-rate sweeps over widths, under muP and under standard parametrisation."""


@main.command()
@click.argument("records", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--widths", default="64,128,256,512", help="The base width is 64.")
@click.option("--log2-lrs", default="-11,-10,-9,-8,-7,-6,-5,-4,-3", help="One grid for both.")
@click.option("--seeds", default=2, type=click.IntRange(1))
@click.option("--steps", default=Task.steps, type=click.IntRange(20))
@click.option("--device", default="cpu", help="cpu or cuda.")
def run(records: Path, widths: str, log2_lrs: str, seeds: int, steps: int, device: str) -> None:
    """Train every cell that RECORDS does not hold yet, and add a line for each."""
    task = Task(steps=steps)
    done = {_key(record) for record in read(records)}
    every = list(cells(_integers(widths), [2.0**e for e in _integers(log2_lrs)], seeds))
    todo = [cell for cell in every if (digest(task), *asdict(cell).values()) not in done]
    click.echo(f"{len(every)} cells, {len(todo)} to do")
    for index, cell in enumerate(todo, start=1):
        record = train(cell, task, torch.device(device))
        with records.open("a") as file:
            file.write(json.dumps(record) + "\n")
        click.echo(
            f"{index}/{len(todo)} {cell.parametrisation:8} width {cell.width:4d} "
            f"lr 2^{math.log2(cell.lr):g} seed {cell.seed}: {record['status']}, "
            f"loss {record['loss'] or math.nan:.4f}, {record['wall_s']:.0f} s"
        )


def cells(widths: Sequence[int], lrs: Sequence[float], seeds: int) -> Iterator[Cell]:
    """Narrow models first; at the base width only muP's, which is the standard one too."""
    for width in widths:
        for parametrisation in BOTH if width != BASE.mup_base_width else BOTH[:1]:
            for seed in range(seeds):
                yield from (Cell(parametrisation, width, lr, seed) for lr in lrs)


def train(cell: Cell, task: Task, device: torch.device) -> dict[str, Any]:
    """One model from its first step to its last, and its record."""
    begin_s = time.perf_counter()
    config = cell.model
    schedule = OptimizerConfig(lr_peak=cell.lr, warmup_steps=round(task.warmup_share * task.steps))
    model, rules = meta_model(config), param_rules(config)
    materialise(model, rules, cell.seed, device)
    groups = optimizer_groups(
        model.named_parameters(), rules, lr=cell.lr, weight_decay=0.0, eps=schedule.eps
    )
    betas = (schedule.beta1, schedule.beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    losses: list[float] = []
    for step in range(task.steps):
        batch, target = clips(config, task, ("train", cell.seed, step), task.clips)
        loss = (model(batch.to(device)).velocity - target.to(device)).square().mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, task.steps, schedule) * group["lr_mult"]
        optimizer.step()
    done = math.isfinite(losses[-1])
    tail = losses[-max(1, round(TAIL_SHARE * task.steps)) :]
    final = evaluate(model, config, task, device) if done else math.nan
    return {
        "schema_version": 1,
        "task": digest(task),
        **asdict(cell),
        "steps": task.steps,
        "params": parameters(config),
        "status": "done" if math.isfinite(final) else "diverged",
        "loss": final if math.isfinite(final) else None,
        "train_loss": statistics.fmean(tail) if done else None,
        "device": device.type,
        "wall_s": round(time.perf_counter() - begin_s, 2),
    }


@torch.no_grad()
def evaluate(model: MMDiT, config: ModelConfig, task: Task, device: torch.device) -> float:
    """Mean squared error on clips and noise that are the same for every cell."""
    batch, target = clips(config, task, ("evaluate",), task.evaluation_clips, stratified=True)
    return (model(batch.to(device)).velocity - target.to(device)).square().mean().item()


def clips(
    config: ModelConfig, task: Task, key: tuple[object, ...], count: int, stratified: bool = False
) -> tuple[PackedBatch, Tensor]:
    """`count` noised clips of the stream `key` and their velocities.

    Half of a clip's variance follows from its text, half is noise of its own.
    """
    generator = keyed_generator("mup_transfer", *key)
    teacher = _teacher(task)
    levels = stratified_levels(FLOW, count) if stratified else None
    items, targets = [], []
    for index in range(count):
        text = torch.randn(WORDS, config.text_dim, generator=generator)
        latent = (_told(text, teacher) + torch.randn(LATENT, generator=generator)) / math.sqrt(2)
        level = levels[index] if levels else noise_level(FLOW, generator, 1)
        noise = torch.randn(LATENT, generator=generator)
        items.append(PackItem((1 - level) * latent + level * noise, text, level))
        targets.append(patchify(noise - latent, config.patch))
    return pack(items, config), torch.cat(targets)


def _teacher(task: Task) -> tuple[Tensor, Tensor]:
    generator = keyed_generator("mup_transfer", "teacher")
    features = torch.randn(WORDS * BASE.text_dim, task.text_rank, generator=generator)
    out = torch.randn(2 * task.text_rank**2, math.prod(LATENT), generator=generator)
    return features / math.sqrt(len(features)), out / math.sqrt(len(out))


def _told(text: Tensor, teacher: tuple[Tensor, Tensor]) -> Tensor:
    """A latent of unit variance that depends on products of what both words say."""
    features, out = teacher
    spoken = text.flatten() @ features
    pairs = torch.outer(spoken, spoken).flatten()
    hidden = torch.cat((torch.sin(2 * pairs), torch.cos(2 * pairs) - 0.5)) * math.sqrt(2)
    return (hidden @ out).reshape(LATENT)


@main.command()
@click.argument("records", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw it here.")
def report(records: Path, figure: Path | None) -> None:
    """Print losses by width and learning rate, and the regret of carrying the optimum over."""
    found = read(records)
    if len({record["task"] for record in found}) != 1:
        raise ConfigError(f"{records}: holds cells of several tasks, or none; one file for each")
    curves = {each: curve(found, each) for each in BOTH}
    click.echo(f"# Learning rates over widths, {found[0]['steps']} steps\n")
    click.echo("\n\n".join(table(each, curves[each]) for each in BOTH))
    if figure is not None:
        draw(curves, figure)


Curve = dict[int, dict[float, list[float | None]]]


def curve(records: Sequence[dict[str, Any]], parametrisation: Parametrisation) -> Curve:
    """Losses of all seeds by width and learning rate; None where a run diverged."""
    found: Curve = {}
    for record in records:
        if record["parametrisation"] == parametrisation or record["width"] == BASE.mup_base_width:
            by_lr = found.setdefault(record["width"], {})
            by_lr.setdefault(record["lr"], []).append(record["loss"])
    return {width: dict(sorted(found[width].items())) for width in sorted(found)}


def mean(losses: Sequence[float | None]) -> float:
    """Over seeds; infinite where one of them diverged."""
    known = [loss for loss in losses if loss is not None]
    return statistics.fmean(known) if len(known) == len(losses) else math.inf


def best_lr(by_lr: dict[float, list[float | None]]) -> float:
    return min(by_lr, key=lambda lr: mean(by_lr[lr]))


def table(name: str, found: Curve) -> str:
    """Markdown: losses, the best learning rate, and what the narrowest model's best one costs."""
    lrs = sorted({lr for by_lr in found.values() for lr in by_lr})
    lines = [
        f"## {name}\n",
        f"| width | {' | '.join(f'2^{math.log2(lr):g}' for lr in lrs)} | best | "
        "spread of seeds at the best | regret of the narrowest model's best |",
        "| --- |" + " --- |" * (len(lrs) + 3),
    ]
    carried = best_lr(next(iter(found.values())))
    for width, by_lr in found.items():
        best = best_lr(by_lr)
        losses = [f"{mean(by_lr[lr]):.4f}" if lr in by_lr else "" for lr in lrs]
        edge = " (edge of the grid)" if best in (min(by_lr), max(by_lr)) else ""
        known = [loss for loss in by_lr[best] if loss is not None]
        spread = f"{max(known) - min(known):.4f}" if len(known) > 1 else "one seed"
        regret = mean(by_lr[carried]) - mean(by_lr[best]) if carried in by_lr else math.nan
        lines.append(
            f"| {width} | {' | '.join(losses)} | 2^{math.log2(best):g}{edge} | {spread} | "
            f"{regret:.4f} ({regret / mean(by_lr[best]):.2%}) |"
        )
    return "\n".join(lines)


def draw(curves: dict[Parametrisation, Curve], path: Path) -> None:
    """Loss against learning rate, a line a width, a panel a parametrisation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for panel, (name, found) in zip(panels, curves.items(), strict=True):
        for width, by_lr in found.items():
            lrs = [lr for lr in by_lr if math.isfinite(mean(by_lr[lr]))]
            (line,) = panel.plot(lrs, [mean(by_lr[lr]) for lr in lrs], "o-", label=f"width {width}")
            best = best_lr(by_lr)
            if best in lrs:
                panel.plot([best], [mean(by_lr[best])], "*", markersize=14, color=line.get_color())
        panel.set_xscale("log", base=2)
        panel.set_xlabel("base learning rate")
        panel.set_title({"mup": "muP", "standard": "standard parametrisation"}[name])
        panel.legend()
    panels[0].set_ylabel("loss on held-out clips")
    figure.savefig(path, dpi=130)


def read(records: Path) -> list[dict[str, Any]]:
    """The lines of the file so far; a line cut short is an error that says where it is."""
    lines = records.read_text().splitlines() if records.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            raise ConfigError(f"{records}:{number}: not JSON; delete this line") from None
    return found


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("task", "parametrisation", "width", "lr", "seed"))


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r}: whole numbers with commas between them") from None


if __name__ == "__main__":
    command.run(main)
