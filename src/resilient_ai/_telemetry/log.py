"""The library's logger: structlog's calls, the standard library's routes.

Everything goes to the logger "resilient_ai" of the `logging` module, so the host decides what
is shown and where; nothing is ever printed to stdout, which may carry the host's own protocol.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

__all__ = ["log", "set_level"]

_NAME = "resilient_ai"


def set_level(name: str) -> None:
    """Show messages of this level ("debug" to "critical") and above."""
    logging.getLogger(_NAME).setLevel(name.upper())


def _render(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str, str], dict[str, dict[str, Any]]]:
    """`event key=value ...` for readers, the same as a mapping in `record.fields` for programs."""
    text = str(event.pop("event", ""))
    told = " ".join(f"{key}={value!r}" for key, value in event.items())
    # A percent sign must not be taken for a place to fill in, so the text is an argument.
    return ("%s", f"{text} {told}".rstrip()), {"extra": {"fields": dict(event)}}


@cache
def _logger() -> BoundLogger:
    import structlog  # noqa: PLC0415 - 40 ms that a host which logs nothing need not pay

    bound: BoundLogger = structlog.wrap_logger(
        logging.getLogger(_NAME),
        processors=[structlog.stdlib.filter_by_level, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return bound


class _LazyLogger:
    """Stands for the logger until the first message."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_logger(), name)


log = cast("BoundLogger", _LazyLogger())
