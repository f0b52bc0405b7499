"""How often a worker may be started again: a few times at once, then after longer and longer waits."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from resilient_ai._resilience.limits import require_count, require_seconds
from resilient_ai.errors import ConfigurationError

__all__ = ["RestartBudget"]


class RestartBudget:
    """Admits starts. Thread-safe.

    In any `window` seconds `starts` of them go ahead at once. Whoever wants one more waits
    `first_wait` seconds for it, and twice as long for each that follows, up to `max_wait`. That goes on
    until a start has lasted: until nobody has asked for another one for a whole window.

    Args:
        starts, window: The starts that go ahead at once, and the seconds they are counted over.
        first_wait, max_wait: The shortest and the longest wait, in seconds.
        clock: Seconds, monotonic. One that steps back is taken to have stood still.

    Raises:
        ConfigurationError: A number makes no sense.
    """

    def __init__(
        self,
        starts: int = 5,
        window: float = 60.0,
        first_wait: float = 1.0,
        max_wait: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_count("starts", starts)
        require_seconds("window", window)
        require_seconds("first_wait", first_wait)
        require_seconds("max_wait", max_wait)
        if max_wait < first_wait:
            raise ConfigurationError(f"max_wait={max_wait!r} must not be below first_wait={first_wait!r}")
        self._starts = starts
        self._window = window
        self._first_wait = first_wait
        self._max_wait = max_wait
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._now = -math.inf
        self._recent: deque[float] = deque()  # when starts were admitted, within the window
        self._wait = 0.0  # the last one that was asked of somebody; 0: starts go ahead at once
        self._due: float | None = None  # when the start that is waited for may go ahead
        self._last = -math.inf  # when a start was admitted last, or could have been

    def take(self) -> float:
        """Ask for a start: 0.0 admits it, and counts it; else seconds to wait before asking again.

        Asking early changes nothing: it is told the rest of the same wait. Of several who wait, the
        first to ask when it is over is admitted, and the next one waits anew.
        """
        with self._lock:
            now = self._now = max(self._now, self._clock())
            self._forget(now)
            if self._due is None and (self._wait or len(self._recent) >= self._starts):
                self._wait = min(self._max_wait, 2 * self._wait or self._first_wait)
                self._due = self._last = now + self._wait
            if self._due is not None and now < self._due:
                return self._due - now
            self._due, self._last = None, now
            self._recent.append(now)
            return 0.0

    def reset(self) -> None:
        """Forget every start so far."""
        with self._lock:
            self._recent.clear()
            self._wait, self._due, self._last = 0.0, None, -math.inf

    def _forget(self, now: float) -> None:
        """Drop what is older than the window; the back-off too, when nothing has happened within."""
        while self._recent and now - self._recent[0] >= self._window:
            self._recent.popleft()
        if now - self._last >= self._window:
            self._wait = 0.0
