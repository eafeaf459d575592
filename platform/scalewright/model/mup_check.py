"""Does muP hold? Sizes inside models of several widths, and depths, and how they grow.

The coordinate check (Tensor Programs V, appendix D.1) and the update check: at every site, after
every update, the slope of log2 l1 against log2 width must be near zero. With `mup_base_depth`, the
same over depth, blocks taken together.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scalewright.errors import ConfigError
from scalewright.model.mup import ParamRule, param_rules
from scalewright.model.mup_measure import Kind, Sizes, StepsConfig, measure
from scalewright.model.shape import ModelConfig

Rules = Callable[[ModelConfig], dict[str, ParamRule]]
Axis = Literal["width", "depth"]

KINDS: tuple[Kind, ...] = ("coordinate", "update")
_BLOCK = re.compile(r"^blocks\.\d+")


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What is measured, and how flat it must be. `depths` count where depth is scaled, too."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    depths: tuple[int, ...] = (2, 4, 8, 16)
    seeds: int = 2
    max_slope: float = 0.15
    train: StepsConfig = field(default_factory=StepsConfig)

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if len(sizes) < 2 or list(sizes) != sorted(set(sizes)):
                raise ConfigError(f"check.{name} = {list(sizes)}; at least two, in rising order")
        if self.seeds < 1:
            raise ConfigError(f"check.seeds = {self.seeds}; at least 1")
        if not 0 < self.max_slope < 0.5:
            raise ConfigError(
                f"check.max_slope = {self.max_slope}; above 0 and below 0.5, the slope of a "
                "learning rate or an initial spread scaled by the root of what it should be"
            )


@dataclass(frozen=True)
class Site:
    """How one size grows: `slope` is the steepest of all steps, reached at `step` (from 1).

    l1[step - 1][size], the mean over seeds. `slope` is None where the site has no finite, nonzero
    size at any step, so that nothing can be said of it.
    """

    kind: Kind
    name: str
    slope: float | None
    step: int | None
    l1: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Scan:
    """All sites over models that differ in `axis` alone."""

    axis: Axis
    sizes: tuple[int, ...]
    max_slope: float
    sites: tuple[Site, ...]

    @property
    def failing(self) -> list[Site]:
        """The sites that break the promise, steepest first."""
        wrong = [s for s in self.sites if s.slope is None or abs(s.slope) > self.max_slope]
        return sorted(wrong, key=steepness, reverse=True)

    def steepest(self, kind: Kind) -> Site:
        return max((site for site in self.sites if site.kind == kind), key=steepness)


def steepness(site: Site) -> float:
    return math.inf if site.slope is None else abs(site.slope)


def check(model: ModelConfig, how: CheckConfig, rules: Rules = param_rules) -> list[Scan]:
    """Measure models like `model` over widths and, with `mup_base_depth`, over depths."""
    scans = [scan("width", [replace(model, width=width) for width in how.widths], how, rules)]
    if model.mup_base_depth is not None:
        # At the middle width: narrow models are noisy, wide ones slow.
        middle = replace(model, width=how.widths[len(how.widths) // 2 - 1])
        scans.append(scan("depth", [replace(middle, depth=d) for d in how.depths], how, rules))
    return scans


def scan(axis: Axis, models: Sequence[ModelConfig], how: CheckConfig, rules: Rules) -> Scan:
    """Measure `models`, each from every seed, and fit the slope of every site."""
    found = [_mean(_runs(axis, model, how, rules)) for model in models]
    sizes = tuple(model.width if axis == "width" else model.depth for model in models)
    names = list(found[0][0])
    sites = [_site(key, sizes, [[step[key] for step in steps] for steps in found]) for key in names]
    return Scan(axis, sizes, how.max_slope, tuple(sites))


def _runs(axis: Axis, model: ModelConfig, how: CheckConfig, rules: Rules) -> list[list[Sizes]]:
    table = rules(model)
    runs = [measure(model, table, how.train, seed) for seed in range(how.seeds)]
    if axis == "width":
        return runs
    return [[_blocks_together(sizes) for sizes in run] for run in runs]


def _blocks_together(sizes: Sizes) -> Sizes:
    """What models of different depths have in common.

    Of the residual stream that after the last block; of all other sites the mean over blocks, but
    for the last block, of whose text nobody reads what comes out.
    """
    groups: dict[tuple[Kind, str], list[float]] = {}
    for (kind, name), size in sizes.items():
        groups.setdefault((kind, _BLOCK.sub("blocks.*", name)), []).append(size)
    return {key: _common(key[1], group) for key, group in groups.items()}


def _common(name: str, blocks: list[float]) -> float:
    if name.startswith("blocks.*."):
        blocks = blocks[:-1] or blocks
        return sum(blocks) / len(blocks)
    return blocks[-1]


def _mean(runs: list[list[Sizes]]) -> list[Sizes]:
    """Over seeds, step by step."""
    return [
        {key: sum(sizes[key] for sizes in same_step) / len(runs) for key in same_step[0]}
        for same_step in zip(*runs, strict=True)
    ]


def _site(key: tuple[Kind, str], sizes: tuple[int, ...], l1: list[list[float]]) -> Site:
    """`l1[size][step]` of the site."""
    by_step = tuple(zip(*l1, strict=True))
    slopes = [
        (slope, step)
        for step, values in enumerate(by_step, start=1)
        if (slope := log_slope(sizes, values)) is not None
    ]
    broken = not slopes or not all(math.isfinite(x) for values in by_step for x in values)
    slope, step = (None, None) if broken else max(slopes, key=lambda found: abs(found[0]))
    return Site(*key, slope, step, by_step)


def log_slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of log2 y against log2 x; None where a y has no logarithm."""
    if not all(0 < value < math.inf for value in y):
        return None
    u, v = [math.log2(value) for value in x], [math.log2(value) for value in y]
    u_mean, v_mean = sum(u) / len(u), sum(v) / len(v)
    covariance = sum((a - u_mean) * (b - v_mean) for a, b in zip(u, v, strict=True))
    return covariance / sum((a - u_mean) ** 2 for a in u)
