"""Calls share batches and nothing else: not their errors, not their deadlines, not their fate."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._serving.dispatcher import Dispatcher
from resilient_ai._serving.hosting import BatchLimits
from resilient_ai._serving.outlook import Outlook
from resilient_ai._telemetry.events import EventBus
from resilient_ai.errors import (
    DeviceFailed,
    InvalidInput,
    Overloaded,
    ResilientAIError,
    ServiceClosed,
)
from resilient_ai.testing import FakeBackend, FakeClock
from resilient_ai.values import Vectors
from serving_kit import LIMITS, Switching, WordEncoder, job, lane, right_vectors

WAIT = 20


class Gate:
    """Holds a backend's batches back: each one announces itself and waits until it may pass."""

    def __init__(self):
        self.arrived = threading.Semaphore(0)
        self.may_pass = threading.Semaphore(0)
        self.seen = []

    def __call__(self, batch):
        self.seen.append(batch.rows)
        self.arrived.release()
        assert self.may_pass.acquire(timeout=WAIT)

    def wait(self):
        assert self.arrived.acquire(timeout=WAIT)

    def open(self, times=10_000):
        self.may_pass.release(times)


@pytest.fixture
def start():
    """Makes dispatchers that are closed when the test ends."""
    made = []

    def build(**options):
        made.append(Dispatcher(BufferPool(1 << 24), **{"queue_size": 1000, **options}))
        return made[-1]

    yield build
    for dispatcher in made:
        dispatcher.close()
        dispatcher.join(WAIT)
        assert dispatcher._pool.statistics().leases == 0


@pytest.fixture
def gate():
    held = Gate()
    yield held
    held.open()


def submitted(dispatcher, items, on, **options):
    one = job(items, on, **options)
    dispatcher.submit(one)
    return one.future


def vectors_of(future):
    return future.result(WAIT).values


