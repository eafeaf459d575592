"""What every run of a sweep shared: its config, and the clip sizes that make its FLOPs exact."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from planner.errors import InputError
from planner.records import SWEEP_FILE, Sweep

# Its error is reached through shape: the planner imports nothing else of the platform.
from scalewright.model import shape

LADDER_LARGEST_WIDTH = 16_384


@dataclass(frozen=True)
class Base:
    """The `[base]` and `[clips]` tables of `sweep.toml`, validated.

    `tables` is the config as written; `clips` are the distinct clip sizes with how often each
    occurs.
    """

    tables: Mapping[str, Any]
    model: shape.ModelConfig
    clips: tuple[tuple[shape.ClipTokens, int], ...]
    name: str
    steps: int
    warmup_steps: int

    @property
    def warmup_share(self) -> float:
        return self.warmup_steps / self.steps

    def flops_per_token(self, model: shape.ModelConfig) -> float:
        """Exact training FLOPs of a visual token, attention included, in the mean over the clips.

        6ND is off by -51% to -80% for video, so nothing is planned with it.
        """
        flops = sum(shape.train_flops(model, [clip]) * count for clip, count in self.clips)
        return flops / sum(clip.visual * count for clip, count in self.clips)

    @cached_property
    def ladder(self) -> tuple["Size", ...]:
        """The sizes a plan may choose from: every width by heads, at the depth of the sweep."""
        models = shape.width_ladder(self.model, LADDER_LARGEST_WIDTH)
        return tuple(Size(model, shape.block_parameters(model)) for model in models)

    def nearest_size(self, block_params: float) -> shape.ModelConfig:
        """The rung whose N is nearest to `block_params` by ratio."""
        wanted = math.log(block_params)
        return min(self.ladder, key=lambda s: abs(math.log(s.block_params) - wanted)).model


@dataclass(frozen=True)
class Size:
    """A rung of the ladder."""

    model: shape.ModelConfig
    block_params: int


def read_base(sweep: Sweep) -> Base | None:
    """The base of the sweep, None without `sweep.toml`; `InputError` where it does not fit."""
    if sweep.settings is None:
        return None
    where = str(sweep.folder / SWEEP_FILE)
    tables = _table(sweep.settings, "base", where)
    optimizer = _table(tables, "optimizer", f"{where}: [base]")
    base = Base(
        tables=tables,
        model=_model(_table(tables, "model", f"{where}: [base]"), where),
        clips=_clips(_table(sweep.settings, "clips", where), where),
        name=_text(tables, "name", f"{where}: [base]"),
        steps=_whole(tables, "steps", f"{where}: [base]", least=1),
        warmup_steps=_whole(optimizer, "warmup_steps", f"{where}: [base.optimizer]", least=0),
    )
    _check_schedule(sweep, optimizer, where)
    _check_sizes(sweep, base, where)
    return base


def worst_flops_deviation(sweep: Sweep, base: Base) -> float:
    """Largest relative gap between a record's FLOPs per token and those of the clips' mean."""
    per_token = {
        width: base.flops_per_token(replace(base.model, width=width))
        for width in {record.width for record in sweep.records}
    }
    return max(
        abs(record.flops / record.tokens / per_token[record.width] - 1) for record in sweep.records
    )


def _model(table: Mapping[str, Any], where: str) -> shape.ModelConfig:
    known = {field.name for field in fields(shape.ModelConfig)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise InputError(
            f"{where}: [base.model] has unknown keys {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known))}"
        )
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in table.items()
    }
    try:
        return shape.ModelConfig(**values)
    except (shape.ConfigError, TypeError) as error:
        raise InputError(f"{where}: [base.model]: {error}") from None


def _clips(table: Mapping[str, Any], where: str) -> tuple[tuple[shape.ClipTokens, int], ...]:
    columns = [table.get(name) for name in ("visual", "text", "count")]
    if any(not isinstance(column, list) or not column for column in columns):
        raise InputError(f"{where}: [clips] needs the lists visual, text and count, none empty")
    visual, text, count = columns
    if not len(visual) == len(text) == len(count):  # type: ignore[arg-type]
        raise InputError(f"{where}: [clips] visual, text and count must be of one length")
    rows = list(zip(visual, text, count, strict=True))  # type: ignore[arg-type]
    for row in rows:
        if any(not isinstance(value, int) or value < 1 for value in row):
            raise InputError(f"{where}: [clips] has {row}; tokens and counts are at least 1")
    return tuple((shape.ClipTokens(visual, text), count) for visual, text, count in rows)


def _check_schedule(sweep: Sweep, optimizer: Mapping[str, Any], where: str) -> None:
    planned, seen = optimizer.get("schedule"), sweep.records[0].schedule
    if planned is not None and planned != seen:
        raise InputError(
            f"{where}: [base.optimizer] schedule is {planned!r}, but the runs were made with "
            f"{seen!r}; give the sweep.toml that these runs were made with"
        )


def _check_sizes(sweep: Sweep, base: Base, where: str) -> None:
    """The N of every record must be the N of the ladder, or the laws speak of other models."""
    for record in sweep.records:
        try:
            expected = shape.block_parameters(replace(base.model, width=record.width))
        except shape.ConfigError as error:
            raise InputError(f"{sweep.runs_path}:{record.line}: {error}") from None
        if record.block_params != expected or record.depth != base.model.depth:
            raise InputError(
                f"{sweep.runs_path}:{record.line}: width {record.width}, depth {record.depth} has "
                f"block_params {record.block_params}, but the model of {where} has {expected} at "
                f"depth {base.model.depth}; give the sweep.toml that these runs were made with"
            )


def _table(parent: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = parent.get(name)
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: the table [{name}] is missing; jobs/sweep.py writes it")
    return table


def _text(table: Mapping[str, Any], name: str, where: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {name} is {value!r}; expected text")
    return value


def _whole(table: Mapping[str, Any], name: str, where: str, least: int) -> int:
    value = table.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{where}: {name} is {value!r}; expected a whole number from {least}")
    return value
