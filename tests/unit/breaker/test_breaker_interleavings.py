"""Every order in which two or three threads can go through the breaker's sections.

The invariants stand in `breaker_explorer.Run.check` and `check_end`. The tests at the end
break the breaker on purpose and see the explorer find it.
"""

import pytest
from breaker_explorer import Run, Violation, explore, pause

from resilient_ai._resilience.breaker import CircuitBreaker, State
from resilient_ai._resilience.listeners import Listeners
from resilient_ai._resilience.permits import Outcome

OUTCOMES = ["success", "failure", "ignore", "cancel"]


def calls(*outcomes, **setup):
    """A scenario of threads that make one call each."""

    def scenario():
        run = Run(**setup)
        return run, [lambda o=o: run.call(o) for o in outcomes]

    return scenario


@pytest.mark.parametrize("second", OUTCOMES)
@pytest.mark.parametrize("first", OUTCOMES)
def test_two_calls_at_expiry(first, second):
    """Two threads arrive as the opening ends; one permit."""
    assert explore(calls(first, second)) > 1


@pytest.mark.slow
def test_three_whole_calls_at_expiry():
    """Three threads ask and settle, one of them after a lease has passed."""

    def scenario():
        run = Run(backoff_multiplier=2.0)

        def late():
            pause()
            run.clock.tick(5)
            run.call("give_back")

        return run, [lambda: run.call("success"), lambda: run.call("failure"), late]

    assert explore(scenario) > 1000


@pytest.mark.parametrize("permits", [1, 2])
def test_three_threads_at_expiry(permits):
    """Three threads ask at the same moment, and no more than the permitted number is let in."""

    def scenario():
        run = Run(half_open_permits=permits)
        got = []
        run_end = run.check_end

        def check_end():
            run.require(sum(p is not None for p in got) == permits, "not exactly the permitted number")
            for permit in got:
                run.settle(permit, "cancel")
            run_end()

        run.check_end = check_end
        return run, [lambda: got.append(run.acquire()) for _ in range(3)]

    assert explore(scenario) > 1


@pytest.mark.slow
@pytest.mark.parametrize("outcomes", [("success", "success", "failure"), ("success", "failure", "cancel")])
def test_three_probes_settled_at_once(outcomes):
    """Three probes with three permits, two successes to close: whoever comes first decides."""

    def scenario():
        run = Run(half_open_permits=3, successes_to_close=2)
        permits = [run.acquire() for _ in outcomes]
        return run, [lambda p=p, o=o: run.settle(p, o) for p, o in zip(permits, outcomes, strict=True)]

    assert explore(scenario) > 1


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_settling_races_the_end_of_the_lease(outcome):
    """A probe is settled while another thread finds its lease over."""

    def scenario():
        run = Run()
        probe = run.acquire()

        def late():
            pause()
            run.clock.tick(5)
            run.call("success")
            pause()
            run.clock.tick(10)
            run.call("success")

        return run, [lambda: run.settle(probe, outcome), late]

    assert explore(scenario) > 1