class TestMerging:
    def test_callers_share_batches(self, start, gate):
        """What arrives while the device is busy goes into few batches, and each caller gets its own rows."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        first = submitted(dispatcher, ["first"], on)
        gate.wait()
        texts = [f"text number {n}" for n in range(64)]
        with ThreadPoolExecutor(64) as threads:
            futures = list(threads.map(lambda text: submitted(dispatcher, [text], on), texts))
        gate.open()
        got = np.concatenate([vectors_of(future) for future in futures])
        np.testing.assert_array_equal(got, right_vectors(texts))
        np.testing.assert_array_equal(vectors_of(first), right_vectors(["first"]))
        assert gate.seen == [1, 32, 32]

    def test_an_idle_device_is_not_kept_waiting(self, start):
        """A lone call runs alone, at once, without waiting for company."""
        backend = FakeBackend()
        dispatcher = start()
        for n in range(3):
            vectors_of(submitted(dispatcher, [f"{n}"], lane(backend)))
        assert [batch.rows for batch in backend.calls] == [1, 1, 1]

    def test_large_calls(self, start):
        """A call of many waves comes back whole and in order, within the limits of its lane."""
        backend = FakeBackend()
        texts = [f"{'word ' * (n % 23)} {n}" for n in range(1500)]
        told = []
        future = submitted(start(), texts, lane(backend), progress=lambda *now: told.append(now))
        rows = future.result(WAIT)
        np.testing.assert_array_equal(rows.values, right_vectors(texts))
        assert rows.token_counts.tolist() == [3 + n % 23 for n in range(1500)]
        assert not rows.truncated.any()
        assert told[-1] == (1500, 1500)
        assert [now for now, _ in told] == sorted({now for now, _ in told})
        for batch in backend.calls:
            assert batch.rows <= LIMITS.max_rows
            assert batch.input_ids.size <= LIMITS.token_budget

    def test_cut_texts_are_marked(self, start):
        """Texts that were cut are marked in the answer of the caller whose they are."""
        dispatcher, on = start(), lane(FakeBackend(), encoder=WordEncoder(most=4))
        rows = submitted(dispatcher, ["a b", "a b c d e", ""], on).result(WAIT)
        assert rows.truncated.tolist() == [False, True, False]
        assert rows.token_counts.tolist() == [4, 4, 2]

    def test_lanes_do_not_mix(self, start, gate):
        """Calls on different lanes never share a batch."""
        backend = FakeBackend(before=gate)
        dispatcher, embed, pool = start(), lane(backend), lane(backend, task="pool")
        submitted(dispatcher, ["first"], embed)
        gate.wait()
        futures = [submitted(dispatcher, [f"{n}"], (embed, pool)[n % 2]) for n in range(10)]
        gate.open()
        for n, future in enumerate(futures):
            expected = right_vectors([f"{n}"], task=("embed", "pool")[n % 2])
            np.testing.assert_array_equal(vectors_of(future), expected)
        assert {batch.task for batch in backend.calls} == {"embed", "pool"}
        assert len(backend.calls) == 3

    def test_several_runners(self, start):
        """With several runners nothing is lost or mixed up, however large the calls."""
        dispatcher, on = start(runners=4), lane(FakeBackend())
        calls = [[f"call {c} row {n}" for n in range(700)] for c in range(8)]
        futures = [submitted(dispatcher, texts, on) for texts in calls]
        for texts, future in zip(calls, futures, strict=True):
            np.testing.assert_array_equal(vectors_of(future), right_vectors(texts))
        assert dispatcher.snapshot().in_flight_calls == 0

    def test_the_query_of_late_interaction(self, start):
        """A text that belongs to every row of a lane reaches the backend as token ids."""
        backend = FakeBackend()
        query = WordEncoder().encode(["the query"]).ids
        submitted(start(), ["a"], lane(backend, task="maxsim", shared=lambda: query)).result(WAIT)
        assert backend.calls[0].shared_ids.tolist() == query.tolist()


class TestProvenance:
    def test_each_row_names_its_device(self, start):
        """When devices alternate, every row says who served it, and the call whether it was degraded."""
        backend = Switching(FakeBackend("gpu"), FakeBackend("cpu"), degraded={"cpu"})
        on = lane(backend, limits=BatchLimits(token_budget=10_000, max_rows=2))
        rows = submitted(start(), ["a b c", "a b", "a", ""], on).result(WAIT)
        assert rows.served_by == ("gpu", "gpu", "cpu", "cpu")
        assert rows.degraded
        again = submitted(start(), ["a", "b"], on).result(WAIT)
        assert (again.served_by, again.degraded) == (("gpu", "gpu"), False)

    def test_elapsed(self, start, gate):
        """The time told is that of the whole call, waiting included."""
        dispatcher, on = start(), lane(FakeBackend(before=gate))
        future = submitted(dispatcher, ["a"], on)
        gate.wait()
        began = time.monotonic()
        while time.monotonic() - began < 0.05:
            pass
        gate.open()
        assert 50 <= future.result(WAIT).elapsed_ms < 1000 * WAIT

    def test_what_a_batch_knows_of_its_callers(self, start, gate):
        """A batch carries the first and the last deadline of its callers, and the urgency of the wave."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        submitted(dispatcher, ["first"], on)
        gate.wait()
        futures = [submitted(dispatcher, ["x"], on, deadline=deadline) for deadline in (7e9, 5e9)]
        futures.append(submitted(dispatcher, ["y"], on, priority="bulk"))
        gate.open()
        for future in futures:
            future.result(WAIT)
        first, both, bulk = backend.calls
        assert (first.due, first.deadline, first.priority) == (None, None, "interactive")
        assert (both.due, both.deadline) == (5e9, 7e9)
        assert (bulk.due, bulk.deadline, bulk.priority) == (None, None, "bulk")


