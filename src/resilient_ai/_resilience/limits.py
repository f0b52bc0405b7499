"""What a number in a policy must be; each check names the field and the value it got."""

from __future__ import annotations

import math
from numbers import Integral, Real

from resilient_ai.errors import ConfigurationError

__all__ = ["require_count", "require_number", "require_rate", "require_seconds"]


def require_count(field: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigurationError(
            f"{field}={value!r} must be a whole number of at least 1; correct the policy"
        )


def require_number(field: str, value: object) -> float:
    """Return `value` as a float; raise `ConfigurationError` unless it is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigurationError(f"{field}={value!r} must be a finite number; correct the policy")
    return float(value)


def require_seconds(field: str, value: object, *, zero: bool = False) -> None:
    """Raise `ConfigurationError` unless `value` is a finite time above 0 (or 0 too, with `zero`)."""
    seconds = require_number(field, value)
    if seconds < 0 or (seconds == 0 and not zero):
        floor = "0 or more" if zero else "more than 0"
        raise ConfigurationError(f"{field}={value!r} must be {floor} seconds; correct the policy")


def require_rate(field: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is a share in (0, 1]."""
    if not 0 < require_number(field, value) <= 1:
        raise ConfigurationError(f"{field}={value!r} must be above 0 and at most 1; correct the policy")
