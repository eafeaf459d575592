"""What every run of a native sweep shared: its config, and the clip sizes that make FLOPs exact."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np

from planner.errors import InputError
from planner.findings import Finding
from planner.fitting.frontier import Frontier, six_nd
from planner.fitting.surface import FLOPS_PER_PARAM_TOKEN, Floats, Points
from planner.reading.records import Sweep
from planner.reading.runs import Accounting, Run

# Its error is reached through shape: the planner imports nothing else of the platform.
from scalewright.model import shape
from scalewright.model.memory import Recompute

LADDER_LARGEST_WIDTH = 16_384
FLOPS_DEVIATION_LIMIT = 0.05
BEYOND_SMALLEST, BEYOND_LARGEST = 1e3, 1e5  # sizes a plan may choose from without a ladder
SAME_BATCH = 1.2
UNSTATED = Accounting()
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
EXACT = "scalewright.model.shape.train_flops, mean over the sweep's clips"
OF_RUNS = "FLOPs per token that the sweep's runs state, over their size"

_Clips = tuple[tuple[shape.ClipTokens, int], ...]


@dataclass(frozen=True)
class Size:
    """A rung of the ladder: `block_params` is its N, `flops_per_token` exact."""

    model: shape.ModelConfig
    block_params: int
    flops_per_token: float


@dataclass(frozen=True)
class Base:
    """The `[base]` and `[clips]` tables of `sweep.toml`, validated.

    `tables` is the config as written; `clips` are the distinct clip sizes with how often each
    occurs. `worlds` are the smallest and the largest number of workers of a run. `evaluations` is
    how often a sample evaluates the model for each of its tokens, None without a [base.log] table.
    """

    tables: Mapping[str, Any]
    model: shape.ModelConfig
    clips: _Clips
    name: str
    steps: int
    warmup_steps: int
    pack_tokens: int
    packs_per_step: int
    worlds: tuple[int, int]
    compute_bytes: int
    activation_checkpointing: Recompute
    evaluations: int | None

    @property
    def warmup_share(self) -> float:
        return self.warmup_steps / self.steps

    def flops_per_token(self, model: shape.ModelConfig) -> float:
        """Exact training FLOPs of a visual token, attention included, in the mean over the clips.

        6ND is off by -51% to -80% for video, so nothing is planned with it.
        """
        flops = sum(shape.train_flops(model, [clip]) * weight for clip, weight in self._probes)
        return flops / sum(clip.visual * count for clip, count in self.clips)

    @cached_property
    def _probes(self) -> _Clips:
        """Six clips, weighted, that cost together what all clips do, to the last FLOP.

        A clip's FLOPs are a quadratic in its (visual, text) tokens, which six values determine
        (Newton's forward differences); real data have thousands of distinct sizes.
        """
        weights = dict.fromkeys([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)], 0)
        for clip, count in self.clips:
            v, t = clip.visual, clip.text
            vv, vt, tt = v * (v - 1) // 2, v * t, t * (t - 1) // 2
            weights[0, 0] += count * (1 - v - t + vv + vt + tt)
            weights[1, 0] += count * (v - 2 * vv - vt)
            weights[0, 1] += count * (t - 2 * tt - vt)
            weights[2, 0] += count * vv
            weights[1, 1] += count * vt
            weights[0, 2] += count * tt
        return tuple((shape.ClipTokens(v, t), weight) for (v, t), weight in weights.items())

    @cached_property
    def ladder(self) -> tuple[Size, ...]:
        """The sizes a plan may choose from: every width by heads, at the depth of the sweep."""
        models = shape.width_ladder(self.model, LADDER_LARGEST_WIDTH)
        return tuple(
            Size(model, shape.block_parameters(model), self.flops_per_token(model))
            for model in models
        )

    def frontier(self) -> Frontier:
        """Exact FLOPs per token over the ladder's sizes, between them linear in ln-ln."""
        n = np.log([size.block_params for size in self.ladder])
        f = np.log([size.flops_per_token for size in self.ladder])

        def flops_per_token(params: Floats) -> Floats:
            return np.asarray(np.exp(_along(np.log(params), n, f)))

        return Frontier(flops_per_token, float(np.exp(n[0])), float(np.exp(n[-1])), EXACT)

    def packs_for(self, wanted: float) -> int:
        """The number of packs nearest to `wanted` by ratio that a legal number of workers share."""
        least, most = self.worlds

        def legal(packs: int) -> bool:
            return any(packs % world == 0 for world in range(least, most + 1))

        above = next(n for n in itertools.count(max(1, math.ceil(wanted))) if legal(n))
        below = next((n for n in range(math.floor(wanted), 0, -1) if legal(n)), above)
        return min((below, above), key=lambda packs: abs(math.log(packs / wanted)))

    def tokens_per_pack(self, batches: Iterable[float]) -> float:
        """Visual tokens of a pack in the mean, from the batches of the sweep's runs.

        Of several batch sizes it is the base's own that counts: the one nearest to what
        `packs_per_step` full packs hold.
        """
        seen = list(batches)
        everything = sum((clip.visual + clip.text) * count for clip, count in self.clips)
        share = sum(clip.visual * count for clip, count in self.clips) / everything
        full = self.packs_per_step * self.pack_tokens * share
        nearest = min(seen, key=lambda batch: abs(math.log(batch / full)))
        same = [batch for batch in seen if 1 / SAME_BATCH <= batch / nearest <= SAME_BATCH]
        return math.fsum(same) / len(same) / self.packs_per_step


def read_base(sweep: Sweep) -> Base | None:
    """The base of a native sweep, None where its settings have none.

    `InputError` where a table is missing or wrong, or is not that of these runs.
    """
    if sweep.settings is None or "base" not in sweep.settings:
        return None
    settings = _Table(f"{sweep.source}: sweep.toml", "", sweep.settings)
    tables = settings.table("base")
    data, parallel = tables.table("data"), tables.table("parallel")
    least_workers = parallel.whole("min_workers", least=1)
    base = Base(
        tables=tables.values,
        model=_model(tables.table("model")),
        clips=_clips(settings.table("clips")),
        name=tables.text("name"),
        steps=tables.whole("steps", least=1),
        warmup_steps=tables.table("optimizer").whole("warmup_steps", least=0),
        pack_tokens=data.whole("pack_tokens", least=1),
        packs_per_step=data.whole("packs_per_step", least=1),
        worlds=(least_workers, parallel.whole("workers", least=least_workers)),
        compute_bytes=_compute_bytes(parallel),
        activation_checkpointing=_recompute(parallel),
        evaluations=_evaluations(tables),
    )
    _check_schedule(sweep, tables.table("optimizer"))
    for run in sweep.runs:
        _check_size(run, base, sweep.source)
    return base


def frontier_of(base: Base | None, points: Points, accounting: Accounting = UNSTATED) -> Frontier:
    """What a token costs at each size: exact on the ladder, as the runs state, or C = 6ND."""
    if base is not None:
        return base.frontier()
    smallest = float(points.params.min()) / BEYOND_SMALLEST
    largest = float(points.params.max()) * BEYOND_LARGEST
    if accounting.flops == "exact":
        return Frontier(_cost_of_runs(points), smallest, largest, OF_RUNS)
    return six_nd(smallest, largest)


def check_flops(sweep: Sweep, base: Base) -> Finding | None:
    """Whether the clips explain what the runs cost: the planned steps rest on it."""
    per_token = {
        width: base.flops_per_token(replace(base.model, width=width))
        for width in {run.width for run in sweep.runs if run.width is not None}
    }
    off = [
        abs(run.flops / run.tokens / per_token[run.width] - 1)
        for run in sweep.runs
        if run.width is not None
    ]
    if max(off, default=0.0) <= FLOPS_DEVIATION_LIMIT:
        return None
    return Finding(
        "flops_off_clips",
        f"FLOPs per token of a run are {max(off):.0%} off those of the clips in sweep.toml (limit "
        f"{FLOPS_DEVIATION_LIMIT:.0%}): the planned steps inherit that gap. Give the sweep.toml "
        "that these runs were made with",
    )


def _along(x: Floats, knots: Floats, values: Floats) -> Floats:
    """Linear interpolation that goes on straight beyond both ends."""
    place = np.clip(np.searchsorted(knots, x), 1, len(knots) - 1)
    slope = (values[place] - values[place - 1]) / (knots[place] - knots[place - 1])
    return np.asarray(values[place] + slope * (x - knots[place]))


def _cost_of_runs(points: Points) -> Callable[[Floats], Floats]:
    """6N times a factor that runs straight over ln N, and stays what it is beyond the runs."""
    n = np.log(points.params)
    factor = np.log(points.flops / points.tokens / (FLOPS_PER_PARAM_TOKEN * points.params))
    slope, start = np.polyfit(n - n.min(), factor, 1) if np.ptp(n) > 0 else (0.0, factor.mean())
    ends = np.array([start, start + slope * np.ptp(n)])

    def flops_per_token(params: Floats) -> Floats:
        factors = np.interp(np.log(params), [n.min(), n.max()], ends)
        return np.asarray(FLOPS_PER_PARAM_TOKEN * params * np.exp(factors))

    return flops_per_token


@dataclass(frozen=True)
class _Table:
    """A TOML table, and where a reader finds it."""

    source: str
    path: str
    values: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.source}: [{self.path}]" if self.path else self.source

    def table(self, name: str) -> "_Table":
        values = self.values.get(name)
        if not isinstance(values, Mapping):
            raise InputError(f"{self.where}: no table [{name}]; jobs/sweep.py writes it")
        return _Table(self.source, f"{self.path}.{name}".lstrip("."), values)

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.where}: {name} is {value!r}; expected text")
        return value

    def whole(self, name: str, least: int) -> int:
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"{self.where}: {name} is {value!r}; expected a whole number from {least}"
            )
        return value


