"""Models load in the background, once at a time, and everybody who waits hears how it went."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext

import pytest

from resilient_ai._serving.loading import BackgroundLoader
from resilient_ai.errors import ModelCorrupt, Overloaded, ServiceClosed

WAIT = 20


def test_one_load_for_all_who_ask():
    """While a load is under way everybody gets its future; names do not wait for each other."""
    go, loads = threading.Event(), []

    @contextmanager
    def load(name):
        loads.append(name)
        go.wait(WAIT)
        yield name.upper()

    loader = BackgroundLoader(load)
    first, again, other = loader.request("a"), loader.request("a"), loader.request("b")
    assert first is again
    go.set()
    assert (first.result(WAIT), other.result(WAIT)) == ("A", "B")
    assert sorted(loads) == ["a", "b"]


@pytest.mark.parametrize("error", [ModelCorrupt("bad"), OSError("disk"), SystemExit(1)])
def test_failures_are_told_and_forgotten(error):
    """A failed load is told to all its waiters, and the next request tries again."""
    outcomes = iter([error, None])

    @contextmanager
    def load(name):
        outcome = next(outcomes)
        if outcome:
            raise outcome
        yield name

    loader = BackgroundLoader(load)
    assert loader.request("a").exception(WAIT) is error
    assert loader.request("a").result(WAIT) == "a"


def test_closing():
    """Closing fails what is under way and refuses what comes later; the late result hurts nobody."""
    go, ended = threading.Event(), threading.Event()

    @contextmanager
    def load(name):
        go.wait(WAIT)
        ended.set()
        yield name

    loader = BackgroundLoader(load)
    future = loader.request("a")
    loader.close()
    loader.close()
    assert isinstance(future.exception(0), ServiceClosed)
    with pytest.raises(ServiceClosed):
        loader.request("a")
    go.set()
    assert ended.wait(WAIT)


def test_no_thread_to_be_had(monkeypatch):
    """Where no thread can be started the caller hears of it, and nobody waits for it later."""
    loader = BackgroundLoader(lambda name: nullcontext(name.upper()))
    with monkeypatch.context() as patched:

        def refuse(_):
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Overloaded, match="thread"):
            loader.request("a")
    assert loader.request("a").result(WAIT) == "A"


def test_what_was_loaded_stays_until_all_were_told():
    """The context of a load ends after the callbacks of all who waited, however long those take."""
    order, ended = [], threading.Event()

    @contextmanager
    def load(name):
        yield name
        order.append("left")
        ended.set()

    go = threading.Event()
    loader = BackgroundLoader(lambda name: go.wait(WAIT) and load(name))
    future = loader.request("a")
    future.add_done_callback(lambda _: order.append("told"))
    go.set()
    assert ended.wait(WAIT)
    assert order == ["told", "left"]