class TestErrors:
    def test_a_bad_text_is_its_callers(self, start, gate):
        """One caller's bad text is that caller's error; those it was merged with get their answers."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        submitted(dispatcher, ["first"], on)
        gate.wait()
        good = [submitted(dispatcher, [f"good {n}"], on) for n in range(5)]
        bad = submitted(dispatcher, ["fine", "\ud800"], on)
        more = [submitted(dispatcher, [f"more {n}"], on) for n in range(5)]
        gate.open()
        with pytest.raises(InvalidInput, match="surrogate"):
            bad.result(WAIT)
        got = np.concatenate([vectors_of(future) for future in good + more])
        texts = [f"good {n}" for n in range(5)] + [f"more {n}" for n in range(5)]
        np.testing.assert_array_equal(got, right_vectors(texts))

    @pytest.mark.parametrize(
        "raised", [DeviceFailed("CUDA error 700"), RuntimeError("odd"), SystemExit(3), MemoryError()]
    )
    def test_only_the_batch_that_failed(self, start, gate, raised):
        """A failed batch fails its own callers, each with an error of its own; the rest of the wave goes on."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        submitted(dispatcher, ["first"], on)
        gate.wait()
        backend.fail_with(None, raised)
        long = [submitted(dispatcher, ["w " * 20 + str(n)], on) for n in range(20)]  # 23 tokens: 22 a batch
        short = [submitted(dispatcher, [str(n)], on) for n in range(20)]
        gate.open()
        served = [future for future in long + short if future.exception(WAIT) is None]
        errors = [error for future in long + short if (error := future.exception(WAIT)) is not None]
        assert errors
        assert served
        assert len(set(map(id, errors))) == len(errors)
        assert all(isinstance(error, ResilientAIError) for error in errors)
        if isinstance(raised, DeviceFailed):
            assert {str(error) for error in errors} == {"CUDA error 700"}
        else:
            assert {error.__cause__ for error in errors} == {raised}
        vectors_of(submitted(dispatcher, ["after"], on))
        assert dispatcher.is_live

    @pytest.mark.parametrize(
        "answer",
        [
            Vectors(np.zeros((1, 16), np.float32), "cpu"),
            Vectors(np.zeros((99, 16), np.float32), "cpu"),
            Vectors(np.zeros(3, np.float32), "cpu"),
        ],
    )
    def test_answers_of_the_wrong_shape(self, start, answer):
        """A backend that gives the wrong number of rows fails its callers, and nobody hangs."""
        backend = FakeBackend()
        backend.fail_with(answer)
        dispatcher, on = start(), lane(backend)
        with pytest.raises(ResilientAIError):
            submitted(dispatcher, ["a", "b", "c"], on).result(WAIT)
        vectors_of(submitted(dispatcher, ["a"], on))

    @pytest.mark.parametrize("raised", [ValueError, SystemExit, GeneratorExit])
    def test_an_encoder_that_breaks(self, start, raised):
        """Whatever an encoder raises ends its calls and not the runner."""

        class Broken(WordEncoder):
            def encode(self, texts):
                raise raised

        dispatcher = start()
        with pytest.raises(ResilientAIError):
            submitted(dispatcher, ["a"], lane(FakeBackend(), encoder=Broken())).result(WAIT)
        vectors_of(submitted(dispatcher, ["a"], lane(FakeBackend())))

    @pytest.mark.parametrize("raised", [ValueError, SystemExit])
    def test_callbacks_that_raise(self, start, gate, raised):
        """What callers' own callbacks raise reaches neither the runner nor anybody else."""

        def callback(*_):
            raise raised

        dispatcher, on = start(), lane(FakeBackend(before=gate))
        submitted(dispatcher, ["first"], on)
        gate.wait()
        futures = [submitted(dispatcher, ["a"], on, progress=callback) for _ in range(2)]
        futures += [submitted(dispatcher, ["a"], on) for _ in range(2)]
        futures[2].add_done_callback(callback)
        gate.open()
        for future in futures:
            vectors_of(future)
        vectors_of(submitted(dispatcher, ["a"], on))


