"""Sixteen threads that do anything at any time: the books balance at the end."""

import random
import sys
import threading
from itertools import pairwise

import pytest

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, FailureRate, State

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

THREADS, STEPS = 16, 4_000
BY_HAND = ("force_open", "disable", "enable", "metrics_only", "reset")
LEGAL = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}


class TickingClock:
    """Each reading is a little later than the one before, and now and then a jump is made."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-4
        return self.now


@pytest.fixture
def nervous():
    """Threads change places about every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Worker(threading.Thread):
    def __init__(self, breaker, seed, shared, hands):
        super().__init__()
        self.breaker, self.random, self.shared, self.hands = breaker, random.Random(seed), shared, hands
        self.issued = self.rejected = 0
        self.error = None

    def run(self):
        try:
            for _ in range(STEPS):
                self.step()
        except BaseException as error:
            self.error = error

    def step(self):
        dice = self.random.random()
        if dice < 0.80:
            self.call()
        elif dice < 0.90 and self.shared:
            self.settle(
                self.shared[self.random.randrange(len(self.shared))]
            )  # somebody else's, late or twice
        elif dice < 0.92:
            snapshot = self.breaker.snapshot()
            assert snapshot.in_flight >= 0
            assert snapshot.retry_after is None or snapshot.retry_after >= 0
        elif dice < 0.93 and self.hands:
            getattr(self.breaker, self.random.choice(BY_HAND))()
        elif dice < 0.94:
            self.breaker.open_for(self.random.random() / 100)

    def call(self):
        answer = self.breaker.try_acquire()
        if not answer:
            self.rejected += 1
            assert answer.retry_after is None or answer.retry_after >= 0
            return
        self.issued += 1
        if self.random.random() < 0.1:
            self.shared.append(answer)
        else:
            self.settle(answer)

    def settle(self, permit):
        outcome = self.random.choice(("success", "success", "failure", "ignore", "cancel", "give_back"))
        getattr(permit, outcome)()
        if self.random.random() < 0.1:
            permit.success()


@pytest.mark.parametrize("hands", [False, True], ids=["alone", "by hand"])
@pytest.mark.parametrize(
    "rule", [None, FailureRate(seconds=0.5, min_calls=5, rate=0.4)], ids=["in a row", "rate"]
)
def test_the_books_balance_after_anything(nervous, hands, rule):
    """Every permit is counted once, nothing is left over, and every arrow is legal and heard in order."""
    policy = BreakerPolicy(
        error_threshold=3, recovery_time=0.01, backoff_multiplier=2, max_recovery_time=0.05, jitter=0.5, seed=1,
        half_open_permits=2, successes_to_close=2, probe_lease=0.02, trip_rule=rule,
    )  # fmt: skip
    breaker, shared, heard = CircuitBreaker(policy, clock=TickingClock()), [], []
    breaker.subscribe(heard.append)
    crowd = [Worker(breaker, seed, shared, hands) for seed in range(THREADS)]
    for worker in crowd:
        worker.start()
    for worker in crowd:
        worker.join()
    assert [worker.error for worker in crowd if worker.error] == []
    for permit in shared:
        permit.cancel()

    s = breaker.snapshot()
    issued = sum(worker.issued for worker in crowd)
    results = s.successes + s.failures + s.ignored + s.cancelled + s.stale_results
    assert s.in_flight == 0
    assert s.rejected == sum(worker.rejected for worker in crowd)
    assert results == issued if not hands else 0 < results <= issued  # disabled counts nothing
    assert [event.generation for event in heard] == list(range(1, s.generation + 1))
    assert all(a.after is b.before for a, b in pairwise(heard))
    arrows = {(event.before.value, event.after.value) for event in heard}
    # In the run without hands `open_for` is the only one: from half-open or closed to open.
    assert hands or arrows <= LEGAL
    assert arrows >= {("closed", "open"), ("open", "half_open"), ("half_open", "open")}
    assert s.listener_errors == 0
    assert len(breaker._probes) <= 2
    assert not breaker._returned
    assert State.HALF_OPEN in {event.after for event in heard}
