"""Quality scores of a file: columns of the captions' CSV, brought from their range to 0 to 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalewright.errors import ConfigError, DataError


@dataclass(frozen=True)
class ScoreColumn:
    """A column of scores and the range that its numbers are given in."""

    name: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or self.name in ("path", "caption", "collection"):
            raise ConfigError(
                f"score {self.name!r}; name a column other than path, caption and collection"
            )
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ConfigError(
                f"score {self.name}: range {self.low:g}:{self.high:g}; the first number must be "
                "below the second, and both finite"
            )

    def share(self, cell: str, where: str) -> float:
        """The number in `cell` as its share of the range, in [0, 1]; `where` names the line."""
        try:
            value = float(cell)
        except ValueError:
            raise DataError(
                f"{where}: {self.name} = {cell!r} is not a number; leave the cell empty where "
                "the score is unknown"
            ) from None
        if not self.low <= value <= self.high:
            raise DataError(
                f"{where}: {self.name} = {cell} is outside {self.low:g} to {self.high:g}; correct "
                f"it, or state the column's range as {self.name}=LOW:HIGH"
            )
        return (value - self.low) / (self.high - self.low)


def parse_score_columns(text: str) -> tuple[ScoreColumn, ...]:
    """Columns from `NAME[=LOW:HIGH],...`, such as `motion,aesthetics=1:10`; "" names none."""
    columns = tuple(_parse(part) for part in text.split(",")) if text.strip() else ()
    names = [column.name for column in columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{text!r}: score {twice[0]} is there twice")
    return columns


def _parse(text: str) -> ScoreColumn:
    name, has_range, limits = (part.strip() for part in text.partition("="))
    if not has_range:
        return ScoreColumn(name)
    try:
        low, high = (float(limit) for limit in limits.split(":"))
    except ValueError:
        raise ConfigError(
            f"score {text.strip()!r}; expected NAME or NAME=LOW:HIGH, such as aesthetics=1:10"
        ) from None
    return ScoreColumn(name, low, high)


def read_scores(
    row: Mapping[str, str | None], columns: Sequence[ScoreColumn], where: str
) -> dict[str, float]:
    """The scores of a CSV row by name; a column whose cell is empty is left out, as unknown."""
    cells = {column: (row[column.name] or "").strip() for column in columns}
    return {column.name: column.share(cell, where) for column, cell in cells.items() if cell}