@pytest.mark.parametrize("hand", ["reset", "force_open", "disable", "metrics_only", "enable", "open_for"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_settling_races_a_hand(hand, outcome):
    """A probe is settled, and a call made, while somebody moves the breaker."""

    def scenario():
        run = Run()
        probe = run.acquire()
        move = getattr(run.breaker, hand)

        def settle_and_call():
            run.settle(probe, outcome)
            run.call(outcome)

        return run, [settle_and_call, (lambda: move(3)) if hand == "open_for" else move]

    assert explore(scenario) > 1


@pytest.mark.parametrize("second", [*OUTCOMES, "give_back"])
@pytest.mark.parametrize("first", OUTCOMES)
def test_two_threads_settle_one_permit(first, second):
    """It is counted once, whoever wins, while a third thread asks for a permit."""

    def scenario():
        run = Run()
        probe = run.acquire()

        def settle(outcome):
            pause()  # giving back takes no lock, so it would begin with none
            run.settle(probe, outcome)

        return run, [lambda: settle(first), lambda: settle(second), lambda: run.call("cancel")]

    assert explore(scenario) > 10


@pytest.mark.parametrize("outcomes", [("failure", "failure"), ("failure", "success"), ("failure", "ignore")])
def test_calls_in_a_closed_breaker_with_a_threshold_of_two(outcomes):
    """Failures from two threads add up, and the one that opens is counted once."""
    scenario = calls(*outcomes, start="closed", error_threshold=2)
    assert explore(scenario) > 1


@pytest.mark.slow
def test_three_threads_fail_in_a_closed_breaker():
    """Three failures against a threshold of two: one opens, the late one is stale."""

    def scenario():
        run = Run(start="closed", error_threshold=2)
        permits = [run.acquire() for _ in range(3)]
        return run, [lambda p=p: run.settle(p, "failure") for p in permits]

    assert explore(scenario) > 1


def test_two_hands_and_a_listener_that_moves_the_breaker_too():
    """Delivery stays in order and complete whoever holds the turn."""

    def scenario():
        run = Run(start="closed")
        run.breaker.subscribe(lambda e: run.breaker.reset() if e.after is State.FORCED_OPEN else None)
        return run, [run.breaker.force_open, run.breaker.disable]

    assert explore(scenario) > 1


# The explorer can fail ------------------------------------------------------------------------


class ChecksThenActs(CircuitBreaker):
    """Asks "is a slot free?" in one section and takes it in another."""

    def try_acquire(self):
        if self.state is State.CLOSED:
            return super().try_acquire()
        with self._lock:
            taken = len(self._probes)
        with self._lock:
            self._probes, books = dict(list(self._probes.items())[:taken]), self._probes
            answer = self._admit_probe_or_reject()
            self._probes = {**books, **self._probes}
        self._listeners.deliver()
        return answer


class SettlesTwice(CircuitBreaker):
    """Looks whether a permit is settled before it takes the lock."""

    def _settle(self, permit, outcome, cause=""):
        if permit._settled:
            return
        with self._lock:
            self._probes.setdefault(permit._probe, 1e9)
            self._conclude(permit, outcome, cause)
        self._listeners.deliver()


class ForgetsGenerations(CircuitBreaker):
    """Counts every success in half-open towards closing, whenever its call began."""

    def _settle(self, permit, outcome, cause=""):
        with self._lock:
            if self._state is State.HALF_OPEN and outcome is Outcome.SUCCESS:
                self._move(State.CLOSED, "probes succeeded")
            permit.generation = self._generation
            self._conclude(permit, outcome, cause)
        self._listeners.deliver()


class LooksOnce(Listeners):
    """Does not look again after it gave the turn back."""

    def deliver(self):
        if self.queue and self._turn.acquire(blocking=False):
            while self.queue:
                self._tell(self.queue.popleft())
            self._turn.release()


class LosesWakeups(CircuitBreaker):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._listeners = LooksOnce(self._new_lock)


class AnnouncesWithoutTurn(Listeners):
    """Delivers from any thread at any time."""

    def deliver(self):
        while self.queue:
            event = self.queue.popleft()
            with self._new_lock():  # a moment in which another thread may overtake
                pass
            self._tell(event)


class LosesOrder(LosesWakeups):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._listeners = AnnouncesWithoutTurn(self._new_lock)


def one_permit_two_threads():
    run = Run(make=SettlesTwice)
    probe = run.acquire()
    return run, [lambda: run.settle(probe, "cancel"), lambda: run.settle(probe, "cancel")]


def late_success_in_half_open():
    run = Run(make=ForgetsGenerations, start="closed")
    late = run.acquire()
    run.breaker._listeners.deliver()
    with run.breaker._lock:
        run.breaker._open(run.clock(), "test")
    run.breaker._listeners.deliver()
    run.clock.tick(10)
    return run, [lambda: run.settle(late, "success"), lambda: run.call("ignore")]


def two_hands(make):
    def scenario():
        run = Run(make=make, start="closed")
        return run, [run.breaker.force_open, run.breaker.disable]

    return scenario


def three_ask():
    run = Run(make=ChecksThenActs)
    return run, [lambda: run.call("cancel") for _ in range(2)]


@pytest.mark.parametrize(
    ("scenario", "found"),
    [
        (three_ask, "too many probes"),
        (one_permit_two_threads, "exactly once|in_flight|below zero"),
        (late_success_in_half_open, "exactly once|closed without|arrow|lost|below"),
        (two_hands(LosesWakeups), "lost"),
        (two_hands(LosesOrder), "out of order"),
    ],
    ids=["check then act", "double settlement", "no generations", "lost wake-up", "lost order"],
)
def test_the_explorer_finds_a_broken_breaker(scenario, found):
    """Each classic mistake, made on purpose, shows in some order."""
    with pytest.raises(Violation, match=found):
        explore(scenario)


def test_the_explorer_finds_a_deadlock():
    """Two locks taken in two orders stop the run, and are reported."""

    def scenario():
        run = Run(start="closed")
        a, b = run.breaker._new_lock(), run.breaker._new_lock()

        def take(first, second):
            with first, second:
                pass

        return run, [lambda: take(a, b), lambda: take(b, a)]

    with pytest.raises(Violation, match="deadlock"):
        explore(scenario)


def test_the_explorer_counts_every_order():
    """Two threads of one section each have two orders."""

    def scenario():
        run = Run(start="closed")
        return run, [run.breaker.snapshot, run.breaker.snapshot]

    assert explore(scenario) == 2


def test_the_explorer_counts_the_orders_of_longer_threads():
    """Two threads of three sections each: 6! / (3! 3!) orders."""

    def scenario():
        run = Run(start="closed")
        return run, [lambda: [run.breaker.snapshot() for _ in range(3)]] * 2

    assert explore(scenario) == 20
