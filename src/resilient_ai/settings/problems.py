"""From what validation found to one message a person can act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from resilient_ai.errors import ConfigurationError
from resilient_ai.settings.fields import allowed, is_secret
from resilient_ai.settings.layers import Layer, Reading, nearest
from resilient_ai.settings.masking import mask_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["configuration_error"]

_SHOWN_CHARACTERS = 80


def configuration_error(
    errors: Sequence[ErrorDetails], reading: Reading, fields: Mapping[str, FieldInfo]
) -> ConfigurationError:
    """The one error that lists every problem of a reading, each under the name the user wrote."""
    problems = [*reading.problems, *_explain(errors, reading, fields)]
    count = "A setting" if len(problems) == 1 else f"{len(problems)} settings"
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return ConfigurationError(f"{count} cannot be used. Correct or remove, then start again:{lines}")


def _explain(
    errors: Sequence[ErrorDetails], reading: Reading, fields: Mapping[str, FieldInfo]
) -> Iterator[str]:
    for error in errors:
        key = str(error["loc"][0])
        layer = reading.source(key)
        # A default is checked like any other value, so a wrong one is found by the first test.
        assert layer is not None
        yield _refused(layer, key, fields[key], error) if key in fields else _unknown(layer, key, fields)


def _refused(layer: Layer, key: str, field: FieldInfo, error: ErrorDetails) -> str:
    value = layer.values[key]
    shown = repr(mask_url(str(value))) if is_secret(field) else _shorten(repr(value))
    return f"{layer.subject(key)} = {shown}: {_reason(error)}allowed: {allowed(field)}"


def _reason(error: ErrorDetails) -> str:
    """The words of our own checks; pydantic's own only say again what is allowed."""
    cause: Any = error.get("ctx", {}).get("error")
    return f"{cause}; " if cause is not None else ""


def _unknown(layer: Layer, key: str, fields: Mapping[str, FieldInfo]) -> str:
    # The value stays out of it: under a misspelt name nobody knows whether it is a secret.
    near = nearest(key, fields)
    hint = f"did you mean {near}?" if near else "docs/configuration.md lists them all"
    return f"{layer.subject(key)}: there is no such setting; {hint}"


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
