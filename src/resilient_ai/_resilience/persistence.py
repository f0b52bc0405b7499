"""The state of a breaker across restarts: a small dict, and a file that holds it.

Instants are written by the wall clock, because a monotonic clock means nothing to another
process. Whatever is read back is distrusted: a state that is damaged, of another version or of
another breaker is not used at all; one that says it was opened in the future counts as opened now.
Half-open is written as an opening that is over. A closed breaker has nothing worth keeping.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_ai._resilience.states import SHUT, State
from resilient_ai.errors import ConfigurationError

if TYPE_CHECKING:
    from resilient_ai._resilience.breaker import CircuitBreaker

__all__ = ["Saved", "decode", "encode", "load_state", "save_state"]

_VERSION = 1
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Saved:
    """A state without clocks: `age` seconds old, with `opening` seconds from its start to the probe."""

    state: State
    age: float
    opening: float
    attempt: int
    reason: str


def encode(saved: Saved, name: str, wall_now: float) -> dict[str, object]:
    """The plain dict that stands for a state; `opened_at` is by the wall clock."""
    waiting = saved.state is State.OPEN
    return {
        "version": _VERSION,
        "name": name,
        "state": (State.OPEN if saved.state is State.HALF_OPEN else saved.state).value,
        "opened_at": wall_now - saved.age if saved.state in SHUT else None,
        "opening": saved.opening if waiting else 0.0,
        "attempt": saved.attempt,
        "reason": saved.reason,
    }


def decode(state: object, name: str, wall_now: float) -> Saved | None:
    """Read what `encode` wrote; None when anything about it is wrong."""
    if not isinstance(state, Mapping) or state.get("version") != _VERSION or state.get("name") != name:
        return None
    try:
        member = State(str(state.get("state")))
        age = _age(state.get("opened_at"), wall_now) if member in SHUT else 0.0
        opening = _finite(state.get("opening"))
        attempt, reason = state.get("attempt"), state.get("reason")
    except (ValueError, TypeError, OverflowError):
        return None
    if type(attempt) is not int or attempt < 0 or not isinstance(reason, str) or opening < 0:
        return None
    return None if member is State.HALF_OPEN else Saved(member, age, opening, attempt, reason)


def _age(opened_at: object, wall_now: float) -> float:
    # Below zero the clock was set back, or the file came from a machine that is ahead.
    return max(0.0, wall_now - _finite(opened_at))


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def save_state(
    breaker: CircuitBreaker, path: str | os.PathLike[str], wall_clock: Callable[[], float] = time.time
) -> None:
    """Write the breaker's state to a file, replaced whole or not at all.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    target = Path(path)
    content = json.dumps(breaker.export_state(wall_clock))
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).replace(target)
    except OSError as exc:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigurationError(
            f"cannot write the breaker's state to {target}: {exc}; give a folder it may write to"
        ) from exc


def load_state(
    breaker: CircuitBreaker, path: str | os.PathLike[str], wall_clock: Callable[[], float] = time.time
) -> bool:
    """Restore the breaker from a file; return whether there was a usable one."""
    try:
        with Path(path).open("rb") as file:
            state = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and breaker.restore_state(state, wall_clock)
