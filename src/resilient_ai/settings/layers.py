"""The places a setting can come from, read as they stand: nothing is converted or checked here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["PREFIX", "Layer", "Reading", "UnknownVariable", "nearest", "read_layers", "variable"]

PREFIX = "AI_"

_FILE_KEY = "config_file"


class UnknownVariable(NamedTuple):
    """An AI_* variable that is none of ours, and the one that was perhaps meant."""

    name: str
    nearest: str | None


@dataclass(frozen=True, slots=True)
class Layer:
    """The values of one place, by the name of the setting; `path` only for a file."""

    kind: Literal["keyword", "environment", "file"]
    # Not shown: some values are secret, and tracebacks may print local variables.
    values: Mapping[str, object] = field(repr=False)
    path: Path | None = None

    def label(self, key: str) -> str:
        """Where the value of `key` was found, for the listing of all settings."""
        if self.kind == "file":
            return f"file {self.path}:{key}"
        return "keyword" if self.kind == "keyword" else f"environment {variable(key)}"

    def subject(self, key: str) -> str:
        """`key` as the user wrote it here, for error messages."""
        if self.kind == "file":
            return f"{key} in {self.path}"
        return f"keyword {key}" if self.kind == "keyword" else variable(key)


@dataclass(frozen=True, slots=True)
class Reading:
    """All layers, the strongest first, and what was wrong before any value was looked at."""

    layers: tuple[Layer, ...]
    problems: tuple[str, ...]
    unknown: tuple[UnknownVariable, ...]
    file: Path | None

    def merged(self) -> dict[str, object]:
        """Every value that was found, of the strongest layer that has one."""
        return {key: value for layer in reversed(self.layers) for key, value in layer.values.items()}

    def source(self, key: str) -> Layer | None:
        """The layer that decides the value of `key`; None where the default does."""
        return next((layer for layer in self.layers if key in layer.values), None)


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + key.upper()


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, in any case and with or without AI_; None when none is."""
    import difflib  # noqa: PLC0415 - needed only once something is misspelt

    key = name.lower().removeprefix(PREFIX.lower())
    return next(iter(difflib.get_close_matches(key, list(known), n=1)), None)


def read_layers(
    keywords: Mapping[str, object],
    environ: Mapping[str, str],
    cwd: Path,
    *,
    known: Collection[str],
    default_file: Path,
) -> Reading:
    """Read keywords, environment and file; never raises, what failed is in `Reading.problems`.

    Args:
        keywords: The caller's own arguments.
        environ: The environment; a variable that is empty or blank counts as not set.
        cwd: The folder that a relative path of a file starts from.
        known: The names of all settings.
        default_file: The file that is read, where it exists, when no other is named.
    """
    keyword, environment = Layer("keyword", keywords), Layer("environment", _pick(environ, known))
    named = next((layer for layer in (keyword, environment) if _FILE_KEY in layer.values), None)
    place = named.values[_FILE_KEY] if named else default_file
    path = _resolve(place, cwd)
    values, problems = _read_file(path, named.subject(_FILE_KEY) if named else None) if path else (None, ())
    layers: tuple[Layer, ...] = (keyword, environment)
    if values is not None:
        layers = (*layers, Layer("file", values, path))
    return Reading(layers, problems, _unknown(environ, known), path if values is not None else None)


def _pick(environ: Mapping[str, str], known: Collection[str]) -> dict[str, object]:
    return {key: text for key in known if (text := environ.get(variable(key), "")).strip()}


def _unknown(environ: Mapping[str, str], known: Collection[str]) -> tuple[UnknownVariable, ...]:
    ours = {variable(key) for key in known}
    names = sorted(
        name
        for name, text in environ.items()
        if name.startswith(PREFIX) and name not in ours and text.strip()
    )
    near = ((name, nearest(name, known)) for name in names)
    return tuple(UnknownVariable(name, variable(key) if key else None) for name, key in near)


def _resolve(place: object, cwd: Path) -> Path | None:
    """None for what names no file: the keyword None, or nonsense that validation will refuse."""
    if not isinstance(place, str | Path) or not str(place).strip() or "\0" in str(place):
        return None
    try:
        return cwd / Path(place).expanduser()
    except RuntimeError:
        return None


def _read_file(path: Path, subject: str | None) -> tuple[dict[str, object] | None, tuple[str, ...]]:
    """The file's values, None where there is no file; `subject` is what named it, if anything did."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if subject is None:
            return None, ()
        return None, (f"{subject} = {str(path)!r}: there is no such file; correct or unset it",)
    except OSError as exc:
        return None, (f"{subject or path}: {path} cannot be read ({exc.strerror}); allowed: a TOML file",)
    return _parse(path, content)


def _parse(path: Path, content: bytes) -> tuple[dict[str, object], tuple[str, ...]]:
    try:
        # Editors of one platform still put a byte order mark first.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = content[: exc.start].decode("utf-8", "replace")
        return {}, (f"{path}, {_position(before)}: not UTF-8, which TOML has to be",)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        what, _, where = str(exc).partition(" (at ")
        found = re.fullmatch(r"line \d+, column \d+", where.rstrip(")"))
        return {}, (f"{path}, {found[0] if found else _position(text)}: {what}",)
    if values.pop(_FILE_KEY, None) is None:
        return values, ()
    return values, (f"{_FILE_KEY} in {path}: a file cannot name the file; set {variable(_FILE_KEY)} instead",)


def _position(text_before: str) -> str:
    lines = text_before.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"
