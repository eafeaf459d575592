"""Points and sweeps made from known surfaces, and the published ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planner.fitting.estimators import SurfaceFit, fit_huber
from planner.fitting.fit import points_of
from planner.fitting.hyper import groups
from planner.fitting.surface import Floats, Points, Surface
from planner.reading.records import Accounting, Run, Sweep, read_sweeps
from planner.reading.spec import ReadOptions

KLING = Surface(E=0.4856, A=0.0082 * 1e9**0.3188, B=0.0373 * 1e9**0.2917, alpha=0.3188, beta=0.2917)
CHINCHILLA = Surface(E=1.8172, A=477.8, B=2143.0, alpha=0.3473, beta=0.3672)
ASYMMETRIC = Surface(
    E=0.4856, A=0.0082 * 1e9**0.465, B=0.0373 * 1e9**0.155, alpha=0.465, beta=0.155
)
BUDGETS = (3e17, 6e17, 1e18, 3e18, 6e18)

PUBLISHED = {
    "chinchilla": (
        "epoch_chinchilla",
        ReadOptions(maps=("params=Model Size", "flops=Training FLOP")),
    ),
    "openathena": (
        "openathena_isoflops/dev_isoflops.csv",
        ReadOptions(maps=("flops=budget",), group="experiment"),
    ),
    "porian": ("porian2024/dev_rw_isoflop_points.csv", ReadOptions(group="config")),
}


def points(
    params: Sequence[float] | Floats,
    tokens: Sequence[float] | Floats,
    loss: Sequence[float] | Floats,
    flops: Sequence[float] | Floats | None = None,
) -> Points:
    N, D = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    return Points(
        params=N,
        tokens=D,
        flops=6 * N * D if flops is None else np.asarray(flops, dtype=float),
        loss=np.asarray(loss, dtype=float),
        bound=np.zeros(len(N), dtype=bool),
        cluster=np.arange(len(N)),
        names=tuple(f"row {index}" for index in range(len(N))),
    )


def isoflop_points(
    truth: Surface,
    budgets: Sequence[float] = BUDGETS,
    reach: float = 4.0,
    sizes: int = 9,
    drift: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Sizes within `reach` of a centre that moves from the best size to `drift` times it."""
    N, D = [], []
    for index, flops in enumerate(budgets):
        centre = truth.best_params(flops) * drift ** (index / max(len(budgets) - 1, 1))
        for size in np.geomspace(centre / reach, centre * reach, sizes):
            N.append(float(size))
            D.append(flops / 6 / float(size))
    clean = [truth.loss(size, tokens) for size, tokens in zip(N, D, strict=True)]
    noises = noise * np.random.default_rng(seed).standard_normal(len(N))
    return points(N, D, np.array(clean) + noises)


def sweep_of(made: Points) -> Sweep:
    runs = tuple(
        Run(row=row, run=f"run {row}", params=N, tokens=D, flops=C, loss=L)
        for row, (N, D, C, L) in enumerate(
            zip(
                *(getattr(made, name).tolist() for name in ("params", "tokens", "flops", "loss")),
                strict=True,
            ),
            start=1,
        )
    )
    return Sweep(
        source="made",
        folder=None,
        group=None,
        sha256="0" * 64,
        rows=len(runs),
        runs=runs,
        stopped=(),
        rejections=(),
        accounting=Accounting(flops="6nd"),
        noise=None,
        findings=(),
        settings=None,
    )


def published(data: Path, name: str, where: tuple[str, ...] = ()) -> dict[str, Sweep]:
    """The sweeps of one published table, by group."""
    path, options = PUBLISHED[name]
    asked = ReadOptions(options.maps, where, options.group, options.spec)
    found = read_sweeps(str(data / "scaling" / path), asked)
    return {sweep.group or name: sweep for sweep in found}


def published_points(data: Path, name: str, where: tuple[str, ...] = ()) -> dict[str, Points]:
    return {
        group: points_of(groups(sweep)) for group, sweep in published(data, name, where).items()
    }


def fitted(made: Points) -> SurfaceFit:
    fit = fit_huber(made)
    assert isinstance(fit, SurfaceFit), fit
    return fit
