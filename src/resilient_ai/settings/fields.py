"""The kinds of value a setting can have: how each is read, and what it says is allowed.

Readers run before pydantic's own check of the type. They turn what an environment variable or a
TOML file can spell into the value, and raise ValueError without repeating the value, which may be
secret; whatever they do not know they pass on for pydantic to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict
from pydantic.fields import FieldInfo

from resilient_ai.settings.masking import SecretUrl

__all__ = [
    "LONGEST_MS",
    "DeviceIds",
    "Flag",
    "Location",
    "MaybeFlag",
    "Mirror",
    "Name",
    "OptionalLocation",
    "OptionalPlan",
    "Real",
    "Whole",
    "allowed",
    "fraction",
    "is_secret",
    "setting",
    "whole",
    "word",
]

LONGEST_MS = 2**31 - 1
"""The longest time that can be set, about 25 days: what a 32-bit timer of the system can count."""

_FLAGS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_FLAGS_ALLOWED = "true or false (also 1/0, yes/no, on/off)"
_HIGHEST_DEVICE_ID = 1023


def setting(default: object, description: str, *, allowed: str | None = None, secret: bool = False) -> Any:
    """A field with its one description; `allowed` says in words what the type does not."""
    return Field(
        default, description=description, json_schema_extra={"allowed": allowed or "", "secret": secret}
    )


def whole(default: int, lowest: int, highest: int, description: str) -> Any:
    """A field for a whole number between two bounds, both included."""
    return Field(
        default,
        ge=lowest,
        le=highest,
        description=description,
        json_schema_extra={"allowed": f"a whole number from {lowest} to {highest}"},
    )


def fraction(default: float, description: str) -> Any:
    """A field for a share of a whole: above 0, at most 1."""
    return Field(
        default,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description=description,
        json_schema_extra={"allowed": "a number above 0 and at most 1"},
    )


def share(default: float, description: str) -> Any:
    """A field for a share of a whole, from none to all of it."""
    return Field(
        default,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=description,
        json_schema_extra={"allowed": "a number from 0 to 1"},
    )


def allowed(field: FieldInfo) -> str:
    """What may be written for the field, in words."""
    if text := _extra(field).get("allowed"):
        return str(text)
    if field.annotation is bool:
        return _FLAGS_ALLOWED
    return "one of " + ", ".join(map(str, get_args(field.annotation)))


def is_secret(field: FieldInfo) -> bool:
    """Tell whether the field's value may carry credentials."""
    return bool(_extra(field).get("secret", False))


def _extra(field: FieldInfo) -> Mapping[str, object]:
    extra = field.json_schema_extra
    return cast("Mapping[str, object]", extra) if isinstance(extra, dict) else {}


def _read_flag(value: object) -> object:
    return _FLAGS.get(str(value).strip().lower(), value) if isinstance(value, str | int) else value


def _read_word(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _read_maybe_flag(value: object) -> object:
    flag = _read_flag(value)
    return str(flag).lower() if isinstance(flag, bool) else _read_word(value)


def _refuse_flag(value: object) -> object:
    # To pydantic, as to Python, True is the number 1.
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - pydantic translates ValueError only
    return value


def _check_name(name: str) -> str:
    if not (name := name.strip()):
        raise ValueError("the name is empty")
    if not name.isprintable():
        raise ValueError("the name has characters that cannot be shown")
    return name


def _read_location(value: object) -> object:
    if not isinstance(value, str | Path):
        return value
    if not str(value).strip() or "\0" in str(value):
        raise ValueError("that is no path")
    try:
        return Path(value).expanduser()
    except RuntimeError as exc:
        raise ValueError("the home folder that ~ stands for is not known") from exc


def _read_blank(value: object) -> object:
    """None for an empty text, which is how a TOML file says that an optional setting is not set."""
    return None if isinstance(value, str) and not value.strip() else value


def _read_device_ids(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | list | tuple):
        return value
    parts = value.split(",") if isinstance(value, str) else value if not isinstance(value, int) else [value]
    texts = [str(part).strip() for part in parts]
    if not texts or not all(text.isascii() and text.isdecimal() for text in texts):
        raise ValueError("that is no list of card numbers")
    # The length first: Python refuses to turn a text of thousands of digits into a number.
    if any(len(text) > len(str(_HIGHEST_DEVICE_ID)) or int(text) > _HIGHEST_DEVICE_ID for text in texts):
        raise ValueError(f"no machine has a card above {_HIGHEST_DEVICE_ID}")
    ids = [str(int(text)) for text in texts]
    if len(set(ids)) < len(ids):
        raise ValueError("a card is named twice")
    return ",".join(ids)


def _check_mirror(mirror: SecretUrl) -> SecretUrl:
    text = mirror.get_secret_value()
    try:
        parts = urlsplit(text)
        # `urlsplit` silently drops some blanks and control characters, others it keeps.
        usable = text.isprintable() and " " not in text and parts.scheme in {"http", "https"}
        usable = usable and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # Outside the handler, so not chained: urlsplit's message may quote a part of the credentials.
        raise ValueError("that is no URL with a host")
    return mirror


def _check_plan(plan: str) -> str:
    if plan.lstrip().startswith(("{", "[")):
        try:
            json.loads(plan)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"that is no valid JSON ({exc})") from exc
    elif "\0" in plan:
        raise ValueError("that is no path")
    return plan


Flag = Annotated[bool, Strict(), BeforeValidator(_read_flag)]
MaybeFlag = Annotated[Literal["auto", "true", "false"], BeforeValidator(_read_maybe_flag)]
Whole = Annotated[int, BeforeValidator(_refuse_flag)]
Real = Annotated[float, BeforeValidator(_refuse_flag)]
Name = Annotated[str, AfterValidator(_check_name)]
Location = Annotated[Path, BeforeValidator(_read_location)]
OptionalLocation = Annotated[Location | None, BeforeValidator(_read_blank)]
DeviceIds = Annotated[str, BeforeValidator(_read_device_ids)]
Mirror = Annotated[Annotated[SecretUrl, AfterValidator(_check_mirror)] | None, BeforeValidator(_read_blank)]
OptionalPlan = Annotated[Annotated[str, AfterValidator(_check_plan)] | None, BeforeValidator(_read_blank)]

word = BeforeValidator(_read_word)
"""For `Annotated[Literal[...], word]`: a choice in any case, with or without blanks around it."""
