"""Half-open: exactly so many probes, and no way to get stuck."""

import asyncio
import gc
import threading

import pytest
from breaker_kit import Clock, arrows, enter, fail, half_open, record

from resilient_ai._resilience.breaker import Permit, Rejection, State


def storm(breaker, threads=50):
    """What 50 threads get that ask at the same moment."""
    barrier = threading.Barrier(threads)
    answers = []

    def ask():
        barrier.wait()
        answers.append(breaker.try_acquire())

    crowd = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    return [a for a in answers if a], [a for a in answers if not a]


# Races at expiry: Polly#216, opossum#119, resilience4j#343/#1432, smallrye#319, purgatory.


@pytest.mark.parametrize("permits", [1, 3, 49])
def test_fifty_threads_at_expiry_get_exactly_the_permitted_probes(permits):
    """Arriving together admits no more than `half_open_permits`, however often it is tried."""
    for _ in range(10):
        breaker, _ = half_open(half_open_permits=permits)
        admitted, rejected = storm(breaker)
        assert (len(admitted), len(rejected)) == (permits, 50 - permits)
        assert len({id(permit) for permit in admitted}) == permits
        assert breaker.snapshot().in_flight == permits


def test_fifty_threads_cause_one_transition_to_half_open():
    """To ask "is it time?" and to set half-open are one step (faulty#70, pyfailsafe#31)."""
    breaker, _ = half_open()
    heard = record(breaker)
    _admitted, _ = storm(breaker)
    assert arrows(heard) == [("open", "half_open")]


