"""Writes events to the log: one line each, and not a flood of them in a storm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from resilient_ai._telemetry.events import Event
from resilient_ai._telemetry.log import log

__all__ = ["LogObserver"]


@dataclass(slots=True)
class _Quota:
    """What one kind of event has used of its allowance since `since`."""

    since: float
    written: int = 0
    dropped: int = 0


class LogObserver:
    """Logs at most `burst` events of a kind in `period` seconds; says how many it left out.

    Thread-safe.
    """

    def __init__(
        self, *, burst: int = 10, period: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._quotas: dict[str, _Quota] = {}  # guarded by `_lock`

    def __call__(self, event: Event) -> None:
        allowed, left_out = self._take(event.name)
        if not allowed:
            return
        told = event.to_dict()
        if left_out:
            told["left_out"] = left_out
        getattr(log, event.level)(event.name, **told)

    def _take(self, name: str) -> tuple[bool, int]:
        """Whether an event of this kind may be written, and how many were left out before it."""
        now = self._clock()
        with self._lock:
            quota = self._quotas.get(name)
            left_out = 0
            if quota is None or now - quota.since >= self._period:
                left_out = quota.dropped if quota is not None else 0
                quota = self._quotas[name] = _Quota(now)
            if quota.written >= self._burst:
                quota.dropped += 1
                return False, 0
            quota.written += 1
            return True, left_out