def _model(table: _Table) -> shape.ModelConfig:
    known = {field.name for field in fields(shape.ModelConfig)}
    unknown = sorted(set(table.values) - known)
    if unknown:
        raise InputError(
            f"{table.where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in table.values.items()
    }
    try:
        return shape.ModelConfig(**values)
    except (shape.ConfigError, TypeError) as error:
        raise InputError(f"{table.where}: {error}") from None


def _clips(table: _Table) -> _Clips:
    columns = [table.values.get(name) for name in ("visual", "text", "count")]
    if any(not isinstance(column, list) or not column for column in columns):
        raise InputError(f"{table.where}: needs the lists visual, text and count, none empty")
    visual, text, count = columns
    if not len(visual) == len(text) == len(count):  # type: ignore[arg-type]
        raise InputError(f"{table.where}: visual, text and count must be of one length")
    rows = list(zip(visual, text, count, strict=True))  # type: ignore[arg-type]
    for row in rows:
        if any(not isinstance(value, int) or value < 1 for value in row):
            raise InputError(f"{table.where}: has {row}; tokens and counts are at least 1")
    return tuple((shape.ClipTokens(visual, text), count) for visual, text, count in rows)


def _recompute(parallel: _Table) -> Recompute:
    name, known = parallel.text("activation_checkpointing"), get_args(Recompute)
    if name not in known:
        raise InputError(
            f"{parallel.where}: activation_checkpointing is {name!r}; known: {', '.join(known)}"
        )
    return cast(Recompute, name)


