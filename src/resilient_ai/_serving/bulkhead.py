"""Lets only so many batches onto the last device at once, the urgent ones first."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from resilient_ai.errors import DeadlineExceeded, Overloaded
from resilient_ai.values import Priority

__all__ = ["Bulkhead"]

_RANK: dict[Priority, int] = {"interactive": 0, "bulk": 1}


class Bulkhead:
    """`slots` batches at once, `queue` more waiting; beyond that `Overloaded`. Thread-safe.

    A device that uses every core for one batch gains nothing from a second beside it: slots times
    the threads of one run must not exceed the cores.
    """

    def __init__(self, slots: int, queue: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._order = itertools.count()
        self._changed = threading.Condition()
        # Guarded by `_changed`. The waiting line is a heap of (priority, order of arrival).
        self._free = slots
        self._line: list[tuple[int, int]] = []

    @property
    def has_room(self) -> bool:
        """Whether a batch would run at once."""
        return self._free > 0 and not self._line

    @contextmanager
    def enter(
        self,
        priority: Priority,
        deadline: float | None,
        *,
        wait_hint: float = 1.0,
        was_inside: bool = False,
    ) -> Iterator[None]:
        """Hold a slot. Raises `Overloaded` when the line is full, `DeadlineExceeded` when time is up.

        A batch that `was_inside` before, and has only made way between two of its pieces, lines up
        however long the line is.
        """
        self._take(priority, deadline, wait_hint, was_inside=was_inside)
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _take(
        self, priority: Priority, deadline: float | None, wait_hint: float, *, was_inside: bool
    ) -> None:
        with self._changed:
            if self._free and not self._line:
                self._time_left(deadline)
                self._free -= 1
                return
            if len(self._line) >= self._queue and not was_inside:
                raise Overloaded("the CPU has no room for this batch", wait_hint * (len(self._line) + 1))
            place = (_RANK[priority], next(self._order))
            heapq.heappush(self._line, place)
            try:
                self._wait_turn(place, deadline)
                self._free -= 1
            finally:
                self._line.remove(place)
                heapq.heapify(self._line)
                self._changed.notify_all()

    def _wait_turn(self, place: tuple[int, int], deadline: float | None) -> None:
        left = self._time_left(deadline)
        while not self._free or self._line[0] != place:
            self._changed.wait(left)
            left = self._time_left(deadline)

    def _time_left(self, deadline: float | None) -> float | None:
        """Seconds until the deadline, None without one; raises when nobody wants the answer any more."""
        left = None if deadline is None else deadline - self._clock()
        if left is not None and left <= 0:
            raise DeadlineExceeded("the call's deadline passed while it waited for the CPU")
        return left
