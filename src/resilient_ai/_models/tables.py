"""Frozen dataclasses and TOML: read from a table, with errors a person can act on, and written."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin

from resilient_ai.errors import ConfigurationError

__all__ = ["read_table", "toml_value"]

T = TypeVar("T")


def read_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build `cls`, a dataclass, from a table whose keys are its fields.

    Values are checked against the annotations (str, int, float, bool, Literal, `X | None`,
    `tuple[X, ...]` and nested dataclasses); a wrong one is never coerced. `where` names the
    table in messages.

    Raises:
        ConfigurationError: an unknown key (with the nearest known one), a missing key or a
            value of the wrong type.
    """
    hints = _hints(cls)  # type: ignore[arg-type]  # any class is hashable
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    for key in table:
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key {key!r}{_nearest(key, list(known))}.")
    missing = [name for name, f in known.items() if name not in table and not _has_default(f)]
    if missing:
        raise ConfigurationError(f"{where}: {', '.join(map(repr, missing))} must be given.")
    return cls(**{key: _read(hints[key], value, f"{where}: {key}") for key, value in table.items()})


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """The annotations of a dataclass; evaluating them is most of the work of reading a catalogue."""
    return typing.get_type_hints(cls)


def _nearest(key: str, known: list[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - needed only once a key is misspelt

    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in {typing.Union, types.UnionType}:
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))  # TOML has no null
        return _read(hint, value, where)
    if origin is Literal:
        return _read_choice(get_args(hint), value, where)
    if origin is tuple:
        return _read_items(get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where} must be a table, not {value!r}.")
        return read_table(hint, value, where)
    return _read_scalar(hint, value, where)


def _read_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        near = _nearest(value, list(choices)) if isinstance(value, str) else ""
        raise ConfigurationError(f"{where} must be one of {', '.join(choices)}, not {value!r}{near}.")
    return value


def _read_items(item: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"{where} must be a list, not {value!r}.")
    return tuple(_read(item, each, f"{where}[{i}]") for i, each in enumerate(value))


def _read_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    # `type(...) is`, because a bool passes for an int and must not.
    if type(value) is not hint:
        raise ConfigurationError(f"{where} must be of type {hint.__name__}, not {value!r}.")
    return value


def toml_value(value: object) -> str:
    """A value in TOML: text, numbers, flags, sequences, and dataclasses as inline tables."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        pairs = (f"{name} = {toml_value(each)}" for name, each in given.items() if each is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, str):
        # A string of TOML is one of JSON, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
