"""Bad policies fail where they are made, and say which field is wrong."""

import math

import numpy as np
import pytest
from breaker_kit import fail, half_open, make

from resilient_ai._resilience.breaker import BreakerPolicy, FailureRate, State
from resilient_ai.errors import ConfigurationError

NAN, INF = math.nan, math.inf

BAD_POLICY = [
    *[("error_threshold", v) for v in (0, -1, 1.5, True, "3", None, NAN)],
    *[("max_failure_age", v) for v in (0, -1, NAN, INF, "1", True)],
    *[("recovery_time", v) for v in (-1, -1e-9, NAN, INF, -INF, "300", None, True)],
    *[("backoff_multiplier", v) for v in (0, 0.999, -2, NAN, INF, None)],
    *[("max_recovery_time", v) for v in (299.9, 0, -1, NAN, INF, "x")],
    *[("jitter", v) for v in (-0.1, 1, 1.5, NAN, INF, None)],
    *[("half_open_permits", v) for v in (0, -1, 2.0, None)],
    *[("successes_to_close", v) for v in (0, -1, 2.0, None)],
    *[("probe_lease", v) for v in (0, -1, NAN, INF, None)],
    *[("trip_rule", v) for v in ("rate", 0.5)],
    *[("seed", v) for v in ("a", 0.5)],
]
BAD_RATE = [
    *[("window", v) for v in (0, -1, 10.5, True)],
    *[("seconds", v) for v in (0, -1, NAN, INF)],
    *[("min_calls", v) for v in (0, -1, 101, 1.5)],
    *[("rate", v) for v in (0, -0.1, 1.01, NAN, INF, None)],
]


@pytest.mark.parametrize(("field", "value"), BAD_POLICY)
def test_a_policy_that_makes_no_sense_is_refused_by_name(field, value):
    """Nonsense raises ConfigurationError at construction and the message starts with the field."""
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        BreakerPolicy(**{field: value})


@pytest.mark.parametrize(("field", "value"), BAD_RATE)
def test_a_rate_that_makes_no_sense_is_refused_by_name(field, value):
    """A FailureRate is checked like a policy."""
    with pytest.raises(ConfigurationError, match=f"^{field}"):
        FailureRate(**{field: value})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"slow_call_duration": 1.0}, "slow_call_rate"),
        ({"slow_call_rate": 0.5}, "slow_call_duration"),
        ({"slow_call_duration": 0, "slow_call_rate": 0.5}, "slow_call_duration"),
        ({"slow_call_duration": 1.0, "slow_call_rate": 0}, "slow_call_rate"),
        ({"slow_call_duration": 1.0, "slow_call_rate": NAN}, "slow_call_rate"),
        ({"window": 10, "seconds": 10}, "window"),
    ],
)
def test_fields_of_a_rate_that_do_not_go_together_are_refused(fields, named):
    """Half of a pair, or both of two alternatives, is a mistake that is named."""
    with pytest.raises(ConfigurationError, match=named):
        FailureRate(**fields)


def test_numbers_of_numpy_are_numbers():
    """A policy computed with numpy is as good as one that was typed."""
    policy = BreakerPolicy(error_threshold=np.int64(2), recovery_time=np.float32(5), seed=1)
    assert policy.opening(0, lambda low, high: 0.0) == 5.0


def test_the_defaults_are_the_documented_ones():
    """Three failures, five minutes, one probe of thirty seconds, nothing random."""
    policy = BreakerPolicy()
    assert (policy.error_threshold, policy.recovery_time, policy.probe_lease) == (3, 300.0, 30.0)
    assert (policy.half_open_permits, policy.successes_to_close, policy.jitter) == (1, 1, 0.0)
    assert FailureRate().window == 100


def test_recovery_time_zero_is_honoured():
    """0 means a probe at once; it is not read as "unset" (BerriAI/litellm#12108, circuitbreaker)."""
    breaker, _ = make(error_threshold=1, recovery_time=0)
    fail(breaker)
    assert breaker.state is State.OPEN
    assert breaker.try_acquire()
    assert breaker.state is State.HALF_OPEN


def test_recovery_time_zero_stays_zero_however_often_it_fails():
    """No back-off grows out of nothing, and no arithmetic turns it into NaN."""
    breaker, _ = make(error_threshold=1, recovery_time=0, backoff_multiplier=1e300, max_recovery_time=60)
    for _ in range(50):
        fail(breaker)
    assert breaker.snapshot().retry_after == 0.0


def test_threshold_one_opens_at_the_first_failure():
    """The smallest threshold is honoured."""
    breaker, _ = make(error_threshold=1)
    fail(breaker)
    assert breaker.state is State.OPEN


@pytest.mark.parametrize("attempt", [0, 1, 5, 1023, 1024, 10**6, 10**400])
@pytest.mark.parametrize("multiplier", [1.0, 1.0000001, 2.0, 1e308])
@pytest.mark.parametrize("maximum", [None, 300.0, 3600.0])
def test_back_off_never_overflows(attempt, multiplier, maximum):
    """However many attempts, the opening is finite, at least the recovery time, at most the maximum."""
    policy = BreakerPolicy(recovery_time=300.0, backoff_multiplier=multiplier, max_recovery_time=maximum)
    wait = policy.opening(attempt, lambda low, high: 0.0)
    assert 300.0 <= wait <= (365 * 86400.0 if maximum is None else maximum)
    assert wait <= policy.longest_opening


def test_an_opening_grows_by_the_multiplier_up_to_the_maximum_and_starts_over_after_a_close():
    """min(max_recovery_time, recovery_time * multiplier ** attempt); attempt is 0 after a close."""
    breaker, clock = half_open(backoff_multiplier=2, max_recovery_time=50)
    waits = []
    for _ in range(4):
        fail(breaker)
        waits.append(breaker.snapshot().retry_after)
        clock.tick(waits[-1])
    assert waits == [20.0, 40.0, 50.0, 50.0]
    breaker.try_acquire().success()
    fail(breaker)
    assert (breaker.snapshot().retry_after, breaker.snapshot().attempt) == (10.0, 0)


def test_jitter_spreads_breakers_and_a_seed_repeats_it():
    """Equal seeds wait alike, different seeds do not; each stays within its share (recovery herd)."""

    def waits(seed):
        breaker, clock = half_open(jitter=0.25, seed=seed)
        clock.tick(5)
        return [(fail(breaker), breaker.snapshot().retry_after, clock.tick(20))[1] for _ in range(20)]

    assert waits(1) == waits(1)
    assert waits(1) != waits(2)
    assert all(7.5 <= wait <= 12.5 for wait in waits(1))
    assert max(waits(1)) - min(waits(1)) > 2
