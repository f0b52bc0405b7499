"""One call on its way: its future, its rows, its one ending."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait

import numpy as np
import pytest

from resilient_ai._serving.jobs import CallFuture, Job, fail_all, internal_error
from resilient_ai.errors import (
    DeadlineExceeded,
    DeviceFailed,
    InvalidInput,
    Overloaded,
    ResilientAIError,
)
from resilient_ai.testing import FakeBackend, FakeClock
from resilient_ai.values import Vectors
from serving_kit import job, lane

LANE = lane(FakeBackend())


def vectors(*numbers, device="cpu", degraded=False):
    return Vectors(np.array(numbers, np.float32)[:, None], device, degraded)


def give(to, rows, answer):
    to.add(np.array(rows), answer.values, answer)


class TestFuture:
    def test_cancel_wakes_those_who_wait(self):
        """A cancelled call ends `wait` and `as_completed`, and its result is `CancelledError`."""
        future = CallFuture()
        future.cancel()
        assert wait([future], timeout=1).done == {future}
        assert list(as_completed([future], timeout=1)) == [future]
        with pytest.raises(CancelledError):
            future.result(0)

    def test_cancel_while_others_wait(self):
        """Who is waiting already is woken, too."""
        future = CallFuture()
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(wait, [future], 10)
            assert future.cancel()
            assert waiting.result().done == {future}

    def test_many_cancel_at_once(self):
        """Any number of threads may cancel at the same time."""
        for _ in range(300):
            future, barrier = CallFuture(), threading.Barrier(3)

            def cancel(future=future, barrier=barrier):
                barrier.wait()
                return future.cancel()

            with ThreadPoolExecutor(3) as threads:
                assert [f.result() for f in [threads.submit(cancel) for _ in range(3)]] == [True] * 3

    def test_too_late(self):
        """A call that has its answer cannot be cancelled any more."""
        future = CallFuture()
        future.set_result(1)
        assert not future.cancel()
        assert future.result() == 1

    def test_a_cancelled_task_cancels_it(self):
        """Cancelling the task that awaits a call cancels the call."""
        future = CallFuture()

        async def work():
            task = asyncio.ensure_future(asyncio.wrap_future(future))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(work())
        assert future.cancelled()


class TestRows:
    def test_rows_in_any_order(self):
        """Rows may come in any order and from several devices; the answer is in the order of the items."""
        clock = FakeClock()
        one = job(["a", "b", "c"], LANE, clock=clock)
        clock.tick(0.5)
        give(one, [2, 0], vectors(30, 10, device="gpu"))
        assert not one.is_over
        give(one, [1], vectors(20, degraded=True))
        rows = one.future.result(0)
        assert rows.values.tolist() == [[10], [20], [30]]
        assert rows.served_by == ("gpu", "cpu", "gpu")
        assert rows.degraded
        assert rows.elapsed_ms == 500

    def test_rows_that_come_too_late(self):
        """Rows for a call that is over are dropped."""
        one = job(["a", "b"], LANE)
        one.future.cancel()
        give(one, [0, 1], vectors(1, 2))
        assert one.future.cancelled()

    def test_rows_from_many_threads(self):
        """Runners may add rows of one call at the same time; none is lost."""
        for _ in range(30):
            one, barrier = job(["x"] * 400, LANE), threading.Barrier(8)

            def add(first, one=one, barrier=barrier):
                barrier.wait()
                for row in range(first, 400, 8):
                    give(one, [row], vectors(row, device=f"gpu{first}"))

            with ThreadPoolExecutor(8) as threads:
                list(threads.map(add, range(8)))
            rows = one.future.result(0)
            assert rows.values[:, 0].tolist() == list(range(400))
            assert rows.served_by == tuple(f"gpu{row % 8}" for row in range(400))

    def test_slices(self):
        """Rows are handed out once each, in order."""
        one = job(list("abcde"), LANE)
        assert one.take(2).items == ["a", "b"]
        assert (one.take(9).items, one.remaining) == (["c", "d", "e"], 0)


class TestEnding:
    def test_the_first_outcome_stands(self):
        """Whatever comes after the first outcome changes nothing."""
        one = job(["a"], LANE)
        one.fail(InvalidInput("first"))
        one.fail(DeviceFailed("second"))
        give(one, [0], vectors(1))
        one.expire()
        with pytest.raises(InvalidInput, match="first"):
            one.future.result(0)

    def test_expiring(self):
        """A call out of time says how long it took and how far it came."""
        clock = FakeClock()
        one = job(["a", "b"], LANE, clock=clock)
        give(one, [0], vectors(1))
        clock.tick(2)
        one.expire()
        with pytest.raises(DeadlineExceeded, match=r"2\.000 s with 1 of 2"):
            one.future.result(0)

    def test_expiring_before_it_is_routed(self):
        """A call whose model is still loading can run out of time as well."""
        one = Job(clock=FakeClock())
        one.expire()
        with pytest.raises(DeadlineExceeded):
            one.future.result(0)

    @pytest.mark.parametrize(
        ("raised", "kind"), [(KeyError("x"), ResilientAIError), (InvalidInput("x"), InvalidInput)]
    )
    def test_an_answer_that_cannot_be_made(self, raised, kind):
        """An error while the answer is made is the call's error, and one of the tree."""

        def finish(rows):
            raise raised

        one = Job()
        one.route(LANE, ["a"], finish)
        give(one, [0], vectors(1))
        with pytest.raises(kind) as caught:
            one.future.result(0)
        assert raised in (caught.value, caught.value.__cause__)

    @pytest.mark.parametrize("raised", [ValueError, SystemExit])
    def test_a_callback_that_raises(self, raised):
        """What the callback of one caller's future raises stops nobody else's ending."""
        jobs = [job(["a"], LANE) for _ in range(3)]

        def callback(_):
            raise raised

        jobs[0].future.add_done_callback(callback)
        thread = threading.Thread(target=fail_all, args=(jobs, DeviceFailed("gone")))
        thread.start()
        thread.join()
        assert all(one.future.done() for one in jobs)

    def test_each_gets_an_error_of_its_own(self):
        """Callers that fail together get equal errors, but not the same object; the cause is kept."""
        cause = RuntimeError("CUDA error 700")
        error = Overloaded("full", 7.5)
        error.__cause__ = cause
        jobs = [job(["a"], LANE) for _ in range(3)]
        fail_all(jobs, error)
        errors = [one.future.exception(0) for one in jobs]
        assert len(set(map(id, errors))) == 3
        assert {(type(e), str(e), e.retry_after, e.__cause__) for e in errors} == {
            (Overloaded, "full", 7.5, cause)
        }

    def test_foreign_errors(self):
        """What should not have happened still ends in an error of the tree, with its cause."""
        one, cause = job(["a"], LANE), OSError("disk")
        fail_all([one], cause)
        error = one.future.exception(0)
        assert type(error) is ResilientAIError
        assert error.__cause__ is cause
        assert internal_error(cause).__cause__ is cause

    def test_errors_that_cannot_be_copied(self):
        """An error whose class cannot be made again from its message still ends every call."""

        class Picky(DeviceFailed):
            def __init__(self, *, code_number):
                super().__init__("picky")
                self.code_number = code_number

        jobs = [job(["a"], LANE) for _ in range(2)]
        fail_all(jobs, Picky(code_number=3))
        assert all(isinstance(one.future.exception(0), ResilientAIError) for one in jobs)


class TestProgress:
    def test_it_is_told(self):
        """Progress tells rows done and rows in all, after each batch."""
        told = []
        one = job(["a", "b", "c"], LANE, progress=lambda done, all_: told.append((done, all_)))
        give(one, [0, 1], vectors(1, 2))
        give(one, [2], vectors(3))
        assert told == [(2, 3), (3, 3)]

    @pytest.mark.parametrize("raised", [ValueError("x"), SystemExit()])
    def test_a_callback_that_raises(self, raised, caplog):
        """A progress callback that raises is not called again, is logged, and costs no rows."""
        calls = []

        def progress(*told):
            calls.append(told)
            raise raised

        one = job(["a", "b"], LANE, progress=progress)
        give(one, [0], vectors(1))
        give(one, [1], vectors(2))
        assert one.future.result(0).values.tolist() == [[1], [2]]
        assert len(calls) == 1
        assert "progress callback" in caplog.text
