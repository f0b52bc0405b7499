"""Background threads, whose start may fail where the number of threads is limited."""

from __future__ import annotations

import threading
from collections.abc import Callable

from resilient_ai.errors import Overloaded

__all__ = ["start_thread"]


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread; raises `Overloaded` when the system has none to give."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise Overloaded(
            f"the system gave no thread for {name!r} ({exc}); raise the limit on processes (ulimit -u, "
            "pids.max) or run fewer threads"
        ) from exc
    return thread
