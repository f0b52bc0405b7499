"""Trip rules: when failures are enough."""

import pytest
from breaker_kit import Clock, enter, fail, make

from resilient_ai._resilience.breaker import FailureRate, State
from resilient_ai._resilience.trip import RateMeter


def test_the_threshold_is_of_failures_in_a_row():
    """A success in between starts the count over."""
    breaker, _ = make(error_threshold=3)
    fail(breaker, 2)
    enter(breaker).success()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    assert breaker.snapshot().consecutive_failures == 2
    fail(breaker)
    assert breaker.state is State.OPEN


def test_sparse_failures_reach_the_threshold():
    """Without a maximum age, failures hours apart still add up (solace-broker-mcp#296)."""
    breaker, clock = make(error_threshold=3)
    for _ in range(3):
        fail(breaker)
        clock.tick(86400)
    assert breaker.state is State.OPEN


def test_failures_older_than_the_maximum_age_do_not_count():
    """With `max_failure_age` only failures young enough count, one exactly that old still does."""
    breaker, clock = make(error_threshold=3, max_failure_age=10)
    fail(breaker)
    clock.tick(10)
    fail(breaker)
    assert breaker.snapshot().consecutive_failures == 2
    clock.tick(0.5)
    assert breaker.snapshot().consecutive_failures == 1
    fail(breaker)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN


def test_one_failure_after_closing_does_not_open_again():
    """Closing clears the streak (Envoy#40697: one failure re-ejected the host)."""
    breaker, clock = make(error_threshold=3, recovery_time=10)
    fail(breaker, 3)
    clock.tick(10)
    enter(breaker).success()
    assert (breaker.state, breaker.snapshot().consecutive_failures) == (State.CLOSED, 0)
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_one_failure_of_one_call_does_not_open_by_rate():
    """Below `min_calls` nothing is judged (litellm#17418: 1 of 1 is 100 %)."""
    breaker, _ = make(trip_rule=FailureRate(window=10, min_calls=4, rate=0.5))
    fail(breaker, 3)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN


def test_the_rate_is_reached_at_exactly_its_value():
    """2 failures of 4 calls are 50 %, and 50 % opens."""
    breaker, _ = make(trip_rule=FailureRate(window=4, min_calls=4, rate=0.5))
    for outcome in ("success", "failure", "success", "failure"):
        assert breaker.state is State.CLOSED
        getattr(enter(breaker), outcome)()
    assert breaker.state is State.OPEN


def test_the_call_that_fills_the_window_may_open_even_if_it_succeeded():
    """The share is judged at every result, once there are enough."""
    breaker, _ = make(trip_rule=FailureRate(window=4, min_calls=4, rate=0.75))
    fail(breaker, 3)
    enter(breaker).success()
    assert breaker.state is State.OPEN


def test_results_that_left_the_window_of_calls_are_forgotten():
    """Only the last N calls count."""
    breaker, _ = make(trip_rule=FailureRate(window=4, min_calls=4, rate=0.75))
    fail(breaker, 2)
    for _ in range(4):
        enter(breaker).success()
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN


def test_results_that_left_the_window_of_seconds_are_forgotten():
    """Only the last T seconds count."""
    breaker, clock = make(trip_rule=FailureRate(seconds=60, min_calls=4, rate=0.5))
    fail(breaker, 3)
    clock.tick(61)
    fail(breaker, 3)
    assert breaker.state is State.CLOSED
    clock.tick(30)
    fail(breaker)
    assert breaker.state is State.OPEN


def test_a_window_of_seconds_holds_no_more_for_more_traffic():
    """A million results cost the memory of sixty."""
    meter = RateMeter(FailureRate(seconds=60, min_calls=1, rate=1.0))
    for call in range(20_000):
        meter.record(failed=call % 2 == 0, duration=0.0, now=call / 100)
    assert len(meter._window._buckets) <= 61
    assert 5900 <= meter._window.calls <= 6000


def test_slow_calls_open_the_breaker_though_they_succeed():
    """The duration is the breaker's own measure, from permit to settlement."""
    rule = FailureRate(window=10, min_calls=4, rate=1.0, slow_call_duration=2.0, slow_call_rate=0.5)
    breaker, clock = make(trip_rule=rule)
    for seconds in (0.1, 2.0, 2.1, 5.0):  # 2.0 is not more than 2.0
        permit = enter(breaker)
        clock.tick(seconds)
        permit.success()
    assert breaker.state is State.OPEN
    assert breaker.snapshot().reason == "2 of 4 calls took more than 2 s"


def test_neutral_outcomes_are_not_in_the_denominator():
    """Ignored and cancelled calls do not dilute the rate."""
    breaker, _ = make(trip_rule=FailureRate(window=4, min_calls=2, rate=1.0))
    for _ in range(2):
        enter(breaker).ignore()
        enter(breaker).cancel()
        fail(breaker)
    assert breaker.state is State.OPEN


def test_closing_empties_the_window():
    """What opened the breaker must not open it again after it closed."""
    breaker, clock = make(recovery_time=10, trip_rule=FailureRate(window=4, min_calls=2, rate=0.5))
    fail(breaker, 2)
    clock.tick(10)
    enter(breaker).success()
    fail(breaker)
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 1e6])
def test_a_window_of_seconds_works_at_any_scale(seconds):
    """Microseconds or days: a burst within the window opens, the same spread out does not."""
    for spread, expected in ((0.01, State.OPEN), (1.1, State.CLOSED)):
        clock = Clock(0.0)
        breaker, _ = make(clock, trip_rule=FailureRate(seconds=seconds, min_calls=3, rate=1.0))
        for _ in range(3):
            fail(breaker)
            clock.tick(seconds * spread)
        assert breaker.state is expected
