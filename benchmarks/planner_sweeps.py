#!/usr/bin/env python3
"""What the planner finds on public sweeps, beside what others found on the same runs.

    benchmarks/planner_sweeps.py DATA > benchmarks/planner_sweeps.md

DATA holds the tables of arXiv 2404.10102 (Chinchilla), 2603.22339 (Chinchilla, Llama 3, Marin),
2406.19146 (Porian et al.), 2503.04715 (Step Law), 2502.18969 ((Mis)Fitting), 2411.17470 (Kling).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from collections import Counter

import click

from planner.fitting.estimators import SurfaceFit
from planner.fitting.fit import Fit, FitOptions, fit_sweep
from planner.fitting.forecast import HoldOut
from planner.fitting.hyper import Edge
from planner.fitting.laws import NotFitted
from planner.reading.records import read_sweeps
from planner.reading.spec import ReadOptions

TABLES = {
    "Chinchilla, 240 runs": (
        "epoch_chinchilla",
        ReadOptions(maps=("params=Model Size", "flops=Training FLOP"), where=("loss<3.44",)),
    ),
    "isoFLOP points": (
        "openathena_isoflops/dev_isoflops.csv",
        ReadOptions(maps=("flops=budget",), group="experiment"),
    ),
    "Porian": ("porian2024/dev_rw_isoflop_points.csv", ReadOptions(group="config")),
    "(Mis)Fitting": (
        "misfitting/scaling_results_last_ckpt_only.csv",
        ReadOptions(maps=("params=N", "tokens=D", "flops=C", "lr=peak_lr")),
    ),
    "Step Law": (
        "steplaw",
        ReadOptions(maps=("params=N", "tokens=D", "loss=smooth loss", "batch_tokens=bs*2048")),
    ),
    "Kling, figure 4": ("kling_video_fig4", ReadOptions(maps=("loss=val_loss",))),
}


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(data: Path) -> None:
    """Print surfaces, isoFLOP exponents, hold-outs and hyperparameters as tables."""
    fits = {
        f"{name}{f': {sweep.group}' if sweep.group else ''}": fit_sweep(sweep, FitOptions(300))
        for name, (path, how) in TABLES.items()
        for sweep in read_sweeps(str(data / path), how)
    }
    _surfaces(fits)
    _hold_outs(fits)
    _hyper(fits)


def _surfaces(fits: dict[str, Fit]) -> None:
    print("# Planner on public sweeps\n\n## Surface and isoFLOP exponents of N*(C)\n")
    print("| sweep | objective | a, Huber (90%) | a, least squares | isoFLOP (90%) | Akima |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, fit in fits.items():
        if not isinstance(fit.huber, SurfaceFit) or not isinstance(fit.varpro, SurfaceFit):
            continue
        a = fit.constants["huber"]["a"]
        laws = fit.isoflop.laws
        minima, akima = "none", ""
        if not isinstance(laws, NotFitted):
            exponent = laws.size.exponent("C")
            minima = f"{exponent.value:.3f} ({exponent.low or 0:.3f}..{exponent.high or 0:.3f})"
            akima = f"{laws.exponents['akima']:.3f}"
        print(
            f"| {name} | {fit.huber.objective:.7g} | {a.value:.4f} ({a.low or 0:.3f}.."
            f"{a.high or 0:.3f}) | {fit.varpro.surfaces.surface().a:.4f} | {minima} | {akima} |"
        )


def _hold_outs(fits: dict[str, Fit]) -> None:
    print("\n## The largest budget forecast from the smaller ones\n")
    print("| sweep | held out (FLOPs) | x the next | found | forecast | error | by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, fit in fits.items():
        found = fit.forecast
        if isinstance(found, HoldOut):
            print(
                f"| {name} | {found.held_out_flops:.3g} | {found.ratio:.2f} | "
                f"{found.observed:.4f} | {found.predicted:.4f} | {found.relative_error:+.2%} | "
                f"{found.by} |"
            )


def _hyper(fits: dict[str, Fit]) -> None:
    print("\n## Learning rate and batch\n")
    print("| sweep | groups by edge of the learning rate | mean regret | worst regret |")
    print("| --- | --- | --- | --- |")
    for name, fit in fits.items():
        edges = Counter(
            group.lr_edge.value for group in fit.groups if group.lr_edge is not Edge.DEGENERATE
        )
        if not edges:
            continue
        counted = ", ".join(f"{count} {edge}" for edge, count in sorted(edges.items()))
        regret = fit.hyper.regret
        costs = ("none", "none") if regret is None else (f"{regret.mean:.3%}", f"{regret.max:.3%}")
        print(f"| {name} | {counted} | {costs[0]} | {costs[1]} |")
    for group in fits["Kling, figure 4"].groups:
        optimum = f"lr {group.lr or 0:.3g}, batch {group.batch_tokens or 0:.3g} tokens"
        found = optimum if group.lr and group.batch_tokens else f"refused: {group.reason}"
        print(f"\nKling, {group.tokens:.0e} tokens: {found}")


if __name__ == "__main__":
    main()