def _compute_bytes(parallel: _Table) -> int:
    compute = parallel.text("compute")
    if compute not in COMPUTE_BYTES:
        known = ", ".join(COMPUTE_BYTES)
        raise InputError(f"{parallel.where}: compute is {compute!r}; known: {known}")
    return COMPUTE_BYTES[compute]


def _evaluations(tables: _Table) -> int | None:
    """Steps of the sampler, each with and without the text (classifier-free guidance)."""
    if "log" not in tables.values:
        return None
    return 2 * tables.table("log").whole("sample_steps", least=1)


def _check_schedule(sweep: Sweep, optimizer: _Table) -> None:
    planned = optimizer.values.get("schedule")
    if planned is not None and sweep.schedule is not None and planned != sweep.schedule:
        raise InputError(
            f"{optimizer.where}: schedule is {planned!r}, but the runs were made with "
            f"{sweep.schedule!r}; give the sweep.toml that these runs were made with"
        )


def _check_size(run: Run, base: Base, source: str) -> None:
    """The N of a run must be the N of the ladder, or the laws speak of other models."""
    at = f"{source}: row {run.row}"
    if run.width is None or run.batch_tokens is None:
        name = "width" if run.width is None else "batch_tokens"
        raise InputError(f"{at}: no {name}, which a sweep with a [base] table needs; map it")
    try:
        expected = shape.block_parameters(replace(base.model, width=run.width))
    except shape.ConfigError as error:
        raise InputError(f"{at}: {error}") from None
    depth = base.model.depth if run.depth is None else run.depth
    if run.params != expected or depth != base.model.depth:
        raise InputError(
            f"{at}: width {run.width}, depth {depth} has {run.params:.0f} parameters, but the "
            f"model of sweep.toml has {expected} in its blocks at depth {base.model.depth}; give "
            "the sweep.toml that these runs were made with, or map params to block_params"
        )
