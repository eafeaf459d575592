"""Numbers as people write them: 2.43 B parameters, 1e22 FLOPs, 2.05e-4, 12,300 GPU hours."""

import math
from collections.abc import Callable

from planner.fitting.laws import Estimate

SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SMALL = 0.01  # below it, and from LARGE on, plain decimals are hard to read
LARGE = 1e5
UNKNOWN = "not known"


def count(value: float, digits: int = 3) -> str:
    """Parameters or tokens: 2.43 B, 186 k, 1.82 M; below a thousand the number itself."""
    for size, suffix in SUFFIXES:
        # 999.6 k is 1 M at three digits.
        if abs(value) >= size * (1 - 0.5 * 10**-digits) and abs(value) < 1e16:
            return f"{_significant(value / size, digits)} {suffix}"
    return scientific(value, digits) if abs(value) >= LARGE else _significant(value, digits)


def scientific(value: float, digits: int = 3) -> str:
    """FLOPs and learning rates: 1e22, 5.85e20, 2.05e-4."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_trimmed(mantissa)}e{int(exponent)}"


def scientific_enough(value: float, digits: int = 3) -> str:
    """As `scientific`, but never less than the value: a least cost that is given must suffice."""
    written = scientific(value, digits)
    if not math.isfinite(value) or float(written) >= value:
        return written
    return scientific(value + 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits), digits)


def plain(value: float, digits: int = 3) -> str:
    """Decimals where they are readable, else as `scientific`; thousands are parted."""
    if value == 0 or SMALL <= abs(value) < LARGE:
        return _significant(value, digits)
    return scientific(value, digits)


def whole(value: float) -> str:
    """Steps, widths, GPU hours: 57,200; from a million on as `count`."""
    return f"{value:,.0f}" if abs(value) < 1e6 else count(value)


def loss(value: float) -> str:
    """Four decimals, more for losses of a few hundredths."""
    return f"{value:.4f}" if abs(value) >= 0.1 else _significant(value, 4)


def percent(share: float, signed: bool = False) -> str:
    """A fraction as per cent, with as many decimals as it takes to see it."""
    size = abs(share)
    decimals = 0 if size >= 0.1 else 1 if size >= 0.01 else 2
    text = _trimmed(f"{100 * share:{'+' if signed else ''}.{decimals}f}")
    return "0%" if text in ("-0", "+0") else f"{text}%"


def factor(value: float) -> str:
    """How many times over: ×1.19, ×12."""
    return f"×{_significant(value, 3)}"


def interval(estimate: Estimate, word: Callable[[float], str]) -> str:
    """'low to high', or that it is not known; `word` turns a number into text."""
    if estimate.low is None or estimate.high is None:
        return UNKNOWN
    return f"{word(estimate.low)} to {word(estimate.high)}"


def sentence(text: str) -> str:
    """With a capital letter first and a full stop last."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def many(number: int, one: str, several: str | None = None) -> str:
    """'1 group', '3 groups'."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _significant(value: float, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return _trimmed(f"{value:,.{decimals}f}")


def _trimmed(text: str) -> str:
    """Without zeros that end a fraction."""
    return text.rstrip("0").rstrip(".") if "." in text else text
