"""Ends what is not finished in time: one thread that sleeps until the next deadline."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["Deadlines"]


class Expires(Protocol):
    """Something that can run out of time. `expire` must be quick, must not raise, and may come late."""

    def expire(self) -> None: ...


class Deadlines:
    """Calls `expire` on each watched object once its deadline has passed. Thread-safe.

    Objects are held weakly: one that is finished and forgotten costs a tuple until its deadline.
    The thread starts with the first deadline; `close` ends it without expiring anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._heap: list[tuple[float, int, weakref.ref[Expires]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, deadline: float, what: Expires) -> None:
        """Expire `what` at the instant `deadline` of the clock."""
        with self._changed:
            first = not self._heap or deadline < self._heap[0][0]
            heapq.heappush(self._heap, (deadline, next(self._order), weakref.ref(what)))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._loop, name="resilient-ai-deadlines", daemon=True)
                self._thread.start()
            elif first:
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def expire_due(self) -> float | None:
        """Expire everything that is due; return the seconds to the next deadline, None if there is none."""
        due, wait = self._pop_due()
        for reference in due:
            what = reference()
            if what is not None:
                what.expire()
        return wait

    def _pop_due(self) -> tuple[list[weakref.ref[Expires]], float | None]:
        with self._changed:
            now = self._clock()
            due = []
            while self._heap and self._heap[0][0] <= now:
                due.append(heapq.heappop(self._heap)[2])
            return due, self._heap[0][0] - now if self._heap else None

    def _loop(self) -> None:
        while True:
            self.expire_due()
            with self._changed:
                if self._closed:
                    return
                wait = self._heap[0][0] - self._clock() if self._heap else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
