"""A model of which a part cannot be had: the right error, and nothing left behind."""

import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from resilient_ai import errors
from resilient_ai._serving import assembly
from resilient_ai._serving.assembly import Assembler

INSTALLED = SimpleNamespace(card=SimpleNamespace(name="tiny"))


class Closable:
    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


def load(*, encoder, manager):
    """What `Assembler` does with the two, each a function that gives it or raises."""
    parts = SimpleNamespace(_encoder=lambda _: encoder(), _manager=lambda *_: manager())
    return Assembler._load(parts, INSTALLED, None)


def failing(error):
    def fail():
        raise error

    return fail


def test_a_tokenizer_that_fails_closes_what_was_made():
    """The tokenizer's error reaches the caller, and the session made beside it is closed by then."""
    made, error = Closable(), errors.ModelCorrupt("tokenizer")
    with pytest.raises(errors.ModelCorrupt) as raised:
        load(encoder=failing(error), manager=lambda: made)
    assert raised.value is error
    assert made.closed.is_set()


def test_where_both_fail_the_first_is_told():
    """A session that fails as well does not take the place of the tokenizer's error."""
    error = errors.ModelCorrupt("tokenizer")
    with pytest.raises(errors.ModelCorrupt) as raised:
        load(encoder=failing(error), manager=failing(errors.ModelCorrupt("graph")))
    assert raised.value is error


class Interrupted(Future):
    """A future that is not waited for to the end the first time."""

    waits = 0

    def result(self, timeout=None):
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt
        return super().result(timeout)


def test_an_interrupted_wait_closes_what_comes_later(monkeypatch):
    """Ctrl-C while the session is being made ends the wait at once; the session is closed when it is there."""
    made, making = Closable(), Interrupted()
    monkeypatch.setattr(assembly, "background", lambda *_: making)
    with pytest.raises(KeyboardInterrupt):
        load(encoder=SimpleNamespace, manager=lambda: made)
    assert not made.closed.is_set()
    making.set_result(made)
    assert made.closed.is_set()
