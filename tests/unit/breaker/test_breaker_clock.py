"""Time: one injected monotonic clock, which may misbehave."""

import math
import time

import pytest
from breaker_kit import Clock, enter, fail, half_open, make

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, FailureRate, State


def test_the_default_clock_is_monotonic():
    """A wall clock that is set must not matter (fabfuel#31, hoglet#25, zio-openfeature#263)."""
    assert CircuitBreaker()._clock is time.monotonic


@pytest.mark.parametrize("back", [1e-9, 3600.0, 1e12])
def test_a_clock_that_steps_back_yields_no_negative_time_and_no_longer_opening(back):
    """An hour back while open: still probed after the recovery time (pybreaker, purgatory reject)."""
    breaker, clock = make(error_threshold=1, recovery_time=300)
    fail(breaker)
    clock.tick(100)
    assert breaker.try_acquire().retry_after == 200.0
    clock.tick(-back)
    assert breaker.try_acquire().retry_after == pytest.approx(200.0)
    clock.tick(199)
    assert 0 <= breaker.try_acquire().retry_after <= 1.001
    clock.tick(1.1)
    assert breaker.try_acquire()


def test_a_step_back_that_nobody_saw_costs_at_most_one_more_opening():
    """Time that passed unseen before the step cannot be known; it is not waited for twice."""
    breaker, clock = make(error_threshold=1, recovery_time=300)
    fail(breaker)
    clock.tick(299 - 3600)
    assert breaker.try_acquire().retry_after == 300.0
    clock.tick(300)
    assert breaker.try_acquire()


def test_a_step_back_neither_ends_a_lease_nor_makes_it_longer():
    """The lease goes on from where it was."""
    breaker, clock = half_open(probe_lease=5)
    probe = enter(breaker)
    clock.tick(3)
    assert 0 <= breaker.try_acquire().retry_after <= 5
    clock.tick(-1000)
    assert breaker.try_acquire().retry_after == 2.0
    clock.tick(2)
    assert breaker.try_acquire().state is State.OPEN
    probe.cancel()


def test_durations_are_never_negative():
    """A call during which the clock stepped back was not slow, and not faster than light."""
    rule = FailureRate(window=2, min_calls=1, rate=1.0, slow_call_duration=1.0, slow_call_rate=0.5)
    breaker, clock = make(trip_rule=rule)
    permit = enter(breaker)
    clock.tick(-50)
    permit.success()
    assert breaker.state is State.CLOSED


def test_failures_do_not_grow_old_while_the_clock_is_behind():
    """Ages, too, stand still for a step back."""
    breaker, clock = make(error_threshold=2, max_failure_age=10)
    fail(breaker)
    clock.tick(-1e6)
    fail(breaker)
    assert breaker.state is State.OPEN


def test_a_jump_ahead_lets_a_probe_in_and_no_more():
    """A suspended machine wakes up to one probe, not to a closed breaker."""
    breaker, clock = make(error_threshold=1, recovery_time=300)
    fail(breaker)
    clock.tick(1e9)
    assert breaker.try_acquire()
    assert not breaker.try_acquire()


@pytest.mark.parametrize("start", [0.0, -1e9, 1e15, 0.1])
def test_the_origin_of_the_clock_does_not_matter(start):
    """Zero is a time like any other."""
    breaker, clock = make(Clock(start), error_threshold=1, recovery_time=64.0)
    fail(breaker)
    assert breaker.snapshot().opened_at == start
    assert not breaker.try_acquire()
    clock.tick(64.0)
    assert breaker.try_acquire()


def test_whole_numbers_will_do_for_a_clock():
    """A clock of ints works like one of floats."""
    breaker = CircuitBreaker(
        BreakerPolicy(error_threshold=1, recovery_time=3), clock=iter(range(100)).__next__
    )
    fail(breaker)
    answers = [bool(breaker.try_acquire()) for _ in range(4)]
    assert answers == [False, False, True, False]


def test_a_clock_that_fails_leaves_the_books_in_order():
    """Its error reaches the caller, no lock stays held, and nothing is counted."""
    working = [True]

    def clock():
        if not working[0]:
            raise OSError("no time")
        return 1.0

    rule = FailureRate(window=2, min_calls=1, rate=1.0, slow_call_duration=1.0, slow_call_rate=1.0)
    breaker = CircuitBreaker(BreakerPolicy(trip_rule=rule), clock=clock)
    working[0] = False
    with pytest.raises(OSError, match="no time"):
        breaker.try_acquire()
    working[0] = True
    assert breaker.snapshot().in_flight == 0


def test_times_in_a_snapshot_are_finite():
    """Whatever the policy, JSON can carry the numbers."""
    breaker, clock = half_open(backoff_multiplier=1e300)
    for _ in range(5):
        fail(breaker)
        assert math.isfinite(breaker.snapshot().retry_after)
        clock.tick(breaker.snapshot().retry_after)
