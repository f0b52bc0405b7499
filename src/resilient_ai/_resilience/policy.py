"""When a breaker opens, for how long, and how it finds its way back: the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resilient_ai._resilience.limits import require_count, require_number, require_seconds
from resilient_ai._resilience.trip import FailureRate
from resilient_ai.errors import ConfigurationError

__all__ = ["BreakerPolicy"]

# Back-off without a maximum stops growing here: beyond a year the numbers only approach infinity.
_YEAR = 365 * 24 * 3600.0
# An exponent that a float still takes; by then any growth has met its ceiling.
_ENOUGH = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """Everything that can be chosen about a `CircuitBreaker`; times are in seconds.

    Attributes:
        error_threshold: Failures in a row that open the breaker; unused with a `trip_rule`.
        max_failure_age: A failure older than this no longer counts towards the threshold. None
            forgets nothing, so that sparse failures add up until a success comes between.
        recovery_time: How long the first opening lasts. 0 lets a probe in at once.
        backoff_multiplier: Each opening that follows a failed probe lasts this much longer.
        max_recovery_time: Where that growth stops; None stops it at a year.
        jitter: Share by which an opening is lengthened or shortened at random, in [0, 1).
        half_open_permits: How many probes may be under way at once.
        successes_to_close: How many probes must succeed before all calls may pass again.
        probe_lease: How long a probe may take before it counts as failed.
        trip_rule: A `FailureRate` to open by instead of by failures in a row.
        seed: Makes the jitter repeatable.

    Raises:
        ConfigurationError: A field makes no sense; the message names it.
    """

    error_threshold: int = 3
    max_failure_age: float | None = None
    recovery_time: float = 300.0
    backoff_multiplier: float = 1.0
    max_recovery_time: float | None = None
    jitter: float = 0.0
    half_open_permits: int = 1
    successes_to_close: int = 1
    probe_lease: float = 30.0
    trip_rule: FailureRate | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in ("error_threshold", "half_open_permits", "successes_to_close"):
            require_count(field, getattr(self, field))
        require_seconds("recovery_time", self.recovery_time, zero=True)
        require_seconds("probe_lease", self.probe_lease)
        if self.max_failure_age is not None:
            require_seconds("max_failure_age", self.max_failure_age)
        self._check_backoff()
        if self.trip_rule is not None and not isinstance(self.trip_rule, FailureRate):
            raise ConfigurationError(f"trip_rule={self.trip_rule!r} must be None or a FailureRate")
        if self.seed is not None and not isinstance(self.seed, int):
            raise ConfigurationError(f"seed={self.seed!r} must be None or a whole number")

    def _check_backoff(self) -> None:
        if require_number("backoff_multiplier", self.backoff_multiplier) < 1:
            raise ConfigurationError(
                f"backoff_multiplier={self.backoff_multiplier!r} must be at least 1: openings do not shrink"
            )
        if not 0 <= require_number("jitter", self.jitter) < 1:
            raise ConfigurationError(f"jitter={self.jitter!r} must be at least 0 and below 1")
        if self.max_recovery_time is not None:
            require_seconds("max_recovery_time", self.max_recovery_time, zero=True)
            if self.max_recovery_time < self.recovery_time:
                raise ConfigurationError(
                    f"max_recovery_time={self.max_recovery_time!r} must not be below "
                    f"recovery_time={self.recovery_time!r}"
                )

    @property
    def longest_opening(self) -> float:
        """The most seconds that an opening of this policy can last, jitter included."""
        if not self.recovery_time:
            return 0.0
        ceiling = self._ceiling if self.backoff_multiplier > 1 else self.recovery_time
        return ceiling * (1 + self.jitter)

    def opening(self, attempt: int, uniform: Callable[[float, float], float]) -> float:
        """Seconds that opening number `attempt` (0 is the first) lasts.

        `uniform(low, high)` draws the jitter and is not called when there is none.
        """
        if not self.recovery_time:
            return 0.0
        try:
            grown = self.recovery_time * float(self.backoff_multiplier) ** min(attempt, _ENOUGH)
        except OverflowError:
            grown = self._ceiling
        wait = min(self._ceiling, grown)
        return wait * (1 + uniform(-self.jitter, self.jitter)) if self.jitter else wait

    @property
    def _ceiling(self) -> float:
        if self.max_recovery_time is not None:
            return self.max_recovery_time
        return max(self.recovery_time, _YEAR)
