"""Background threads, whose start may fail where the number of threads is limited."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from resilient_ai.errors import Overloaded

__all__ = ["background", "start_thread"]

T = TypeVar("T")


def background(work: Callable[[], T], name: str) -> Future[T]:
    """Do something on a thread of its own; its outcome is the future's."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - whoever asks for the result is to get it
            future.set_exception(exc)

    start_thread(run, name)
    return future


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
