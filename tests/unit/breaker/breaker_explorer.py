"""Run a few threads in every order in which their locks let them, one order after another.

The threads are real, but only one runs at a time: `Lock` hands control back to the explorer, which
chooses who goes on. `explore` walks the tree of these choices depth first until all have been made.
Control changes hands before every acquisition, and before the release of a lock that
others do not wait for; a release that others wait for needs none, for what follows up to the
next acquisition touches nothing shared. At every choice nobody is inside a section of the
breaker, so that its fields can be checked there.
"""

import threading
from collections import Counter

from breaker_kit import Clock

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, State

LEGAL = {
    (State.CLOSED, State.OPEN),
    (State.OPEN, State.HALF_OPEN),
    (State.HALF_OPEN, State.OPEN),
    (State.HALF_OPEN, State.CLOSED),
}
BY_HAND = {State.FORCED_OPEN, State.DISABLED, State.METRICS_ONLY}


class Violation(AssertionError):
    """An order of events in which the breaker broke its word."""


class Abandoned(BaseException):
    """The run is over; a worker that still waits unwinds."""


class Worker(threading.Thread):
    """A thread that runs only while the explorer waits for it."""

    def __init__(self, explorer, body):
        super().__init__(daemon=True)
        self.explorer, self.body = explorer, body
        self.go = threading.Semaphore(0)
        self.waits_for, self.finished, self.error = None, False, None

    def run(self):
        try:
            self.body()
        except BaseException as error:
            self.error = error
        self.finished = True
        self.explorer.back.release()

    def pause(self, waits_for=None):
        self.waits_for = waits_for
        self.explorer.back.release()
        self.go.acquire()
        self.waits_for = None
        if self.explorer.abandoned:
            raise Abandoned

    def can_run(self):
        return not self.finished and (self.waits_for is None or not self.waits_for.held)


def pause(waits_for=None):
    """Let the explorer choose who goes on; does nothing outside of its workers."""
    worker = threading.current_thread()
    if isinstance(worker, Worker):
        worker.pause(waits_for)


class Lock:
    """A lock for one `Run`: every use of it by a worker is a point where another may go on."""

    def __init__(self):
        self.held = self.waited_for = False

    def acquire(self, blocking=True):
        pause(self if blocking else None)
        if self.held:
            assert not blocking, "the explorer resumed a thread whose lock was held"
            return False
        self.held, self.waited_for = True, blocking
        return True

    def release(self):
        if not self.waited_for:
            pause()
        assert self.held
        self.held = False

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()


class Run:
    """One order: a breaker, what was done with it, and what must be true after every step."""

    def __init__(self, make=CircuitBreaker, start="half_open", **policy):
        self.clock = Clock()
        policy = {"error_threshold": 1, "recovery_time": 10.0, "probe_lease": 5.0, **policy}
        self.breaker = make(BreakerPolicy(**policy), clock=self.clock, _new_lock=Lock)
        self.limit = self.breaker.policy.half_open_permits
        self.issued, self.settled, self.heard = [], set(), []
        self.generation = 0
        self.back, self.abandoned = threading.Semaphore(0), False
        self.breaker.subscribe(self.heard.append)
        if start == "half_open":
            self.acquire().failure()
            self.settled.add(self.issued[0])
            self.clock.tick(10)

    # what the threads of a scenario do

    def acquire(self):
        """Take a permit; None when rejected."""
        answer = self.breaker.try_acquire()
        if answer:
            self.issued.append(answer)
            return answer
        return None

    def settle(self, permit, outcome):
        """Settle, if there is something to settle."""
        if permit is not None:
            getattr(permit, outcome)()
            self.settled.add(permit)

    def call(self, outcome):
        """The two steps."""
        self.settle(self.acquire(), outcome)

    # what must hold

    def check(self):
        """What is true at every point where nobody is in a section."""
        breaker = self.breaker
        s = breaker.snapshot()
        self.require(s.generation >= self.generation, "the generation fell")
        self.generation = s.generation
        self.require(min(s.in_flight, s.successes, s.failures, s.stale_results, s.attempt) >= 0, "below zero")
        self.require(len(breaker._probes) <= self.limit, "too many probes on the books")
        mine = [p for p in self.issued if p.generation == s.generation and not p._settled]
        if s.state is State.HALF_OPEN:
            self.require(len(mine) <= self.limit, "too many probes under way")

    def check_end(self):
        """What is true when all threads are done and all permits settled."""
        s = self.breaker.snapshot()
        self.require(s.in_flight == 0, "in_flight did not return to 0")
        results = s.successes + s.failures + s.ignored + s.cancelled + s.stale_results
        disabled = {e.generation for e in self.heard if e.after is State.DISABLED}
        uncounted = sum(p.generation in disabled for p in self.issued)
        exact = len(self.issued) - uncounted <= results <= len(self.issued)
        self.require(exact, "a permit was not counted exactly once")
        generations = [event.generation for event in self.heard]
        self.require(generations == list(range(1, s.generation + 1)), "a transition was lost or out of order")
        state = State.CLOSED
        for event in self.heard:
            self.require(event.before is state, "an arrow began where none ended")
            state = event.after
            by_hand = (
                state in BY_HAND or event.before in BY_HAND or event.reason in ("reset", "opened for a time")
            )
            self.require(by_hand or (event.before, state) in LEGAL, "no such arrow")
        self.require(state is s.state, "the last arrow does not end at the state")
        probes = Counter(p.generation for p in self.issued if p._probe)
        closes = [e for e in self.heard if e.reason == "probes succeeded"]
        self.require(all(probes[e.generation - 1] >= 1 for e in closes), "closed without a probe")

    def require(self, holds, what):
        if not holds:
            raise Violation(what)

    def go(self, bodies, choices):
        """Run the bodies, deciding by `choices` and then by the first; return all decisions made."""
        workers = [Worker(self, body) for body in bodies]
        for worker in workers:  # up to its first pause; bodies begin with one or with an acquisition
            worker.start()
            self.back.acquire()
        decisions = []
        try:
            while ready := [worker for worker in workers if worker.can_run()]:
                at = choices[len(decisions)] if len(decisions) < len(choices) else 0
                decisions.append((at, len(ready)))
                ready[at].go.release()
                self.back.acquire()
                self.check()
            self.require(all(worker.finished for worker in workers), "deadlock")
            for worker in workers:
                if worker.error is not None:
                    raise worker.error
        finally:
            self.abandoned = True
            for worker in workers:
                while not worker.finished:  # after a violation
                    worker.go.release()
                    self.back.acquire()
                worker.join()
        self.check_end()
        return decisions


def explore(scenario, limit=20_000):
    """Run `scenario()` -> (run, bodies) in every order; return how many there are."""
    choices, orders = [], 0
    while True:
        run, bodies = scenario()
        decisions = run.go(bodies, choices)
        orders += 1
        assert orders <= limit, "too many orders; make the scenario smaller"
        while decisions and decisions[-1][0] + 1 == decisions[-1][1]:
            decisions.pop()
        if not decisions:
            return orders
        choices = [at for at, _ in decisions]
        choices[-1] += 1
