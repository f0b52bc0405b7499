"""Listeners: in order, one at a time, outside the lock, isolated."""

import threading
from itertools import pairwise

import pytest
from breaker_kit import Clock, arrows, enter, fail, half_open, make, record

from resilient_ai._resilience import listeners as module
from resilient_ai._resilience.breaker import State


def test_a_listener_may_read_the_breaker():
    """No lock is held while it runs (gobreaker#37: deadlock on cb.State())."""
    breaker, _ = make(error_threshold=1)
    seen = []
    breaker.subscribe(lambda event: seen.append((event.after, breaker.state, breaker.snapshot().generation)))
    fail(breaker)
    assert seen == [(State.OPEN, State.OPEN, 1)]


def test_a_listener_may_move_the_breaker_and_all_hear_it_in_order():
    """Transitions made inside a listener follow the one it was told, for every listener (gascity#4839)."""
    breaker, _ = make(error_threshold=1)
    first, second = [], []

    def push(event):
        first.append(event.after)
        if event.after is State.OPEN:
            breaker.force_open()
        elif event.after is State.FORCED_OPEN:
            breaker.reset()

    breaker.subscribe(push)
    breaker.subscribe(lambda event: second.append(event.after))
    fail(breaker)
    assert first == second == [State.OPEN, State.FORCED_OPEN, State.CLOSED]


def test_a_listener_may_take_and_settle_permits():
    """Every operation is allowed from inside."""
    breaker, _ = make(error_threshold=1, recovery_time=0)
    heard = record(breaker)
    breaker.subscribe(lambda event: enter(breaker).success() if event.after is State.OPEN else None)
    fail(breaker)
    assert arrows(heard) == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


def test_a_listener_may_settle_the_permit_whose_settlement_it_hears_of():
    """It is settled already, so that does nothing."""
    breaker, _ = make(error_threshold=1)
    permit = enter(breaker)
    breaker.subscribe(lambda event: permit.success())
    permit.failure()
    assert (breaker.state, breaker.snapshot().successes) == (State.OPEN, 0)


@pytest.mark.parametrize("error", [ValueError("x"), RecursionError(), StopIteration()])
def test_a_listener_that_raises_stops_neither_the_others_nor_the_caller(error):
    """It is counted and goes no further (pybreaker: the caller lost its result)."""
    breaker, _ = make(error_threshold=1)

    def broken(_event):
        raise error

    before, after = record(breaker), []
    breaker.subscribe(broken)
    breaker.subscribe(after.append)
    fail(breaker)
    assert breaker.state is State.OPEN
    assert len(before) == len(after) == 1
    assert breaker.snapshot().listener_errors == 1


def test_an_interrupt_in_a_listener_reaches_the_caller_and_leaves_delivery_working():
    """Ctrl-C is not the listener's error; the next transition is delivered all the same."""
    breaker, _ = make(error_threshold=1)
    heard = record(breaker)

    def interrupted(event):
        if event.after is State.OPEN:
            raise KeyboardInterrupt

    breaker.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        fail(breaker)
    breaker.reset()
    assert arrows(heard) == [("closed", "open"), ("open", "closed")]
    assert breaker.snapshot().listener_errors == 0


def test_a_listener_may_unsubscribe_itself_and_others_while_it_runs():
    """Whoever was removed hears nothing more, not even of this transition."""
    breaker, _ = make()
    heard, offs = [], []

    def once(event):
        heard.append("once")
        for off in offs:
            off()

    offs.append(breaker.subscribe(once))
    offs.append(breaker.subscribe(lambda event: heard.append("removed")))
    breaker.subscribe(lambda event: heard.append("stays"))
    breaker.force_open()
    breaker.reset()
    assert heard == ["once", "stays", "stays"]


def test_a_listener_may_subscribe_another():
    """The new one hears of what comes next."""
    breaker, _ = make()
    heard = []
    off = breaker.subscribe(lambda event: (off(), breaker.subscribe(heard.append)))
    breaker.force_open()
    breaker.reset()
    assert arrows(heard) == [("forced_open", "closed")]


def test_one_listener_subscribed_twice_is_two_and_each_ends_by_itself():
    """Unsubscribing is by subscription, and any number of times."""
    breaker, _ = make()
    heard = []
    off = breaker.subscribe(heard.append)
    breaker.subscribe(heard.append)
    breaker.force_open()
    assert len(heard) == 2
    off()
    off()
    breaker.reset()
    assert len(heard) == 3


def test_while_one_thread_delivers_no_other_waits_and_order_holds():
    """A slow listener holds up nobody but the thread it runs in."""
    breaker, _ = make()
    entered, go, heard = threading.Event(), threading.Event(), []

    def slow(event):
        heard.append((event.generation, threading.current_thread().name))
        if event.generation == 1:
            entered.set()
            assert go.wait(10)

    breaker.subscribe(slow)
    first = threading.Thread(target=breaker.force_open, name="first")
    first.start()
    assert entered.wait(10)
    breaker.reset()  # returns at once, though its event waits
    breaker.disable()
    assert heard == [(1, "first")]
    go.set()
    first.join()
    assert heard == [(1, "first"), (2, "first"), (3, "first")]


def test_what_waits_is_bounded_and_what_is_dropped_is_counted():
    """Behind a listener that hangs, the oldest transitions go first."""
    breaker, _ = make()
    entered, go, heard = threading.Event(), threading.Event(), []

    def slow(event):
        heard.append(event.generation)
        if event.generation == 1:
            entered.set()
            assert go.wait(10)

    breaker.subscribe(slow)
    first = threading.Thread(target=breaker.force_open)
    first.start()
    assert entered.wait(10)
    for _ in range(module._LIMIT // 2 + 5):
        breaker.reset()
        breaker.force_open()
    assert breaker.snapshot().listener_errors == 10
    go.set()
    first.join()
    breaker.reset()  # hands out what one delivery left over
    assert heard == [1, *range(12, breaker.snapshot().generation + 1)]


def test_a_listener_that_moves_the_breaker_for_ever_does_not_keep_its_caller():
    """One call delivers a bounded number (resilience4j#2038: 10,000 transitions in a loop)."""
    breaker, _ = make()
    breaker.subscribe(lambda e: breaker.reset() if e.after is State.FORCED_OPEN else breaker.force_open())
    breaker.force_open()
    assert breaker.snapshot().generation == module._LIMIT + 1


def test_fifty_threads_of_transitions_are_heard_once_each_in_order():
    """Whatever thread delivers, generations arrive without a gap and never two at a time."""
    breaker, _ = make()
    heard, inside, overlaps = [], threading.Lock(), []

    def listener(event):
        if not inside.acquire(blocking=False):
            overlaps.append(event)
            return
        heard.append(event)
        inside.release()

    breaker.subscribe(listener)
    barrier = threading.Barrier(50)

    def churn():
        barrier.wait()
        for _ in range(5):
            breaker.force_open()
            breaker.reset()

    crowd = [threading.Thread(target=churn) for _ in range(50)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert overlaps == []
    assert [event.generation for event in heard] == list(range(1, breaker.snapshot().generation + 1))
    assert all(a.after is b.before for a, b in pairwise(heard))


def test_no_listener_no_queue():
    """Transitions that nobody listens to are not kept for a later subscriber."""
    breaker, _ = half_open(Clock())
    assert record(breaker) == []
    breaker.force_open()
    assert not breaker._listeners.queue