def test_fifty_tasks_at_expiry_get_exactly_the_permitted_probes():
    """Tasks that probe across an await are held to the same number."""

    async def main():
        breaker, _ = half_open(half_open_permits=2, successes_to_close=2)
        gate, answers = asyncio.Event(), []

        async def call():
            await gate.wait()
            with breaker.try_acquire() as permit:
                answers.append(bool(permit))
                await asyncio.sleep(0)
                if permit:
                    permit.success()

        tasks = [asyncio.create_task(call()) for _ in range(50)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return breaker, answers

    breaker, answers = asyncio.run(main())
    assert sum(answers) == 2
    assert breaker.state is State.CLOSED


def test_one_probe_per_opening_while_it_fails():
    """Each recovery attempt costs one call, not a herd (safe-client-gateway#3442)."""
    breaker, clock = half_open()
    probes = 0
    for _ in range(20):
        answers = [breaker.try_acquire() for _ in range(50)]
        probes += sum(map(bool, answers))
        next(a for a in answers if a).failure()
        clock.tick(10)
    assert probes == 20


def test_so_many_successes_close():
    """`successes_to_close` probes, which may follow one another through one slot."""
    breaker, _ = half_open(successes_to_close=3)
    for _ in range(2):
        enter(breaker).success()
        assert breaker.state is State.HALF_OPEN
    enter(breaker).success()
    assert breaker.state is State.CLOSED


def test_one_failed_probe_reopens_whatever_succeeded_before():
    """Half-open ends at the first failure, and the successes before it are forgotten."""
    breaker, clock = half_open(successes_to_close=2)
    enter(breaker).success()
    fail(breaker)
    assert (breaker.state, breaker.snapshot().attempt) == (State.OPEN, 1)
    clock.tick(10)
    enter(breaker).success()
    assert breaker.state is State.HALF_OPEN


# Stuck half-open: resilience4j#544/#858/#935, OmniRoute#13836, litellm#39701, nora#585, tramAI#302.


@pytest.mark.parametrize("outcome", ["ignore", "cancel", "give_back"])
def test_a_neutral_probe_frees_its_slot_at_once_and_decides_nothing(outcome):
    """An ignored or cancelled probe neither closes (Polly#1991) nor blocks (resilience4j#544)."""
    breaker, _ = half_open()
    getattr(enter(breaker), outcome)()
    assert breaker.state is State.HALF_OPEN
    assert breaker.snapshot().inconclusive_probes == 1
    assert breaker.try_acquire()


def test_looking_consumes_no_permit():
    """Asking for state, snapshot or repr takes no slot and moves nothing (resilience4j#858)."""
    breaker, _ = half_open()
    heard = record(breaker)
    for _ in range(10):
        assert breaker.state is State.OPEN
        assert (breaker.snapshot().state, breaker.snapshot().retry_after) == (State.OPEN, 0.0)
        assert "open" in repr(breaker)
    assert heard == []
    assert breaker.try_acquire()


def test_a_probe_that_hangs_reopens_with_the_next_back_off():
    """`probe_lease` is the longest that one call can hold half-open (resilience4j#935)."""
    breaker, clock = half_open(probe_lease=5, backoff_multiplier=2)
    hung = enter(breaker)
    clock.tick(4.999)
    assert breaker.try_acquire() == Rejection(pytest.approx(0.001), State.HALF_OPEN)
    clock.tick(0.001)
    assert breaker.try_acquire() == Rejection(pytest.approx(20.0), State.OPEN)
    assert breaker.snapshot().attempt == 1
    assert breaker.snapshot().in_flight == 1  # it still runs, and is still counted (Hystrix#1867)
    hung.success()
    snapshot = breaker.snapshot()
    assert (snapshot.state, snapshot.stale_results, snapshot.in_flight) == (State.OPEN, 1, 0)


def test_the_late_settlement_itself_finds_the_lease_over():
    """Though nobody asked in between, a probe settled after its lease cannot close."""
    for outcome in ("success", "failure", "ignore", "cancel"):
        breaker, clock = half_open(probe_lease=5)
        probe = enter(breaker)
        clock.tick(5)
        getattr(probe, outcome)()
        snapshot = breaker.snapshot()
        assert (snapshot.state, snapshot.attempt, snapshot.stale_results) == (State.OPEN, 1, 1)
        assert snapshot.inconclusive_probes == 0


def test_an_outlived_lease_counts_from_when_it_ended():
    """Found days later, the opening it caused is long over: the next call probes at once."""
    breaker, clock = half_open(probe_lease=5)
    heard = record(breaker)
    hung = enter(breaker)
    clock.tick(6 * 86400)
    assert breaker.try_acquire()
    assert arrows(heard) == [("open", "half_open"), ("half_open", "open"), ("open", "half_open")]
    hung.cancel()


def test_the_lease_of_one_of_several_probes_ends_half_open_for_all():
    """The oldest hung probe decides; the results of its companions are stale."""
    breaker, clock = half_open(half_open_permits=2, successes_to_close=2, probe_lease=5)
    first = enter(breaker)
    clock.tick(3)
    second = enter(breaker)
    clock.tick(2)
    second.success()
    assert breaker.state is State.OPEN
    first.success()
    assert breaker.snapshot().stale_results == 2


def test_a_settled_probe_has_no_lease():
    """Only probes under way can run out."""
    breaker, clock = half_open(successes_to_close=2, probe_lease=5)
    enter(breaker).success()
    clock.tick(1000)
    assert breaker.try_acquire()
    assert breaker.state is State.HALF_OPEN


def test_a_probe_lost_to_the_garbage_collector_is_freed_by_its_lease():
    """Dropping the permit does not mean the call has ended, so the slot stays taken, for a lease (tramAI#302)."""
    breaker, clock = half_open(probe_lease=5)
    enter(breaker)
    gc.collect()
    assert not breaker.try_acquire()
    clock.tick(5)
    assert not breaker.try_acquire()
    assert breaker.state is State.OPEN
    clock.tick(10)
    assert breaker.try_acquire()


def test_counting_answers_without_keeping_them_finds_the_permitted_number():
    """`if breaker.try_acquire(): call()` cannot let in more probes than are permitted."""
    breaker, _ = half_open(half_open_permits=2)
    assert sum(bool(breaker.try_acquire()) for _ in range(50)) == 2


def test_a_permit_left_in_a_with_block_is_cancelled_on_every_way_out():
    """Return, exception and BaseException all give the slot back."""
    breaker, _ = half_open()
    with breaker.try_acquire() as permit:
        assert permit
    for error in (ValueError, KeyboardInterrupt, asyncio.CancelledError, SystemExit):
        with pytest.raises(error), breaker.try_acquire():
            raise error
    assert breaker.snapshot().inconclusive_probes == 5
    assert breaker.snapshot().cancelled == 5


def test_a_rejection_in_a_with_block_does_nothing():
    """The block runs with a falsy answer; there is nothing to settle."""
    breaker, _ = half_open()
    probe = enter(breaker)
    with breaker.try_acquire() as answer:
        assert not answer
        assert isinstance(answer, Rejection)
    assert breaker.snapshot().in_flight == 1
    probe.success()


def test_a_generator_that_is_collected_under_the_breakers_lock_does_not_deadlock():
    """Finalising a `with` block takes no lock: the collector may strike inside the breaker itself."""
    breaker, _ = half_open()

    def worker():
        with breaker.try_acquire() as permit:
            assert permit
            yield

    running = worker()
    next(running)
    with breaker._lock:  # as if collection happened in the middle of the breaker's arithmetic
        running.close()
    assert breaker.snapshot().in_flight == 0
    assert breaker.try_acquire()


def test_more_probes_are_tried_for_as_long_as_they_tell_nothing():
    """Any number of inconclusive probes leaves half-open usable, and is visible (erpc#1118)."""
    breaker, _ = half_open()
    for _ in range(100):
        enter(breaker).ignore()
    assert breaker.snapshot().inconclusive_probes == 100
    enter(breaker).success()
    assert breaker.state is State.CLOSED


def test_the_slot_of_a_hung_closed_era_call_is_not_a_probes_slot():
    """Calls from before the opening take no half-open slot (failsafe#391)."""
    clock = Clock()
    breaker, _ = half_open(clock)
    enter(breaker).success()
    old = [enter(breaker) for _ in range(5)]
    fail(breaker)
    clock.tick(10)
    probe = enter(breaker)
    for permit in old:
        permit.cancel()
    assert not breaker.try_acquire()
    assert isinstance(probe, Permit)
    assert breaker.snapshot().in_flight == 1