class TestCancelling:
    def test_while_queued(self, start, gate):
        """Rows of a call that was cancelled while it waited are never computed."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        submitted(dispatcher, ["first"], on)
        gate.wait()
        gone, stays = submitted(dispatcher, ["gone"] * 5, on), submitted(dispatcher, ["stays"], on)
        assert gone.cancel()
        gate.open()
        np.testing.assert_array_equal(vectors_of(stays), right_vectors(["stays"]))
        assert gate.seen == [1, 1]
        with pytest.raises(CancelledError):
            gone.result(0)

    def test_while_running(self, start, gate):
        """A call that is cancelled while its batch runs drops out; its neighbours get their answers."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        submitted(dispatcher, ["first"], on)
        gate.wait()
        gone, stays = submitted(dispatcher, ["gone"], on), submitted(dispatcher, ["stays"], on)
        gate.open(1)
        gate.wait()
        assert gone.cancel()
        gate.open()
        np.testing.assert_array_equal(vectors_of(stays), right_vectors(["stays"]))
        assert gone.cancelled()

    def test_between_batches(self, start, gate):
        """The batches of a call that was cancelled meanwhile are not run."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        future = submitted(dispatcher, [f"{n}" for n in range(320)], on)
        gate.wait()
        future.cancel()
        gate.open()
        vectors_of(submitted(dispatcher, ["after"], on))
        assert gate.seen == [32, 1]


class TestBounds:
    def test_overloaded_at_the_bound(self, start, gate):
        """Beyond the bound callers are refused at once, and told when to come back."""
        dispatcher, on = start(queue_size=3), lane(FakeBackend(before=gate))
        submitted(dispatcher, ["first"], on)
        gate.wait()
        waiting = [submitted(dispatcher, ["x"] * 10, on) for _ in range(3)]
        with pytest.raises(Overloaded) as caught:
            submitted(dispatcher, ["one more"], on)
        assert caught.value.retry_after > 0
        told = dispatcher.snapshot()
        assert (told.calls, told.rows, told.capacity, told.rejected, told.in_flight_calls) == (3, 30, 3, 1, 1)
        gate.open()
        for future in waiting:
            vectors_of(future)
        vectors_of(submitted(dispatcher, ["one more"], on))

    def test_calls_that_are_over_take_no_room(self, start, gate):
        """Calls that nobody waits for do not keep others out."""
        dispatcher, on = start(queue_size=3), lane(FakeBackend(before=gate))
        submitted(dispatcher, ["first"], on)
        gate.wait()
        for future in [submitted(dispatcher, ["x"], on) for _ in range(3)]:
            future.cancel()
        late = submitted(dispatcher, ["y"], on)
        gate.open()
        vectors_of(late)

    def test_retry_after_is_learned(self, start, gate):
        """The wait that is told grows with the calls that go first and the time they take."""
        clock = FakeClock()
        gate.open(1)
        backend = FakeBackend(before=gate, after=lambda batch: clock.tick(float(batch.rows)))
        dispatcher, on = start(queue_size=5, clock=clock), lane(backend)
        vectors_of(submitted(dispatcher, ["a"], on))  # one row took one second by this clock
        gate.wait()
        submitted(dispatcher, ["b"], on)
        gate.wait()
        for _ in range(5):
            submitted(dispatcher, ["c"], on)
        with pytest.raises(Overloaded) as caught:
            submitted(dispatcher, ["d"], on)
        assert 6 <= caught.value.retry_after <= 16

    def test_interactive_work_takes_the_place_of_bulk(self, start, gate):
        """In a full queue the latest bulk call goes for an interactive one, and both are told."""
        events, told = EventBus(), []
        events.subscribe(told.append)
        dispatcher, on = start(queue_size=2, events=events), lane(FakeBackend(before=gate))
        submitted(dispatcher, ["first"], on)
        gate.wait()
        old, late = (submitted(dispatcher, ["x"], on, priority="bulk") for _ in range(2))
        urgent = submitted(dispatcher, ["y"], on)
        with pytest.raises(Overloaded, match="gave way"):
            late.result(WAIT)
        with pytest.raises(Overloaded):
            submitted(dispatcher, ["z"], on, priority="bulk")
        assert [(event.name, event.priority) for event in told] == [("CallShed", "bulk")] * 2
        gate.open()
        vectors_of(urgent)
        vectors_of(old)

    def test_a_call_that_would_be_late_is_refused_at_once(self, start, gate):
        """Where what waits already takes longer than a call has, it is not queued."""
        clock = FakeClock()
        gate.open(1)
        backend = FakeBackend(before=gate, after=lambda batch: clock.tick(float(batch.rows)))
        dispatcher, on = start(queue_size=50, clock=clock), lane(backend)
        vectors_of(submitted(dispatcher, ["a"], on))  # one row took one second by this clock
        gate.wait()
        for _ in range(10):
            submitted(dispatcher, ["b"], on)
        with pytest.raises(Overloaded, match="deadline") as caught:
            submitted(dispatcher, ["c"], on, deadline=clock() + 2)
        assert caught.value.retry_after > 5
        assert not submitted(dispatcher, ["c"], on, deadline=clock() + 100).done()

    @pytest.mark.parametrize(("runners", "refused"), [(1, True), (3, False)])
    def test_equal_devices_share_what_waits(self, start, gate, runners, refused):
        """Work ahead takes a share of its time on several cards, but on no more than there are runners."""
        clock = FakeClock()
        gate.open(1)
        backend = FakeBackend("gpu", before=gate, after=lambda batch: clock.tick(float(batch.rows)))
        dispatcher = start(queue_size=50, clock=clock, runners=runners)
        on = replace(lane(backend), outlook=lambda: Outlook("gpu", width=4))
        vectors_of(submitted(dispatcher, ["a"], on))  # one row took one second by this clock
        for _ in range(11):
            submitted(dispatcher, ["b"], on)
        if refused:
            with pytest.raises(Overloaded, match="deadline"):
                submitted(dispatcher, ["c"], on, deadline=clock() + 8)
        else:
            submitted(dispatcher, ["c"], on, deadline=clock() + 8)

    def test_no_thread_to_be_had(self, start, monkeypatch):
        """Where no runner can be started the caller hears of it at once, and the next one is served."""
        dispatcher, on = start(), lane(FakeBackend())
        with monkeypatch.context() as patched:

            def refuse(_):
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(Overloaded, match="thread"):
                submitted(dispatcher, ["a"], on)
        vectors_of(submitted(dispatcher, ["a"], on))
        assert dispatcher.snapshot().calls == 0


class TestPriorities:
    def test_interactive_passes_bulk_between_batches(self, start, gate):
        """A small interactive call waits for one batch of a bulk call, not for all of it."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        bulk = submitted(dispatcher, [f"bulk {n}" for n in range(200)], on, priority="bulk")
        gate.wait()
        quick = submitted(dispatcher, ["quick"], on)
        gate.open(2)
        np.testing.assert_array_equal(vectors_of(quick), right_vectors(["quick"]))
        assert not bulk.done()
        assert gate.seen[:2] == [32, 1]
        gate.open()
        np.testing.assert_array_equal(vectors_of(bulk), right_vectors([f"bulk {n}" for n in range(200)]))

    def test_small_calls_pass_large_ones(self, start, gate):
        """The same holds between interactive calls of one batch and of many."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        large = submitted(dispatcher, [f"{n}" for n in range(100)], on)
        gate.wait()
        quick = submitted(dispatcher, ["quick"], on)
        gate.open(2)
        vectors_of(quick)
        assert not large.done()

    def test_a_million_rows_do_not_hold_up_the_next_call(self, start, gate):
        """Bulk calls take turns, wave by wave."""
        backend = FakeBackend(before=gate)
        dispatcher, on = start(), lane(backend)
        huge = submitted(dispatcher, ["x"] * 20_000, on, priority="bulk")
        gate.wait()
        small = submitted(dispatcher, ["y"] * 10, on, priority="bulk")
        gate.open(2 * 8 + 1)  # the wave under way, the one that is queued already, and its own
        vectors_of(small)
        huge.cancel()


class TestClosing:
    def test_waiting_calls_end(self, start, gate):
        """Closing ends what waits, lets the batch under way finish, and refuses what comes later."""
        dispatcher, on = start(), lane(FakeBackend(before=gate))
        running = submitted(dispatcher, ["running"], on)
        gate.wait()
        waiting = [submitted(dispatcher, ["x"], on) for _ in range(3)]
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(dispatcher.close, WAIT)
            for future in waiting:
                assert isinstance(future.exception(WAIT), ServiceClosed)
            gate.open()
            closing.result(WAIT)
        np.testing.assert_array_equal(vectors_of(running), right_vectors(["running"]))
        assert not dispatcher.is_live
        with pytest.raises(ServiceClosed):
            submitted(dispatcher, ["late"], on)

    @pytest.mark.parametrize("runners", [1, 3])
    def test_a_stuck_backend(self, start, gate, runners):
        """Closing does not wait for a backend that never answers; its callers are told, all of them."""
        dispatcher, on = start(runners=runners), lane(FakeBackend(before=gate))
        stuck = submitted(dispatcher, ["stuck"], on)
        gate.wait()
        began = time.monotonic()
        dispatcher.close(0.05)
        assert time.monotonic() - began < 5
        assert isinstance(stuck.exception(0), ServiceClosed)
        gate.open()

    def test_a_batch_that_nobody_waits_for(self, start, gate):
        """Closing leaves a batch to itself whose callers have left, however long it takes."""
        dispatcher, on = start(), lane(FakeBackend(before=gate))
        left = submitted(dispatcher, ["left"], on)
        gate.wait()
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(dispatcher.close, 10 * WAIT)
            left.cancel()
            closing.result(WAIT)
        gate.open()

    def test_a_call_with_one_wave_done_and_one_stuck(self, start):
        """A call of which one runner has done a wave and another is stuck in the next ends all the same."""
        waves, stuck, release = iter(range(100)), threading.Event(), threading.Event()

        def before(batch):
            if next(waves) == 0:
                stuck.set()
                release.wait(WAIT)

        limits = BatchLimits(token_budget=100_000, max_rows=256)
        done = threading.Event()
        dispatcher = start(runners=2)
        future = submitted(
            dispatcher,
            ["x"] * 512,
            lane(FakeBackend(before=before), limits=limits),
            progress=lambda *_: done.set(),
        )
        dispatcher.submit(job(["y"], lane(FakeBackend())))  # wakes the second runner
        assert stuck.wait(WAIT)
        assert done.wait(WAIT)
        dispatcher.close(0.05)
        assert isinstance(future.exception(WAIT), ServiceClosed)
        release.set()

    def test_closing_from_a_callback(self, start):
        """A caller's callback may close the dispatcher on the runner's own thread."""
        dispatcher = start()
        closed = threading.Event()

        def callback(_):
            dispatcher.close()
            closed.set()

        one = job(["a"], lane(FakeBackend()))
        one.future.add_done_callback(callback)
        dispatcher.submit(one)
        assert closed.wait(WAIT)

    def test_many_close_at_once(self, start, gate):
        """Closing is safe from any number of threads, with calls in flight."""
        dispatcher, on = start(), lane(FakeBackend())
        futures = [submitted(dispatcher, ["x"] * 100, on) for _ in range(20)]
        with ThreadPoolExecutor(4) as threads:
            for closing in [threads.submit(dispatcher.close) for _ in range(4)]:
                closing.result(WAIT)
        for future in futures:
            assert future.done()
            assert isinstance(future.exception(0), ServiceClosed | None)
