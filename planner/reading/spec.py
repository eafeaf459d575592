"""How a table is to be read: `sweep.toml` or --spec, then --map, --where and --group.

A canonical column is read from what --map or [columns] says; else, in the platform's own records,
from its own name for it; else from the column of the same name.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.reading.expressions import Expression, parse_expression, unknown
from planner.reading.runs import Accounting

SWEEP_FILE = "sweep.toml"
CANONICAL = (
    *("params", "tokens", "flops", "budget", "lr", "batch_tokens", "loss"),
    *("width", "depth", "seed", "status", "run", "steps"),
)
NATIVE = {"params": "block_params", "lr": "lr_peak", "budget": "budget_flops"}
NATIVE_MARKS = ("block_params", "lr_peak")
NATIVE_ACCOUNTING = Accounting("exact", "transformer blocks, without embeddings and head")

_TABLES = ("columns", "units", "accounting", "where", "group")
_UNITS = {"loss": ("nats", "bits")}
_FLOPS = ("exact", "6nd")
_SIZES = ("params", "tokens", "flops")
# How others name what a fit cannot do without, for a suggestion; letters and digits only.
_NAMES = {
    "loss": ("valloss", "evalloss", "validationloss", "finalloss", "testloss", "smoothloss"),
    "params": ("parameters", "modelsize", "n", "nparams", "numparams", "parametercount"),
    "tokens": ("d", "trainingtokens", "traintokens", "ntokens", "numtokens", "totaltokens"),
    "flops": ("c", "trainingflop", "trainingflops", "flop", "compute", "totalflops", "budget"),
}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The reader's options of the command line, as given there."""

    maps: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    group: str | None = None
    spec: Path | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What a file and the command line say together of how to read a table.

    `columns` maps canonical names to expressions as written; an empty one leaves the column out.
    `said_by` names for messages where each was written. `settings` is the file as parsed.
    """

    columns: Mapping[str, str]
    said_by: Mapping[str, str]
    where: tuple[str, ...] = ()
    group: str | None = None
    loss_in_bits: bool = False
    accounting: Accounting = field(default_factory=Accounting)
    noise: float | None = None
    settings: Mapping[str, Any] | None = None


def read_spec(folder: Path | None, options: ReadOptions) -> Spec:
    """The spec of --spec, or of the `sweep.toml` in `folder`, with the command line over it."""
    spec = Spec({}, {})
    path = options.spec or (folder / SWEEP_FILE if folder else None)
    if path is not None and (options.spec or path.is_file()):
        spec = parse_spec(_read_toml(path), str(path))
    maps = _parse_maps(options.maps)
    return replace(
        spec,
        columns={**spec.columns, **maps},
        said_by={**spec.said_by, **{name: f"--map {name}" for name in maps}},
        where=(*spec.where, *options.where),
        group=spec.group if options.group is None else options.group,
    )


def parse_spec(settings: Mapping[str, Any], place: str) -> Spec:
    """The parts of `sweep.toml` that say how to read the table; `InputError` at `place`."""
    _check_misspelt(settings, place)
    columns = _table(settings, "columns", CANONICAL, place)
    for name, text in columns.items():
        if not isinstance(text, str | int | float) or isinstance(text, bool):
            raise InputError(f"{place}: [columns] {name} is {text!r}; expected a column's name")
    units = _table(settings, "units", _UNITS, place)
    accounting = _table(settings, "accounting", ("flops", "params", "noise"), place)
    loss_unit = _one_of(units, "loss", _UNITS["loss"], f"{place}: [units]")
    params = accounting.get("params")
    if params is not None and not isinstance(params, str):
        raise InputError(f"{place}: [accounting] params is {params!r}; expected words")
    return Spec(
        columns={name: str(text) for name, text in columns.items()},
        said_by={name: f"{place}: [columns] {name}" for name in columns},
        where=_where(settings, place),
        group=_group(settings, place),
        loss_in_bits=loss_unit == "bits",
        accounting=Accounting(
            _one_of(accounting, "flops", _FLOPS, f"{place}: [accounting]"),  # type: ignore[arg-type]
            params,
        ),
        noise=_noise(accounting, place),
        settings=settings,
    )


def is_native(columns: Sequence[str]) -> bool:
    """Whether the table holds the platform's own records (jobs/sweep.py)."""
    return all(name in columns for name in NATIVE_MARKS)


def resolve(spec: Spec, columns: Sequence[str], place: str) -> dict[str, Expression]:
    """What each canonical column is read from; `InputError` where a fit's least is missing."""
    own = {name: name for name in CANONICAL if name in columns}
    if is_native(columns):
        own |= {name: column for name, column in NATIVE.items() if column in columns}
    resolved = {name: Expression(column) for name, column in own.items()}
    for name, text in spec.columns.items():
        if text.strip():
            resolved[name] = parse_expression(text, columns, spec.said_by[name])
        else:
            resolved.pop(name, None)
    _check_enough(resolved, columns, place)
    return resolved


