"""Every setting with its value and where that came from, for people and for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Secret
from pydantic.fields import FieldInfo

from resilient_ai.settings.fields import is_secret
from resilient_ai.settings.layers import PREFIX, Reading, UnknownVariable, variable
from resilient_ai.settings.masking import MASK

__all__ = ["Plain", "SettingReport", "plain", "report_setting", "report_unknown"]

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class SettingReport:
    """One line of the listing.

    `value` is JSON-able, and masked where `secret`. `origin` is "keyword", "environment AI_...",
    "file PATH:KEY" or "default". `is_default` says that the value equals the default, wherever it
    came from. `known` is False for an AI_* variable that has no effect here.
    """

    name: str
    variable: str
    value: Plain
    origin: str
    description: str
    is_default: bool
    secret: bool
    known: bool = True


def plain(value: object) -> Plain:
    """A setting's value as JSON and a configuration file spell it, secrets masked."""
    if isinstance(value, Path):
        # `Path` drops the "./" that tells a reader that the path depends on the working folder.
        return str(value) if value.is_absolute() or str(value).startswith(".") else f"./{value}"
    if isinstance(value, Secret):
        return str(value)
    assert value is None or isinstance(value, str | int | float), value
    return value


def report_setting(key: str, value: object, field: FieldInfo, reading: Reading) -> SettingReport:
    """The line of one setting."""
    layer = reading.source(key)
    return SettingReport(
        name=key,
        variable=variable(key),
        value=plain(value),
        origin=layer.label(key) if layer else "default",
        description=field.description or "",
        is_default=value == field.default,
        secret=is_secret(field),
    )


def report_unknown(unknown: UnknownVariable) -> SettingReport:
    """The line of a variable that is none of ours; its value may be a secret of another program."""
    hint = f"; did you mean {unknown.nearest}?" if unknown.nearest else ""
    return SettingReport(
        name=unknown.name.removeprefix(PREFIX).lower(),
        variable=unknown.name,
        value=MASK,
        origin=f"environment {unknown.name}",
        description=f"Not a setting of this library; it has no effect{hint}",
        is_default=False,
        secret=True,
        known=False,
    )
