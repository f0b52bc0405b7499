"""Transitions on their way to listeners: in order, one at a time, outside every lock.

`post` is called under the breaker's lock and only appends, so the order of the queue is the order
of the transitions. `deliver` is called after the lock is released: one thread at a time
empties the queue, whoever comes meanwhile (also from inside a listener) leaves its events to that
thread and goes its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from resilient_ai._resilience.states import Transition

__all__ = ["Listener", "Listeners", "Lock"]

Listener = Callable[[Transition], object]


class Lock(Protocol):
    """What is used of `threading.Lock`; tests put a lock in its place that lets them choose who runs."""

    def acquire(self, blocking: bool = True) -> bool: ...  # noqa: FBT001, FBT002 -- as in threading

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


_LIMIT = 1024  # undelivered transitions kept, and the most that one `deliver` hands out


class Listeners:
    """Who wants to hear of transitions, and what they have not heard yet."""

    __slots__ = ("_dropped", "_failed", "_listeners", "_new_lock", "_turn", "queue")

    def __init__(self, new_lock: Callable[[], Lock]) -> None:
        self._new_lock = new_lock
        self._turn = new_lock()  # held by the thread that delivers; never waited for
        self._listeners: dict[object, Listener] = {}
        self.queue: deque[Transition] = deque(maxlen=_LIMIT)
        self._dropped = 0
        self._failed = 0

    @property
    def errors(self) -> int:
        """Deliveries that failed: listeners that raised, and transitions dropped unheard."""
        return self._dropped + self._failed

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; return what removes it again, at once, from anywhere, any number of times."""
        ticket = object()
        self._listeners[ticket] = listener

        def unsubscribe() -> None:
            self._listeners.pop(ticket, None)

        return unsubscribe

    def post(self, event: Transition) -> None:
        """Queue a transition; the oldest is dropped, and counted, when too many wait."""
        if not self._listeners:
            return
        if len(self.queue) == _LIMIT:
            self._dropped += 1
        self.queue.append(event)

    def deliver(self) -> None:
        """Hand out what waits, unless another thread is at it."""
        budget = _LIMIT  # a listener that moves the breaker at each event must not keep its caller for ever
        turn = self._turn
        # Looking again after the release: an event posted while this thread held the turn was left to it.
        while self.queue and budget and turn.acquire(blocking=False):
            try:
                while self.queue and budget:
                    budget -= 1
                    self._tell(self.queue.popleft())
            finally:
                turn.release()

    def _tell(self, event: Transition) -> None:
        for ticket, listener in list(self._listeners.items()):
            if ticket not in self._listeners:
                continue  # unsubscribed by an earlier listener of this very event
            try:
                listener(event)
            except Exception:  # noqa: BLE001 -- whatever a listener raises is its own affair
                self._failed += 1

    def restart_in_child(self) -> None:
        """After a fork: what waits is delivered by the parent, and whoever had the turn is not here."""
        self._turn = self._new_lock()
        self.queue.clear()
