"""Trip rules: when failures are enough. Nothing here locks; the breaker does.

Two rules. By default failures *in a row* (`Streak`) are held against a threshold. A
`FailureRate` instead watches the share of failed, or slow, calls among the last N calls or the
last T seconds. Both are bounded in memory whatever the traffic.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from resilient_ai._resilience.limits import require_count, require_rate, require_seconds
from resilient_ai.errors import ConfigurationError

__all__ = ["FailureRate", "RateMeter", "Streak"]

_DEFAULT_WINDOW = 100
_BUCKETS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate:
    """Open when the share of failures reaches `rate`, over the last calls or the last seconds.

    Give `window` (a number of calls, 100 when neither is given) or `seconds`, not both. Nothing
    is judged before `min_calls` results are in the window. With `slow_call_duration`, calls that
    took longer count as slow, whatever their outcome, and `slow_call_rate` of them open the breaker
    too. The window of seconds moves in sixtieths of itself.

    Raises:
        ConfigurationError: A field makes no sense; the message names it.
    """

    window: int | None = None
    seconds: float | None = None
    min_calls: int = 10
    rate: float = 0.5
    slow_call_duration: float | None = None
    slow_call_rate: float | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.seconds is None:
            object.__setattr__(self, "window", _DEFAULT_WINDOW)
        if self.window is not None and self.seconds is not None:
            raise ConfigurationError("window and seconds exclude each other; give one of them")
        require_count("min_calls", self.min_calls)
        require_rate("rate", self.rate)
        if self.seconds is not None:
            require_seconds("seconds", self.seconds)
        if self.window is not None:
            self._check_window(self.window)
        self._check_slow()

    def _check_window(self, window: int) -> None:
        require_count("window", window)
        if self.min_calls > window:
            raise ConfigurationError(
                f"min_calls={self.min_calls} is more than window={window} can hold: it would never open"
            )

    def _check_slow(self) -> None:
        if (self.slow_call_duration is None) != (self.slow_call_rate is None):
            raise ConfigurationError(
                "slow_call_duration and slow_call_rate belong together; give both or none"
            )
        if self.slow_call_duration is not None:
            require_seconds("slow_call_duration", self.slow_call_duration)
            require_rate("slow_call_rate", self.slow_call_rate)


class Streak:
    """Failures in a row. With `max_age`, those older than it are forgotten.

    With `max_age` the count stops at `limit`, the threshold: more need not be remembered.
    """

    __slots__ = ("_length", "_max_age", "_times")

    def __init__(self, limit: int, max_age: float | None) -> None:
        self._max_age = max_age
        self._times: deque[float] = deque(maxlen=limit)
        self._length = 0

    def __bool__(self) -> bool:
        return self._length > 0

    def add(self, now: float) -> int:
        """Note a failure; return how many in a row that makes."""
        if self._max_age is None:
            self._length += 1
        else:
            self._times.append(now)
            self._length = self.length(now)
        return self._length

    def length(self, now: float) -> int:
        """How many failures in a row count at `now`. Changes nothing."""
        if self._max_age is None:
            return self._length
        return sum(now - at <= self._max_age for at in self._times)

    def clear(self) -> None:
        self._length = 0
        self._times.clear()


class RateMeter:
    """Holds the results of one breaker against its `FailureRate`."""

    __slots__ = ("_rule", "_window", "timed")

    def __init__(self, rule: FailureRate) -> None:
        self._rule = rule
        self._window = _CallWindow(rule.window) if rule.window else _TimeWindow(rule.seconds or 0.0)
        self.timed = rule.slow_call_duration is not None
        """Whether the duration of calls matters."""

    def record(self, *, failed: bool, duration: float, now: float) -> str | None:
        """Take in one result; return why the breaker should open, or None."""
        rule, window = self._rule, self._window
        slow = rule.slow_call_duration is not None and duration > rule.slow_call_duration
        window.add(failed, slow, now)
        if window.calls < rule.min_calls:
            return None
        if window.failed >= rule.rate * window.calls:
            return f"{window.failed} of {window.calls} calls failed"
        if rule.slow_call_rate is not None and window.slow >= rule.slow_call_rate * window.calls:
            return f"{window.slow} of {window.calls} calls took more than {rule.slow_call_duration:g} s"
        return None

    def clear(self) -> None:
        self._window.clear()


class _CallWindow:
    """The last `size` results, with running sums."""

    __slots__ = ("_results", "failed", "slow")

    def __init__(self, size: int) -> None:
        self._results: deque[tuple[bool, bool]] = deque(maxlen=size)
        self.failed = 0
        self.slow = 0

    @property
    def calls(self) -> int:
        return len(self._results)

    def add(self, failed: bool, slow: bool, _now: float) -> None:  # noqa: FBT001 -- hot path, one caller
        if len(self._results) == self._results.maxlen:
            old_failed, old_slow = self._results[0]  # pushed out by the append below
            self.failed -= old_failed
            self.slow -= old_slow
        self._results.append((failed, slow))
        self.failed += failed
        self.slow += slow

    def clear(self) -> None:
        self._results.clear()
        self.failed = self.slow = 0


class _TimeWindow:
    """The results of the last `seconds`, summed in sixtieths so that traffic costs no memory."""

    __slots__ = ("_buckets", "_width", "calls", "failed", "slow")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _BUCKETS
        self._buckets: deque[list[float]] = deque()  # [index, calls, failed, slow], oldest first
        self.calls = self.failed = self.slow = 0

    def add(self, failed: bool, slow: bool, now: float) -> None:  # noqa: FBT001 -- hot path, one caller
        index = now // self._width
        self._forget(index - _BUCKETS)
        if not self._buckets or self._buckets[-1][0] != index:
            self._buckets.append([index, 0, 0, 0])
        for place, amount in enumerate((1, failed, slow), start=1):
            self._buckets[-1][place] += amount
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def _forget(self, newest_old: float) -> None:
        while self._buckets and self._buckets[0][0] <= newest_old:
            _, calls, failed, slow = self._buckets.popleft()
            self.calls -= int(calls)
            self.failed -= int(failed)
            self.slow -= int(slow)

    def clear(self) -> None:
        self._buckets.clear()
        self.calls = self.failed = self.slow = 0
