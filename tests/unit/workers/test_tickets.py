"""Tickets: ended once, by whoever is first, and heard of by whoever waits."""

from __future__ import annotations

import threading
import time

import pytest

from resilient_ai._workers.host.tickets import Ticket
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import DeviceFailed
from worker_kit import LONG, SOON, in_thread, outcome, outcomes, until

ANSWER = Frame(Kind.ANSWER, 1)


@pytest.fixture
def ticket():
    return Ticket(1, now=5.0)


def test_a_new_ticket_is_on_its_way(ticket):
    """It is not over, has not begun, and was last heard of when it was made."""
    assert (ticket.is_over, ticket.begun, ticket.moved, ticket.waits) == (False, None, 5.0, False)
    assert (ticket.line, ticket.size) == (None, 0)


def test_a_frame_ends_it(ticket):
    """The result is the frame that ended it."""
    assert ticket.end(ANSWER)
    assert ticket.is_over
    assert ticket.result() is ANSWER


def test_an_error_ends_it(ticket):
    """The result is the error, raised."""
    error = DeviceFailed("it broke")
    assert ticket.end(error=error)
    with pytest.raises(DeviceFailed) as told:
        ticket.result()
    assert told.value is error


def test_the_first_end_counts(ticket):
    """What comes later changes nothing, and is told so."""
    assert ticket.end(ANSWER)
    assert not ticket.end(error=DeviceFailed("late"))
    assert not ticket.end(Frame(Kind.ERROR, 1))
    assert ticket.result() is ANSWER


def test_one_of_many_ends_it():
    """Of threads that end it at once, one succeeds, and its frame is the result."""
    for _ in range(50):
        ticket = Ticket(1, now=0.0)
        barrier = threading.Barrier(8)
        frames = [Frame(Kind.ANSWER, each) for each in range(8)]

        def end(frame, barrier=barrier, ticket=ticket):
            barrier.wait(LONG)
            return frame if ticket.end(frame) else None

        won = [frame for frame in outcomes([in_thread(end, frame) for frame in frames]) if frame]
        assert won == [ticket.result()]


def test_a_nudge_before_the_sleep_is_not_lost(ticket):
    """Whoever is nudged before it sleeps does not sleep; twice is no more than once."""
    ticket.nudge()
    ticket.nudge()
    began = time.monotonic()
    ticket.listen(LONG)
    assert time.monotonic() - began < LONG / 2
    began = time.monotonic()
    ticket.listen(SOON)
    assert time.monotonic() - began >= SOON / 2


def test_the_end_wakes_the_sleeper(ticket):
    """A thread that sleeps on it wakes as soon as it is over."""
    began = time.monotonic()
    sleeper = in_thread(ticket.listen, LONG)
    until(sleeper.is_alive)
    ticket.end(ANSWER)
    outcome(sleeper)
    assert time.monotonic() - began < LONG / 2


def test_nobody_sleeps_through_an_end():
    """However end and sleep interleave, the sleeper wakes."""
    for _ in range(300):
        ticket = Ticket(1, now=0.0)
        sleeper = in_thread(ticket.listen, LONG)
        ticket.end(ANSWER)
        sleeper.join(LONG / 4)
        assert not sleeper.is_alive()
