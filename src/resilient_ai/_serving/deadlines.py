"""Ends what is not finished in time: one thread that sleeps until the next deadline."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from resilient_ai._serving.threads import start_thread

__all__ = ["Deadlines"]

_CROWD = 4096
"""From this many watched objects on, finished ones are looked for before their deadline."""


class Expires(Protocol):
    """Something that can run out of time. `expire` must be quick, must not raise, and may come late."""

    def expire(self) -> None: ...


class Deadlines:
    """Calls `expire` on each watched object once its deadline has passed. Thread-safe.

    Objects are held weakly: of those that are finished and forgotten at most as many are kept track
    of as of living ones, or a few thousand.
    The thread starts with the first deadline; `close` ends it without expiring anything. It may be
    called twice and from any thread, an expiring object's included.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._heap: list[tuple[float, int, weakref.ref[Expires]]] = []
        self._order = itertools.count()
        self._crowded = _CROWD
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, deadline: float, what: Expires) -> None:
        """Expire `what` at the instant `deadline` of the clock."""
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                self._thread = start_thread(self._loop, "resilient-ai-deadlines")
            first = not self._heap or deadline < self._heap[0][0]
            heapq.heappush(self._heap, (deadline, next(self._order), weakref.ref(what)))
            if len(self._heap) > self._crowded:
                self._forget_finished()
            if first:
                self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _forget_finished(self) -> None:
        """Drop what is finished, and look again when the rest has doubled; the caller holds the lock."""
        self._heap = [entry for entry in self._heap if entry[2]() is not None]
        heapq.heapify(self._heap)
        self._crowded = max(_CROWD, 2 * len(self._heap))

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
                    self._changed.wait(None if wait is None else min(wait, threading.TIMEOUT_MAX))
