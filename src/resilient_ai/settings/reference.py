"""The reference of all settings, written from their fields: as a TOML file and as Markdown."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from pydantic.fields import FieldInfo

from resilient_ai.settings.fields import allowed
from resilient_ai.settings.layers import variable
from resilient_ai.settings.model import AISettings
from resilient_ai.settings.report import Plain, plain

__all__ = ["SECTIONS", "as_markdown", "as_toml"]

SECTIONS: Mapping[str, str] = {
    "model_name": "Models",
    "use_gpu": "Devices",
    "fallback": "Failing over",
    "timeout_ms": "Serving",
    "allow_fault_injection": "Drills",
}
"""The heading that stands before a setting."""

_LINE_LENGTH = 100

_TOML_HEAD = """\
# Settings of resilient_ai. Every key is here with its default; remove the "# " before a key to set it.
# Keyword arguments and AI_* environment variables win over this file; "" leaves a setting unset.
"""


def as_toml() -> str:
    """A TOML file with every key a file may have, commented out, at its default."""
    blocks = [_TOML_HEAD]
    for key, field in AISettings.model_fields.items():
        if key in SECTIONS:
            blocks.append(f"\n# ---- {SECTIONS[key]} ----\n")
        # A file cannot name the file.
        if key != "config_file":
            blocks.append(f"\n{_toml_entry(key, field)}\n")
    return "".join(blocks)


def _toml_entry(key: str, field: FieldInfo) -> str:
    # Two "#" keep the text a comment when the one before the key is removed everywhere.
    text = f"{field.description} Allowed: {allowed(field)}."
    lines = textwrap.wrap(text, _LINE_LENGTH, initial_indent="## ", subsequent_indent="## ")
    return "\n".join([*lines, f"# {key} = {_toml(plain(field.default))}"])


def _toml(value: Plain) -> str:
    # Numbers, booleans and the short texts of the defaults are spelt the same in JSON and TOML.
    return json.dumps("" if value is None else value)


def as_markdown() -> str:
    """One table a section, one row a setting."""
    return "\n".join(_markdown_lines())


def _markdown_lines() -> Iterator[str]:
    for key, field in AISettings.model_fields.items():
        if key in SECTIONS:
            yield f"\n### {SECTIONS[key]}\n"
            yield "| Variable | TOML key | Default | Allowed | Meaning |"
            yield "|---|---|---|---|---|"
        name = "(not in a file)" if key == "config_file" else f"`{key}`"
        yield f"| `{variable(key)}` | {name} | {_shown(field)} | {allowed(field)} | {field.description} |"
    yield ""


def _shown(field: FieldInfo) -> str:
    value = plain(field.default)
    return "unset" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
