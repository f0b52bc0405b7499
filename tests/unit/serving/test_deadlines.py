"""What is not finished in time is ended, by one thread that nothing kills."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from resilient_ai._serving import deadlines as module
from resilient_ai._serving.deadlines import Deadlines
from resilient_ai.errors import Overloaded
from resilient_ai.testing import FakeClock


class Watched:
    def __init__(self):
        self.expired = threading.Event()
        self.times = 0

    def expire(self):
        self.times += 1
        self.expired.set()


@pytest.fixture
def quiet(monkeypatch):
    """Deadlines on a fake clock, without a thread: the test asks for what is due."""
    monkeypatch.setattr(module, "start_thread", lambda work, name: threading.Thread(target=work, name=name))
    clock = FakeClock(0.0)
    return Deadlines(clock), clock


def test_in_order_and_once(quiet):
    """Each is expired once, at its deadline and not before."""
    deadlines, clock = quiet
    watched = [Watched() for _ in range(3)]
    for deadline, one in zip((3.0, 1.0, 2.0), watched, strict=True):
        deadlines.watch(deadline, one)
    assert deadlines.expire_due() == 1.0
    clock.tick(2)
    assert deadlines.expire_due() == 1.0
    assert [one.times for one in watched] == [0, 1, 1]
    clock.tick(10)
    assert deadlines.expire_due() is None
    assert [one.times for one in watched] == [1, 1, 1]


def test_what_is_forgotten_is_let_go(quiet):
    """What nobody else holds is not kept alive, and not expired."""
    deadlines, clock = quiet
    one = Watched()
    happened = one.expired
    deadlines.watch(1.0, one)
    del one
    gc.collect()
    clock.tick(2)
    assert deadlines.expire_due() is None
    assert not happened.is_set()


def test_finished_ones_do_not_pile_up(quiet):
    """A million short calls with long deadlines leave no more than a bounded rest behind."""
    deadlines, clock = quiet
    living = [Watched() for _ in range(100)]
    for one in living:
        deadlines.watch(3600.0, one)
    for _ in range(50_000):
        deadlines.watch(3600.0, Watched())
    assert len(deadlines._heap) <= 5000
    clock.tick(3600)
    deadlines.expire_due()
    assert [one.times for one in living] == [1] * 100


def test_the_thread_expires():
    """The thread ends what is due without being asked, also when an earlier deadline comes later."""
    deadlines, late, early = Deadlines(), Watched(), Watched()
    deadlines.watch(time.monotonic() + 600, late)
    deadlines.watch(time.monotonic() + 0.02, early)
    assert early.expired.wait(10)
    assert not late.expired.is_set()
    deadlines.close()


def test_a_deadline_beyond_what_a_thread_can_wait():
    """A deadline centuries away does not hurt the thread that others rely on."""
    deadlines, never, soon = Deadlines(), Watched(), Watched()
    deadlines.watch(time.monotonic() + 1e300, never)
    time.sleep(0.01)
    deadlines.watch(time.monotonic() + 0.02, soon)
    assert soon.expired.wait(10)
    deadlines.close()


def test_closing_from_what_expires():
    """What is expired may close the watch, on its own thread."""
    deadlines = Deadlines(lambda: 100.0)
    closed = threading.Event()

    class Closing:
        def expire(self):
            deadlines.close()
            closed.set()

    closing = Closing()
    deadlines.watch(1.0, closing)
    assert closed.wait(10)
    deadlines.close()


def test_closed():
    """After closing, twice at that, nothing is watched and no thread starts."""
    deadlines, one = Deadlines(), Watched()
    deadlines.close()
    deadlines.close()
    deadlines.watch(0.0, one)
    assert deadlines.expire_due() is None
    assert one.times == 0


def test_no_thread_to_be_had(monkeypatch):
    """Where no thread can be started the caller hears of it, and the next one is tried again."""
    deadlines, one = Deadlines(), Watched()
    refused = True

    def start(thread, plain=threading.Thread.start):
        if refused:
            raise RuntimeError("can't start new thread")
        plain(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(Overloaded, match="thread"):
        deadlines.watch(0.0, one)
    refused = False
    deadlines.watch(0.0, one)
    assert one.expired.wait(10)
    deadlines.close()
