"""Openings: their length, jitter and arithmetic for any policy that may be made."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker

seconds = st.floats(0, 1e6, allow_nan=False)


@st.composite
def backoffs(draw):
    recovery = draw(seconds)
    maximum = draw(st.one_of(st.none(), st.floats(recovery, 1e7)))
    return BreakerPolicy(
        error_threshold=1,
        recovery_time=recovery,
        backoff_multiplier=draw(st.floats(1, 1e6)),
        max_recovery_time=maximum,
        jitter=draw(st.floats(0, 1, exclude_max=True)),
        seed=draw(st.integers()),
    )


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(policy=backoffs(), attempts=st.integers(1, 40))
def test_every_opening_is_within_its_jitter_and_the_policys_longest(policy, attempts):
    """min(max, recovery * multiplier ** attempt), times 1 +/- jitter; finite and never negative."""
    now = [0.0]
    breaker = CircuitBreaker(policy, clock=lambda: now[0])
    for attempt in range(attempts):
        breaker.try_acquire().failure()
        snapshot = breaker.snapshot()
        ceiling = policy.max_recovery_time
        if ceiling is None:
            ceiling = max(policy.recovery_time, 365 * 86400.0)
        plain = min(
            ceiling, policy.recovery_time * math.exp(min(600, attempt * math.log(policy.backoff_multiplier)))
        )
        slack = 1e-6 * (1 + abs(now[0]) + plain)
        assert snapshot.attempt == attempt
        assert (
            plain * (1 - policy.jitter) - slack <= snapshot.retry_after <= plain * (1 + policy.jitter) + slack
        )
        assert 0 <= snapshot.retry_after <= policy.longest_opening + slack
        now[0] = breaker._until


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(
    ticks=st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=40), recovery=st.floats(0, 1e3)
)
def test_no_walk_of_the_clock_yields_negative_times(ticks, recovery):
    """Forwards and backwards in any steps: what is waited for never grows and never is below zero."""
    now = [0.0]
    breaker = CircuitBreaker(BreakerPolicy(error_threshold=1, recovery_time=recovery), clock=lambda: now[0])
    breaker.try_acquire().failure()
    left = breaker.snapshot().retry_after
    for tick in ticks:
        now[0] += tick
        rest = breaker.snapshot().retry_after
        assert 0 <= rest <= left + 1e-6
        left = rest
