"""Frozen dataclasses as configuration: default < recipe < TOML file < `key=value`.

A config is a tree of frozen dataclasses, each beside what it configures. This file turns
mappings and command-line assignments into such trees and back, and refuses what it does not
know: an unknown key is an error that names the nearest known one.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from scalewright.errors import ConfigError

Config = TypeVar("Config")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; `ConfigError` names the file and what is wrong with it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML config or plan") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def merge(config: Config, changes: Mapping[str, Any], where: str) -> Config:
    """Return `config` with the nested `changes` applied; unknown keys, wrong types are errors."""
    return _merge(config, changes, where, prefix="")


def assign(config: Config, assignments: Sequence[str]) -> Config:
    """Apply command-line assignments such as `model.width=256`; values are TOML, else plain text.

    All are applied at once, so that settings which must fit each other may come in any order.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"{text!r}: expected key=value, for example optimizer.lr_peak=3e-3")
        *tables, name = key.split(".")
        table = changes
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{text!r}: {part} was given a value before")
        table[name] = _toml_value(value)
    return merge(config, changes, where="command line")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain mappings; fields that are None are left out (TOML has no null)."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) is not None
    }


def to_toml(config: Any) -> str:
    """The config as TOML text that `merge` reads back to an equal config."""
    return tomli_w.dumps(to_dict(config))


def digest(config: Any) -> str:
    """Twelve hex digits that change when any field changes."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(config: Any, changes: Mapping[str, Any], where: str, prefix: str) -> Any:
    annotations = typing.get_type_hints(type(config))
    known = [field.name for field in dataclasses.fields(config)]
    new: dict[str, Any] = {}
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise ConfigError(f"{where}: unknown key {name!r}{_nearest(key, known, prefix)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} is a table with keys, not {value!r}")
            new[key] = _merge(current, value, where, prefix=f"{name}.")
        else:
            new[key] = _checked(value, annotations[key], where, name)
    return dataclasses.replace(config, **new)


def _nearest(key: str, known: Sequence[str], prefix: str) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {prefix + close[0]!r}?" if close else ""
    return f"{hint} Known here: {', '.join(known)}"


def _checked(value: Any, annotation: Any, where: str, name: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option is not type(None)]
        return _checked(value, options[0], where, name)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where}: {name} = {value!r}; allowed: {', '.join(map(repr, arguments))}"
            )
        return value
    if origin is tuple:
        return _checked_tuple(value, arguments, where, name)
    if origin is Mapping:
        return _checked_mapping(value, arguments, where, name)
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {name} is a table with keys, not {value!r}")
        assert isinstance(annotation, type)
        return _merge(annotation(), value, where, prefix=f"{name}.")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {name} = {value}; it must be finite")
    if isinstance(value, annotation) and not (annotation is not bool and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {name} = {value!r}; expected {annotation.__name__}")


def _checked_mapping(
    value: Any, arguments: tuple[Any, ...], where: str, name: str
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {name} is a table of names and values, not {value!r}")
    return {
        key: _checked(item, arguments[1], where, f"{name}.{key}") for key, item in value.items()
    }


def _checked_tuple(
    value: Any, arguments: tuple[Any, ...], where: str, name: str
) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: {name} = {value!r}; expected a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{where}: {name} = {value!r}; expected {len(arguments)} values")
    return tuple(
        _checked(item, argument, where, f"{name}[{index}]")
        for index, (item, argument) in enumerate(zip(value, arguments, strict=True))
    )
