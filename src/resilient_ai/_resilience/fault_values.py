"""What every part of a fault plan has in common: it is a value, and refuses nonsense when it is made."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from resilient_ai.errors import ConfigurationError

__all__ = ["FaultKind", "PlanValue", "require", "require_one_of", "require_positive", "require_rows"]


def require(ok: bool, field: str, value: object, rule: str) -> None:  # noqa: FBT001  it reads as a sentence
    """Raise `ConfigurationError` that names the field unless `ok`."""
    if not ok:
        raise ConfigurationError(f"fault plan: {field}={value!r} must be {rule}")


def require_positive(field: str, value: float) -> None:
    require(0 < value < math.inf, field, value, "more than 0 and finite")


def require_one_of(field: str, value: str, names: tuple[str, ...]) -> None:
    require(value in names, field, value, f"one of {', '.join(names)}")


def require_rows(rows: int | None) -> None:
    require(rows is None or rows >= 1, "rows", rows, "1 or more")


class PlanValue:
    """Base of all that a plan is made of; a field it does not know is refused when it is parsed."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


class FaultKind(PlanValue):
    """Base of the kinds; `needs_process` says that only a process of its own can suffer it."""

    __slots__ = ()
    needs_process: ClassVar[bool] = False
