"""Late results: what belongs to another generation changes nothing but `stale_results`."""

import copy
import pickle
import threading

import pytest
from breaker_kit import enter, fail, half_open, make, record

from resilient_ai._resilience.breaker import State

OUTCOMES = ["success", "failure", "ignore", "cancel"]
COUNTED = ("successes", "failures", "ignored", "cancelled", "inconclusive_probes", "consecutive_failures")
MOVES = {
    "trip": lambda b: fail(b, 3),
    "open_for": lambda b: b.open_for(10),
    "force_open": lambda b: b.force_open(),
    "disable": lambda b: b.disable(),
    "metrics_only": lambda b: b.metrics_only(),
    "there and back": lambda b: (b.force_open(), b.reset()),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("move", MOVES)
def test_a_result_from_before_a_transition_is_stale(outcome, move):
    """Every transition, manual ones too, begins a generation (Hystrix#1350, opossum#381, gofiber#2350)."""
    breaker, _ = make()
    late = enter(breaker)
    MOVES[move](breaker)
    heard, before = record(breaker), breaker.snapshot()
    getattr(late, outcome)()
    after = breaker.snapshot()
    assert [getattr(after, n) for n in COUNTED] == [getattr(before, n) for n in COUNTED]
    assert (after.state, after.generation, after.attempt) == (before.state, before.generation, before.attempt)
    assert (after.stale_results, after.in_flight) == (before.stale_results + 1, before.in_flight - 1)
    assert heard == []


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_closed_era_result_cannot_decide_half_open(outcome):
    """Neither closes, nor reopens, nor frees a slot it never had (Polly#217-#219, purgatory)."""
    breaker, clock = make(error_threshold=1, recovery_time=10)
    late = enter(breaker)
    fail(breaker)
    clock.tick(10)
    probe = enter(breaker)
    getattr(late, outcome)()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.try_acquire()
    probe.success()
    assert breaker.state is State.CLOSED


def test_the_probe_of_an_earlier_half_open_cannot_close_a_later_one():
    """A superseded probe's late success is stale (termite#27, nora#667)."""
    breaker, clock = half_open(probe_lease=5)
    superseded = enter(breaker)
    clock.tick(15)
    current = enter(breaker)
    superseded.success()
    assert breaker.state is State.HALF_OPEN
    current.failure()
    assert breaker.state is State.OPEN


def test_a_late_failure_after_recovery_does_not_reopen():
    """The call failed in another time (gofiber#2350)."""
    breaker, clock = make(error_threshold=1, recovery_time=10)
    late = enter(breaker)
    fail(breaker)
    clock.tick(10)
    enter(breaker).success()
    late.failure()
    assert (breaker.state, breaker.snapshot().consecutive_failures) == (State.CLOSED, 0)


def test_simultaneous_failures_open_once():
    """Failures that arrive after the one that opened restart no cool-down (agbero#7, opossum#385)."""
    breaker, clock = make(error_threshold=1, recovery_time=10)
    crowd = [enter(breaker) for _ in range(10)]
    heard = record(breaker)
    crowd[0].failure()
    for late in crowd[1:]:
        clock.tick(1)
        late.failure()
    assert len(heard) == 1
    assert breaker.snapshot().retry_after == 1.0
    clock.tick(1)
    assert breaker.try_acquire()


@pytest.mark.parametrize("first", OUTCOMES)
@pytest.mark.parametrize("second", [*OUTCOMES, "give_back"])
def test_the_first_settlement_counts_and_later_ones_do_nothing(first, second):
    """One permit, one result."""
    breaker, _ = make()
    permit = enter(breaker)
    getattr(permit, first)()
    before = breaker.snapshot()
    getattr(permit, second)()
    del permit
    assert breaker.snapshot() == before


def test_a_settlement_after_giving_back_does_nothing():
    """Given back is settled, though the breaker notices later."""
    breaker, _ = make()
    permit = enter(breaker)
    permit.give_back()
    permit.failure()
    snapshot = breaker.snapshot()
    assert (snapshot.cancelled, snapshot.failures, snapshot.in_flight) == (1, 0, 0)


def test_many_threads_settling_one_permit_count_once():
    """Concurrent settlements of one permit are one settlement."""
    breaker, _ = make(error_threshold=100)
    for _ in range(20):
        permit, barrier = enter(breaker), threading.Barrier(8)

        def settle(outcome, permit=permit, barrier=barrier):
            barrier.wait()
            getattr(permit, outcome)()

        crowd = [threading.Thread(target=settle, args=(OUTCOMES[i % 4],)) for i in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
    s = breaker.snapshot()
    assert s.successes + s.failures + s.ignored + s.cancelled == 20
    assert s.in_flight == 0


def test_a_permit_may_be_settled_by_another_thread():
    """Permits are not bound to the thread that took them."""
    breaker, _ = half_open()
    probe = enter(breaker)
    helper = threading.Thread(target=probe.success)
    helper.start()
    helper.join()
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("double", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_permit_cannot_be_doubled(double):
    """A copy would settle a second time, so there are none."""
    breaker, _ = make()
    with breaker.try_acquire() as permit, pytest.raises(TypeError, match="copied"):
        double(permit)


def test_a_permit_shows_what_it_is():
    """The repr tells a probe from a call and whether it is settled."""
    breaker, _ = half_open()
    permit = enter(breaker)
    assert repr(permit) == "<Permit probe generation=2 unsettled>"
    permit.success()
    assert repr(permit) == "<Permit probe generation=2 settled>"
    assert repr(enter(breaker)) == "<Permit call generation=3 unsettled>"
    assert repr(breaker) == "<CircuitBreaker 'gpu' closed generation=3>"
