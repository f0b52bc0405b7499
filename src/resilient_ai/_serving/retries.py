"""How many retries are too many: a budget that healthy traffic earns and retries spend."""

from __future__ import annotations

import threading

__all__ = ["RetryBudget"]

_RESERVE = 10.0


class RetryBudget:
    """Each batch earns `share` of a retry, up to a reserve; each retry costs one. Thread-safe.

    When a device fails everything, retrying everything would multiply the load on it; with the
    budget it grows by `share` at most (as in Finagle's retry budgets). The reserve is full at the
    start, so that a quiet service may retry too.
    """

    def __init__(self, share: float, *, reserve: float = _RESERVE) -> None:
        self._share = share
        self._reserve = reserve
        self._lock = threading.Lock()
        self._tokens = reserve  # guarded by `_lock`

    def earn(self) -> None:
        """Note a batch that was sent for the first time."""
        with self._lock:
            self._tokens = min(self._reserve, self._tokens + self._share)

    def spend(self) -> bool:
        """Take one retry if there is one."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True
