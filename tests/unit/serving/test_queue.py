"""Urgent calls first, then fair turns."""

from __future__ import annotations

from resilient_ai._serving.queue import JobQueue, urgency
from resilient_ai.testing import FakeBackend
from serving_kit import job, lane

BACKEND = FakeBackend()
LANE, OTHER = lane(BACKEND), lane(BACKEND)


def made(rows, on=LANE, **options):
    return job([f"row {n}" for n in range(rows)], on, **options)


def took(wave):
    return [(part.job, part.start, part.stop) for part in wave]


def test_urgency():
    """Interactive calls of one batch go before larger ones, those before bulk of any size."""
    assert [urgency(made(32)), urgency(made(33)), urgency(made(1, priority="bulk"))] == [0, 1, 2]


def test_waves_are_merged():
    """One wave takes the rows of several calls on a lane, in the order they came."""
    queue, jobs = JobQueue(), [made(3), made(4), made(5)]
    for one in jobs:
        queue.put(one)
    assert took(queue.take(9)) == [(jobs[0], 0, 3), (jobs[1], 0, 4), (jobs[2], 0, 2)]
    assert took(queue.take(9)) == [(jobs[2], 2, 5)]
    assert queue.take(9) == []


def test_large_calls_take_turns():
    """A call that is larger than a wave goes behind those that wait; nobody waits for its end."""
    queue = JobQueue()
    large, second, third = (made(1000, priority="bulk") for _ in range(3))
    for one in (large, second, third):
        queue.put(one)
    turns = [took(queue.take(256))[0][0] for _ in range(6)]
    assert turns == [large, second, third] * 2


def test_lanes_take_turns():
    """Calls on another lane come next, before the rest of a large call."""
    queue, large, other = JobQueue(), made(1000), made(40, OTHER)
    queue.put(large)
    queue.put(other)
    assert took(queue.take(256)) == [(large, 0, 256)]
    assert took(queue.take(256)) == [(other, 0, 40)]
    assert took(queue.take(256)) == [(large, 256, 512)]


def test_order_on_a_lane_is_kept():
    """What is passed over because it is on another lane keeps its place."""
    queue = JobQueue()
    jobs = [made(1), made(2, OTHER), made(3), made(4, OTHER)]
    for one in jobs:
        queue.put(one)
    assert [part[0] for part in took(queue.take(256))] == [jobs[0], jobs[2]]
    assert [part[0] for part in took(queue.take(256))] == [jobs[1], jobs[3]]


def test_only_what_is_more_urgent():
    """Between the batches of a wave only more urgent calls are taken."""
    queue, bulk, large = JobQueue(), made(1, priority="bulk"), made(100)
    queue.put(bulk)
    assert queue.take(256, before=2) == []
    queue.put(large)
    assert took(queue.take(256, before=2)) == [(large, 0, 100)]
    assert took(queue.take(256)) == [(bulk, 0, 1)]


def test_calls_that_are_over_are_dropped():
    """A call nobody waits for is not computed, nor counted once that is asked for."""
    queue, gone, alive = JobQueue(), made(5), made(6)
    queue.put(gone)
    queue.put(alive)
    gone.future.cancel()
    assert (len(queue), queue.rows) == (2, 11)
    queue.discard_over()
    assert (len(queue), queue.rows) == (1, 6)
    assert took(queue.take(256)) == [(alive, 0, 6)]


def test_a_call_that_ends_between_its_waves():
    """The rest of a call that ended after its first wave is not taken."""
    queue, large = JobQueue(), made(600)
    queue.put(large)
    queue.take(256)
    large.future.cancel()
    assert queue.take(256) == []
    assert len(queue) == 0


def test_draining():
    """Draining hands back every waiting call, those that had a turn included."""
    queue, jobs = JobQueue(), [made(600), made(1), made(1, priority="bulk")]
    for one in jobs:
        queue.put(one)
    queue.take(1)
    assert set(queue.drain()) == {jobs[0], jobs[2]}
    assert (len(queue), queue.rows) == (0, 0)
