"""What the buffer pool does when it is full, misused, or used by many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from resilient_ai import BufferPool
from resilient_ai.errors import ConfigurationError, InvalidInput, Overloaded
from resilient_ai.testing import FakeClock

KB = 1024


def test_memory_is_used_again():
    """A block that came back serves the next request of its size class; no new memory is taken."""
    pool = BufferPool(64 * KB)
    with pool.lease((100, 10), np.int64) as first:
        place = first.__array_interface__["data"][0]
    with pool.lease((1000,), np.float64) as second:
        assert second.__array_interface__["data"][0] == place
    told = pool.statistics()
    assert (told.allocations, told.reuses, told.leases, told.lent) == (1, 1, 0, 0)


def test_idle_blocks_make_room_for_other_sizes():
    """Idle blocks of one size are freed when another size needs their room."""
    pool = BufferPool(16 * KB)
    for _ in range(3):
        pool.lease((4 * KB,), np.uint8).release()
    with pool.lease((16 * KB,), np.uint8, timeout=0):
        assert pool.statistics().allocated == 16 * KB


@pytest.mark.parametrize("budget", [0, -1, 4095])
def test_a_budget_that_is_no_budget(budget):
    """A budget below the smallest block is refused at once."""
    with pytest.raises(ConfigurationError):
        BufferPool(budget)


def test_a_request_beyond_the_budget():
    """What could never be lent is refused at once, with the setting to raise."""
    with pytest.raises(ConfigurationError, match="AI_MEMORY_POOL_SIZE"):
        BufferPool(8 * KB).lease((8 * KB + 1,), np.uint8)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((-1,), "int64"), ((2, -3), "int64"), ((3,), object), ((3,), "S0"), ((3,), "V0")]
)
def test_requests_that_make_no_array(shape, dtype):
    """A request that no array can be made of is refused and costs no memory."""
    pool = BufferPool(8 * KB)
    with pytest.raises(InvalidInput):
        pool.lease(shape, dtype)
    assert pool.statistics().leases == pool.statistics().lent == 0


def test_the_last_of_a_shared_block_returns_it():
    """A shared block is lent out until its last reader has returned it."""
    pool = BufferPool(4 * KB)
    first = pool.lease((10,), np.int64)
    second = first.share()
    first.release()
    with pytest.raises(Overloaded):
        pool.lease((10,), np.int64, timeout=0)
    assert second.array.shape == (10,)
    second.release()
    pool.lease((10,), np.int64, timeout=0).release()


def test_full_pool_does_not_wait_when_told():
    """With a timeout of 0 a full pool answers at once."""
    pool = BufferPool(4 * KB)
    with pool.lease((10,), np.int64), pytest.raises(Overloaded) as caught:
        pool.lease((10,), np.int64, timeout=0)
    assert caught.value.retry_after > 0


def test_timeout_by_the_clock(monkeypatch):
    """Waiting ends when the pool's own clock says so."""
    clock = FakeClock()
    pool = BufferPool(4 * KB, clock=clock)
    waits = []

    def wait(left):
        waits.append(left)
        clock.tick(1.0)

    monkeypatch.setattr(pool._returned, "wait", wait)
    with pool.lease((10,), np.int64), pytest.raises(Overloaded):
        pool.lease((10,), np.int64, timeout=2.5)
    assert waits == [2.5, 1.5, 0.5]


def test_a_return_wakes_who_waits():
    """Who waits for room gets it as soon as it is there."""
    pool = BufferPool(4 * KB)
    held = pool.lease((10,), np.int64)
    got = threading.Event()

    def borrow():
        with pool.lease((20,), np.int64):
            got.set()

    thread = threading.Thread(target=borrow)
    thread.start()
    assert not got.wait(0.05)
    held.release()
    assert got.wait(10)
    thread.join()


def test_two_returns_at_once():
    """Of two threads that return the same lease at the same time exactly one is told off."""
    pool = BufferPool(1 << 20)
    for _ in range(200):
        lease, barrier = pool.lease((10,), np.int64), threading.Barrier(2)

        def give_back(lease=lease, barrier=barrier):
            barrier.wait()
            try:
                lease.release()
            except InvalidInput:
                return 1
            return 0

        with ThreadPoolExecutor(2) as threads:
            assert sum(threads.map(lambda act: act(), [give_back, give_back])) == 1
    assert (pool.statistics().leases, pool.statistics().lent) == (0, 0)


def test_many_threads_never_meet_in_one_block():
    """What a thread writes into its lease is what it reads there, however many share the pool."""
    pool = BufferPool(64 * KB)
    barrier = threading.Barrier(8)

    def work(number):
        rng = np.random.default_rng(number)
        barrier.wait()
        for turn in range(150):
            with pool.lease((int(rng.integers(1, 2000)),), np.int64) as array:
                array.fill(number * 1000 + turn)
                assert (array == number * 1000 + turn).all()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    told = pool.statistics()
    assert (told.leases, told.lent, told.leases_total) == (0, 0, 1200)
    assert told.peak <= told.budget
