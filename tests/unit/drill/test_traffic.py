"""What callers note of their calls."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from drill_kit import done, embeddings

from resilient_ai._adapters.drill.judge import Judge
from resilient_ai._adapters.drill.requests import REQUESTS, Request
from resilient_ai._adapters.drill.traffic import Traffic
from resilient_ai.errors import Overloaded
from resilient_ai.testing import FakeClock

ASKED = Request(("a",))
RIGHT = embeddings([[1.0, 0.0]], "gpu")


class Scripted:
    """A service whose every call ends the same way; keeps what it was asked."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.asked = []

    def submit_embed(self, texts, *, timeout=None):
        self.asked.append(texts)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def failing(error):
    future = Future()
    future.set_exception(error)
    return future


def traffic(service, **options):
    judge = Judge(0.9999)
    judge.learn(ASKED, RIGHT)
    values = {"threads": 1, "patience": 0.01, "requests": [ASKED]}
    return Traffic(service, judge, **(values | options))


@pytest.mark.parametrize(
    ("ending", "outcome", "error"),
    [
        (done(RIGHT), "right", ""),
        (done(embeddings([[0.0, 1.0]])), "wrong", ""),
        (failing(Overloaded("full")), "typed_error", "overloaded"),
        (Overloaded("full"), "typed_error", "overloaded"),
        (failing(KeyError("x")), "wrong", "KeyError('x')"),
        (ValueError("x"), "wrong", "ValueError('x')"),
        (done(None), "wrong", None),
    ],
    ids=["right", "wrong values", "typed", "typed at once", "untyped", "untyped at once", "no answer"],
)
def test_every_end_of_a_call_has_its_outcome(ending, outcome, error):
    """Right answers, typed errors, and everything else, which is wrong."""
    found = traffic(Scripted(ending), clock=FakeClock(5.0)).ask(ASKED)
    assert found.outcome == outcome
    assert error is None or found.error == error
    assert (found.begun, found.ended) == (5.0, 5.0)
    assert found.served_by == ({"gpu"} if outcome == "right" else found.served_by)


def test_a_call_that_does_not_end_is_lost_and_withdrawn():
    """After the caller's patience a call counts as lost, and nobody waits for it any more."""
    never = Future()
    assert traffic(Scripted(never)).ask(ASKED).outcome == "lost"
    assert never.cancelled()


def test_callers_ask_until_they_are_told_to_stop():
    """Inside the block calls go on; after it all threads have ended and every call is kept."""
    service = Scripted(done(RIGHT))
    with traffic(service, threads=3) as running:
        while len(running.calls()) < 20:
            pass
    kept = running.calls()
    assert len(kept) == len(service.asked)
    assert running.calls(5) == kept[5:]


def test_the_seed_decides_what_is_asked():
    """The same seed asks for the same in the same order, another seed for something else."""

    def first(seed):
        service = Scripted(Overloaded("full"))
        with traffic(service, seed=seed, requests=REQUESTS[:16]) as running:
            while len(running.calls()) < 10:
                pass
        return service.asked[:10]

    assert first(1) == first(1) != first(2)


def test_requests_are_of_every_kind():
    """There are single texts, batches, calls with a deadline, and rankings, all different."""
    assert len(set(REQUESTS)) == len(REQUESTS)
    assert {len(request.texts) for request in REQUESTS} >= set(range(1, 8)) - {4, 6}
    assert any(request.timeout for request in REQUESTS)
    assert any(request.query for request in REQUESTS)
