"""With which codes a worker ends, and how the end of any process reads."""

from __future__ import annotations

import signal
from enum import IntEnum

__all__ = ["ExitCode", "describe_exit"]


class ExitCode(IntEnum):
    """A worker's own exit codes; a host may read them, but never relies on them."""

    ASKED = 0
    HOST_GONE = 80
    BAD_FRAME = 81
    NOT_STARTED = 82
    POISONED = 86


_MEANINGS = {
    ExitCode.ASKED: "it was asked to, or ended in silence",
    ExitCode.HOST_GONE: "its host was gone",
    ExitCode.BAD_FRAME: "its host sent what is no frame",
    ExitCode.NOT_STARTED: "it could not start",
    ExitCode.POISONED: "its device context was poisoned",
}


def describe_exit(code: int | None) -> str:
    """A process's return code in words; None is one that has not been told.

    The words are those that the patterns of failures look for. A code may lie: where the host ignores
    SIGCHLD, every end reads as 0.
    """
    if code is None:
        return "exited"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    meaning = _MEANINGS.get(code)  # type: ignore[call-overload]  # an IntEnum's key is its number
    return f"exited with code {code}" + (f" ({meaning})" if meaning else "")
