"""What a mapping and a condition say of a row: `column*number`, `column>=value`."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from planner.errors import InputError

NEAR = 0.6  # difflib's own cutoff
_CONDITION = re.compile(r"^(.*?)\s*(!=|<=|>=|==?|<|>)\s*(.*)$", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Expression:
    """A column times and divided by numbers, or, without a column, a number for every row."""

    column: str | None
    times: float = 1.0
    over: float = 1.0

    def value(self, cells: Mapping[str, Any]) -> Any:
        """The cell as it is where nothing is computed; otherwise a number, or the cell if none."""
        if self.column is None:
            return self.times
        value = cells.get(self.column)
        number = number_of(value)
        if number is None or self.times == self.over == 1.0:
            return value
        return number * self.times / self.over


@dataclass(frozen=True, slots=True)
class Condition:
    """What --where asks of a row; `text` is it as given."""

    text: str
    expression: Expression
    compare: str
    limit: str

    def holds(self, cells: Mapping[str, Any]) -> bool:
        """Numbers compare as numbers where both sides are some; a missing value equals only ""."""
        value = self.expression.value(cells)
        left, right = number_of(value), number_of(self.limit)
        if left is not None and right is not None:
            return _COMPARE[self.compare](left, right)
        if self.compare in ("=", "!="):
            return _COMPARE[self.compare](as_text(value), self.limit)
        if value is None or left is not None or right is not None:
            return False
        return _COMPARE[self.compare](as_text(value), self.limit)


def number_of(value: Any) -> float | None:
    """A cell as a number (infinite ones too), None for NaN and whatever else is none."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def as_text(value: Any) -> str:
    """A cell as a user writes it in a condition; a missing value is the empty text."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_expression(text: str, columns: Sequence[str], where: str) -> Expression:
    """A column by its exact name, `column*number`, `column/number`, or a number for all rows."""
    text = text.strip()
    if text in columns:
        return Expression(text)
    for sign in "*/":
        column, found, factor = (part.strip() for part in text.rpartition(sign))
        if found and column in columns:
            return _scaled(column, sign, factor, where)
    number = number_of(text)
    if number is not None:
        return Expression(None, times=number)
    raise InputError(f"{where}: {unknown('column', text, columns)}")


def _scaled(column: str, sign: str, factor: str, where: str) -> Expression:
    number = number_of(factor)
    if number is None or not math.isfinite(number) or number <= 0:
        raise InputError(f"{where}: {factor!r} after {sign!r} must be a number above 0")
    if sign == "*":
        return Expression(column, times=number)
    return Expression(column, over=number)


def parse_condition(
    text: str, columns: Sequence[str], canonical: Mapping[str, Expression]
) -> Condition:
    """`column=value`, or !=, <, <=, >, >=; the column is a raw one, or else a canonical name."""
    match = _CONDITION.match(text.strip())
    if match is None or not match[1]:
        raise InputError(f"--where {text!r}: expected column=value, or !=, <, <=, >, >=")
    name, compare, limit = match.groups()
    expression = column_or_canonical(name, columns, canonical, f"--where {text!r}")
    return Condition(text, expression, compare.replace("==", "="), limit)


def column_or_canonical(
    name: str, columns: Sequence[str], canonical: Mapping[str, Expression], where: str
) -> Expression:
    """The raw column of that name, or what the canonical name is read from."""
    name = name.strip()
    if name in columns:
        return Expression(name)
    if name in canonical:
        return canonical[name]
    raise InputError(f"{where}: {unknown('column', name, [*columns, *canonical])}")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not there: the near ones, then all."""
    known = list(dict.fromkeys(known))
    folded = {one.lower(): one for one in known}
    near = [folded[one] for one in get_close_matches(name.lower(), folded, cutoff=NEAR)]
    listed = f" (near: {', '.join(map(repr, near))})" if near else ""
    return f"there is no {kind} {name!r}{listed}; there are: {', '.join(known)}"