def accounting_of(spec: Spec, columns: Sequence[str]) -> Accounting:
    """What the spec states, or else what is known of the platform's own records."""
    stated = spec.accounting
    if not is_native(columns):
        return stated
    flops = stated.flops or (None if "flops" in spec.columns else NATIVE_ACCOUNTING.flops)
    params = stated.params or (None if "params" in spec.columns else NATIVE_ACCOUNTING.params)
    return Accounting(flops, params)


def _check_enough(resolved: Mapping[str, Expression], columns: Sequence[str], place: str) -> None:
    """A loss, and two of params, tokens and flops: the third follows by the accounting."""
    missing = [] if "loss" in resolved else ["loss"]
    sizes = [name for name in _SIZES if name not in resolved]
    if len(sizes) > 1:
        missing += sizes
    if not missing:
        return
    guesses = {name: _near(name, columns) for name in missing}
    options = [f'--map {name}="{column}"' for name, column in guesses.items() if column]
    way_out = (
        f"perhaps {' '.join(options)}" if options else 'say which they are with --map NAME="COLUMN"'
    )
    raise InputError(
        f"{place}: no column {', '.join(missing)} (a fit needs loss, and two of "
        f"{', '.join(_SIZES)}); {way_out}. There are: {', '.join(columns)}"
    )


def _near(name: str, columns: Sequence[str]) -> str | None:
    """The column most likely meant by a canonical name: a synonym, one alike, one that holds it.

    One that is canonical itself is only meant where it is a synonym (a budget is FLOPs too).
    """
    columns = [one for one in columns if one not in CANONICAL or one in _NAMES[name]]
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(columns)}
    synonyms = (name, *_NAMES[name])
    alike = (near for one in synonyms for near in get_close_matches(one, plain, cutoff=0.75))
    holding = (text for one in synonyms if len(one) > 3 for text in plain if one in text)
    for text in (*(one for one in synonyms if one in plain), *alike, *holding):
        return plain[text]
    return None


def _parse_maps(texts: Sequence[str]) -> dict[str, str]:
    """What each canonical column is read from; `InputError` where that is said twice."""
    maps: dict[str, str] = {}
    for text in texts:
        name, expression = _parse_map(text)
        if name in maps:
            raise InputError(
                f"--map {name}: given twice, as {maps[name]!r} and as {expression!r}; give one"
            )
        maps[name] = expression
    return maps


def _parse_map(text: str) -> tuple[str, str]:
    name, sign, expression = (part.strip() for part in text.partition("="))
    if not sign:
        raise InputError(f'--map {text!r}: expected NAME="COLUMN", as in params="Model Size"')
    if name not in CANONICAL:
        raise InputError(f"--map {text!r}: {unknown('canonical column', name, CANONICAL)}")
    return name, expression


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _check_misspelt(settings: Mapping[str, Any], place: str) -> None:
    """Tables of others are left alone, but a name almost ours would be passed over in silence."""
    for name in settings:
        near = get_close_matches(name, _TABLES, n=1, cutoff=0.8)
        if near and name not in _TABLES:
            raise InputError(f"{place}: {name!r} is not known; did you mean {near[0]!r}?")


def _table(
    settings: Mapping[str, Any], name: str, known: Sequence[str] | Mapping[str, Any], place: str
) -> Mapping[str, Any]:
    table = settings.get(name, {})
    if not isinstance(table, Mapping):
        raise InputError(f"{place}: {name} is {table!r}; expected a table [{name}]")
    for key in table:
        if key in ("where", "group"):
            raise InputError(
                f"{place}: {key} stands inside [{name}]; put it above the first [table]"
            )
        if key not in known:
            raise InputError(f"{place}: [{name}]: {unknown('key', key, known)}")
    return table


def _one_of(
    table: Mapping[str, Any], name: str, allowed: tuple[str, ...], where: str
) -> str | None:
    value = table.get(name)
    if value is None or value in allowed:
        return value
    raise InputError(f"{where} {name} is {value!r}; allowed: {', '.join(allowed)}")


def _where(settings: Mapping[str, Any], place: str) -> tuple[str, ...]:
    value = settings.get("where", [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f'{place}: where is {value!r}; expected a list such as ["lr<0.01"]')
    return tuple(value)


def _group(settings: Mapping[str, Any], place: str) -> str | None:
    value = settings.get("group")
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: group is {value!r}; expected the name of a column")
    return value


def _noise(accounting: Mapping[str, Any], place: str) -> float | None:
    value = accounting.get("noise")
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value < 1:
        raise InputError(
            f"{place}: [accounting] noise is {value!r}; expected the relative standard deviation "
            "of the loss between seeds, such as 0.002, from 0 to below 1"
        )
    return float(value)
