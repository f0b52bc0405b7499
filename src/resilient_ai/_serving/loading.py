"""Loads models in the background, so that nobody's thread and nobody else's call waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Generic, TypeVar

from resilient_ai._serving.threads import start_thread
from resilient_ai.errors import ServiceClosed

__all__ = ["BackgroundLoader"]

T = TypeVar("T")


class BackgroundLoader(Generic[T]):
    """Loads what it is asked for once at a time, each on a thread of its own. Thread-safe.

    `load(name)` gives what was loaded as a context, which lasts until all who wait for it were told.
    A load that failed is forgotten once its waiters were told: the next request tries again.
    """

    def __init__(self, load: Callable[[str], AbstractContextManager[T]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._under_way: dict[str, Future[T]] = {}
        self._closed = False

    def request(self, name: str) -> Future[T]:
        """Return the future of a load of `name` that is under way, or start one."""
        with self._lock:
            if self._closed:
                raise ServiceClosed("the service is closed; create a new one")
            future = self._under_way.get(name)
            if future is None:
                future = Future()
                start_thread(partial(self._run, name, future), f"resilient-ai-load-{name}")
                self._under_way[name] = future
            return future

    def close(self) -> None:
        """Fail what is under way with `ServiceClosed`; the threads end with their current step."""
        with self._lock:
            self._closed = True
            waiting = list(self._under_way.values())
        for future in waiting:
            with suppress(InvalidStateError):
                future.set_exception(ServiceClosed("the service was closed while its model was loading"))

    def _run(self, name: str, future: Future[T]) -> None:
        try:
            with self._load(name) as loaded:
                self._forget(name, future)
                with suppress(InvalidStateError):
                    future.set_result(loaded)
        except BaseException as exc:  # noqa: BLE001 - every waiter must hear of it, whatever it was
            self._forget(name, future)
            with suppress(InvalidStateError):
                future.set_exception(exc)

    def _forget(self, name: str, future: Future[T]) -> None:
        with self._lock:
            if self._under_way.get(name) is future:
                del self._under_way[name]
