"""What is believed of a law before a sweep: a surface, and laws of learning rate and batch.

A design needs them only roughly: where the best sizes lie, and how strongly each term bends there.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.fitting.surface import CONSTANTS, Surface

BILLION = 1e9


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """coefficient · N^params_exponent · D^tokens_exponent."""

    coefficient: float
    params_exponent: float
    tokens_exponent: float

    def value(self, params: float, tokens: float) -> float:
        of_params = self.params_exponent * math.log(params)
        return self.coefficient * math.exp(of_params + self.tokens_exponent * math.log(tokens))


@dataclass(frozen=True, slots=True)
class Prior:
    """A law to design for; `lr` and `batch_tokens` are None where it says nothing of them."""

    name: str
    source: str
    surface: Surface
    lr: PowerLaw | None
    batch_tokens: PowerLaw | None


def _per_billion(coefficient: float, params_exponent: float, tokens_exponent: float) -> PowerLaw:
    """A law that counts parameters and tokens in billions."""
    raw = coefficient * BILLION ** -(params_exponent + tokens_exponent)
    return PowerLaw(raw, params_exponent, tokens_exponent)


KLING = Prior(
    name="kling",
    source="video diffusion transformers, arXiv 2411.17470, Eq. 10, 13 and 15",
    surface=Surface(
        E=0.4856, A=0.0082 * BILLION**0.3188, B=0.0373 * BILLION**0.2917, alpha=0.3188, beta=0.2917
    ),
    lr=_per_billion(2.0e-4, -0.1619, -0.0453),
    batch_tokens=_per_billion(2.1797e4, 0.1906, 0.8080),
)
CHINCHILLA = Prior(
    name="chinchilla",
    source="language models, Chinchilla as replicated in arXiv 2404.10102",
    surface=Surface(E=1.8172, A=477.8, B=2143.0, alpha=0.3473, beta=0.3672),
    lr=None,
    batch_tokens=None,
)
KNOWN = {prior.name: prior for prior in (KLING, CHINCHILLA)}


def read_prior(name: str) -> Prior:
    """The prior called `name`, or the one fitted in the laws.json at that path."""
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"--prior {name}: neither {' nor '.join(KNOWN)} nor a file; give one of these names, "
            "or the laws.json of `planner fit --out`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError(f"--prior {name}: not JSON ({error})") from None
    return _fitted(content, name)


def _fitted(content: object, where: str) -> Prior:
    surface = _at(content, "surface", "huber")
    if not isinstance(surface, Mapping) or "not_fitted" in surface:
        hint = " of one group (this one holds several)" if _at(content, "groups") else ""
        raise InputError(
            f"--prior {where}: no fitted surface in it (surface.huber); give the laws.json{hint} "
            "of a sweep that carries a surface"
        )
    values = {name: _number(surface, name, f"{where}: surface.huber") for name in CONSTANTS}
    low = [name for name in CONSTANTS if values[name] <= 0]
    if low:
        raise InputError(
            f"--prior {where}: surface.huber has {low[0]} = {values[low[0]]:.4g}; a law to design "
            "for needs every constant above 0. Give another law"
        )
    return Prior(
        name=where,
        source="a surface of planner fit",
        surface=Surface(**values),
        lr=_power_law(_at(content, "hyper", "laws", "lr"), f"{where}: hyper.laws.lr"),
        batch_tokens=_power_law(
            _at(content, "hyper", "laws", "batch_tokens"), f"{where}: hyper.laws.batch_tokens"
        ),
    )


def _power_law(table: object, where: str) -> PowerLaw | None:
    """None where no law could be fitted: there the document holds a reason instead."""
    if not isinstance(table, Mapping) or table.get("coefficient") is None:
        return None
    names = ("coefficient", "params_exponent", "tokens_exponent")
    return PowerLaw(*(_number(table, name, where) for name in names))


def _number(table: Mapping[str, Any], name: str, where: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"--prior {where} has {name} = {value!r}; expected a finite number")
    return float(value)


def _at(content: object, *names: str) -> object:
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
