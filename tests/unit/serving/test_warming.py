"""A backend that is there at once gives way to a faster one, and nobody who asks notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from resilient_ai._serving import warming
from resilient_ai._serving.warming import WarmingBackend
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, Overloaded, ServiceClosed
from resilient_ai.testing import FakeBackend, batch_of

WAIT = 10.0
BATCH = batch_of([1, 2, 3], [4])


class Maker:
    """Makes the second backend when it is let, or fails; ends at once when it is cancelled."""

    def __init__(self, made=None, *, ready=True):
        self.made = made if made is not None else FakeBackend("cpu")
        self.begun, self.go = threading.Event(), threading.Event()
        self.count = 0
        if ready:
            self.go.set()

    def __call__(self, cancellation):
        self.count += 1
        cancellation.watch(self)
        self.begun.set()
        assert self.go.wait(WAIT)
        if isinstance(self.made, Exception):
            raise self.made
        return self.made

    def set_load_cancellation_flag(self, cancelled):
        """What ONNX Runtime's session options are told."""
        if cancelled and not self.go.is_set():
            self.made = DeviceUnavailable("loading was cancelled")
            self.go.set()


def warming_threads():
    return [thread for thread in threading.enumerate() if thread.name == "resilient-ai-warm-up"]


def settle():
    """Let what is being made be there, or have failed."""
    for thread in warming_threads():
        thread.join(WAIT)
        assert not thread.is_alive()


def test_the_second_takes_over():
    """Nothing is made before the first batch; then the second serves, and the first is closed."""
    first, make = FakeBackend("cpu"), Maker()
    backend = WarmingBackend(first, make)
    assert (backend.device, make.count) == ("cpu", 0)
    before = backend.run(BATCH)
    settle()
    after = backend.run(BATCH)
    assert np.array_equal(before.values, after.values)
    assert (len(first.calls), len(make.made.calls), make.count) == (1, 1, 1)
    assert (first.closed, make.made.closed) == (True, False)
    backend.close()
    assert make.made.closed


def test_batches_under_way_end_where_they_began():
    """The first is closed after its last batch, not under it."""
    running, go = threading.Event(), threading.Event()

    def wait(batch):
        if batch is not BATCH:
            running.set()
            assert go.wait(WAIT)
            assert not first.closed

    first, make = FakeBackend("cpu", before=wait), Maker()
    backend = WarmingBackend(first, make)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(backend.run, batch_of([9]))
        assert running.wait(WAIT)
        backend.run(BATCH)
        settle()
        backend.run(BATCH)
        assert (len(make.made.calls), first.closed) == (1, False)
        go.set()
        assert len(slow.result(WAIT).values) == 1
    assert first.closed
    backend.close()


@pytest.mark.parametrize("error", [DeviceFailed("no memory left"), MemoryError("no memory left")])
def test_what_cannot_be_made_is_told_and_harmless(caplog, error):
    """A second backend that cannot be had is tried once and logged, and the first serves on."""
    first, make = FakeBackend("cpu"), Maker(error)
    backend = WarmingBackend(first, make)
    for _ in range(3):
        assert len(backend.run(BATCH).values) == 2
        settle()
    assert (make.count, first.closed) == (1, False)
    assert caplog.text.count("no memory left") == 1
    backend.close()
    assert first.closed


def test_no_thread_to_be_had(monkeypatch, caplog):
    """A system without a thread to give costs the second backend, not the batch."""

    def refuse(*_):
        raise Overloaded("the system gave no thread")

    monkeypatch.setattr(warming, "start_thread", refuse)
    backend = WarmingBackend(FakeBackend("cpu"), Maker())
    assert [len(backend.run(BATCH).values) for _ in range(2)] == [2, 2]
    assert caplog.text.count("no thread") == 1
    backend.close()


def test_a_batch_that_fails_is_its_callers():
    """An error of the first backend comes through, and the second is made all the same."""
    first, make = FakeBackend("cpu"), Maker()
    first.fail_with(DeviceFailed("once"))
    backend = WarmingBackend(first, make)
    with pytest.raises(DeviceFailed, match="once"):
        backend.run(BATCH)
    settle()
    assert len(backend.run(BATCH).values) == 2
    assert len(make.made.calls) == 1
    backend.close()


class TestClose:
    def test_before_anything_ran(self):
        """What was never asked makes nothing, and closing twice is one close."""
        first, make = FakeBackend("cpu"), Maker()
        backend = WarmingBackend(first, make)
        backend.close()
        backend.close()
        assert (first.closed, make.count, warming_threads()) == (True, 0, [])
        with pytest.raises(ServiceClosed):
            backend.run(BATCH)

    def test_while_the_second_is_made(self, caplog):
        """Closing cancels what is being made, leaves no thread behind, and is no news."""
        first, make = FakeBackend("cpu"), Maker(ready=False)
        backend = WarmingBackend(first, make)
        backend.run(BATCH)
        assert make.begun.wait(WAIT)
        backend.close()
        assert (first.closed, warming_threads(), caplog.text) == (True, [], "")

    def test_when_it_comes_too_late(self):
        """A second backend that is ready only after the close is closed by whoever made it."""
        made = FakeBackend("cpu")
        closed = threading.Event()

        def make(_):
            assert closed.wait(WAIT)
            return made

        backend = WarmingBackend(FakeBackend("cpu"), make)
        backend.run(BATCH)
        (thread,) = warming_threads()
        with ThreadPoolExecutor(1) as threads:
            closing = threads.submit(backend.close)
            while not backend._closed:
                thread.join(0.001)
            closed.set()
            closing.result(WAIT)
        assert (made.closed, warming_threads()) == (True, [])

    def test_under_a_batch(self):
        """A batch under way gets its answer; its backend is closed after it."""
        running, go = threading.Event(), threading.Event()

        def wait(_):
            running.set()
            assert go.wait(WAIT)
            assert not first.closed

        first = FakeBackend("cpu", before=wait)
        backend = WarmingBackend(first, Maker())
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(backend.run, BATCH)
            assert running.wait(WAIT)
            backend.close()
            go.set()
            assert len(slow.result(WAIT).values) == 2
        assert (first.closed, warming_threads()) == (True, [])


def test_a_storm_of_batches():
    """Whatever runs while the backends change is answered rightly, by one that is open."""

    def open_one():
        def check(_):
            assert not fake.closed

        fake = FakeBackend("cpu", before=check, after=check)
        return fake

    expected = FakeBackend("cpu").answer(BATCH).values
    for _ in range(20):
        first, make = open_one(), Maker(open_one(), ready=False)
        backend, start = WarmingBackend(first, make), threading.Barrier(5)

        def work(backend=backend, start=start):
            start.wait(WAIT)
            return [np.array_equal(backend.run(BATCH).values, expected) for _ in range(20)]

        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(work) for _ in range(4)]
            start.wait(WAIT)
            assert make.begun.wait(WAIT)
            make.go.set()
            assert all(all(each.result(WAIT)) for each in asked)
        settle()
        backend.run(BATCH)
        assert (first.closed, make.made.closed) == (True, False)
        assert len(first.calls) + len(make.made.calls) == 81
        backend.close()
