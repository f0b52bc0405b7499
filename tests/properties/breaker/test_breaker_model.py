"""Whatever is done to a breaker, in whatever order: it does what the reference model does."""

import pytest
from breaker_model import SHUTTING, Model
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, FailureRate, Permit, State

# Multiples of 1/4: sums of them are exact, so that "at exactly the recovery time" means that.
quarters = st.integers(0, 80).map(lambda n: n / 4)
OUTCOMES = ("success", "failure", "ignore", "cancel")


@st.composite
def policies(draw):
    recovery = draw(st.sampled_from([0.0, 0.25, 5.0, 10.0]))
    rate = None
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["calls", "seconds"]))
        size = draw(st.integers(1, 6)) if kind == "calls" else draw(st.sampled_from([15.0, 60.0]))
        least = draw(st.integers(1, size if kind == "calls" else 4))
        slow = draw(st.sampled_from([(None, None), (1.0, 0.5), (0.25, 1.0)]))
        rate = (kind, size, least, draw(st.sampled_from([0.25, 0.5, 1.0])), *slow)
    return {
        "threshold": draw(st.integers(1, 4)),
        "age": draw(st.sampled_from([None, None, 1.0, 10.0])),
        "recovery": recovery,
        "multiplier": draw(st.sampled_from([1.0, 2.0, 4.0])),
        "maximum": draw(st.sampled_from([recovery, recovery + 15.0, 1e6])),
        "slots": draw(st.integers(1, 3)),
        "needed": draw(st.integers(1, 3)),
        "lease": draw(st.sampled_from([0.25, 5.0, 30.0])),
        "rate": rate,
    }


def build(p, clock, make=CircuitBreaker):
    rule_ = None
    if p["rate"]:
        kind, size, least, rate, slow_duration, slow_rate = p["rate"]
        rule_ = FailureRate(
            **{"window" if kind == "calls" else "seconds": size},
            min_calls=least,
            rate=rate,
            slow_call_duration=slow_duration,
            slow_call_rate=slow_rate,
        )
    policy = BreakerPolicy(
        error_threshold=p["threshold"],
        max_failure_age=p["age"],
        recovery_time=p["recovery"],
        backoff_multiplier=p["multiplier"],
        max_recovery_time=p["maximum"],
        half_open_permits=p["slots"],
        successes_to_close=p["needed"],
        probe_lease=p["lease"],
        trip_rule=rule_,
    )
    return make(policy, name="gpu", clock=clock)


class BreakerIsModel(RuleBasedStateMachine):
    """Drive both and compare everything that can be seen, after every step."""

    make = CircuitBreaker
    calls = Bundle("calls")

    @initialize(target=calls, p=policies(), running=st.integers(1, 5))
    def begin(self, p, running):
        self.now = 1024.0
        self.model = Model(**p)
        self.breaker = build(p, lambda: self.now, self.make)
        self.heard = []
        self.breaker.subscribe(self.heard.append)
        return self.ask(running)

    def ask(self, times):
        return multiple(*(pair for pair in [self.ask_both() for _ in range(times)] if pair[0]))

    @rule(target=calls, times=st.integers(1, 4))
    def ask_some(self, times):
        return self.ask(times)

    @rule(target=calls)
    def ask_when_it_is_time(self):
        self.now += self.model.retry_after(self.now) or 0.0
        return self.ask(1)

    def ask_both(self):
        answer, call = self.breaker.try_acquire(), self.model.ask(self.now)
        assert bool(answer) == (call is not None)
        if not answer:
            assert (answer.state.value, answer.retry_after) == (
                self.model.state,
                self.model.retry_after(self.now),
            )
        else:
            assert isinstance(answer, Permit)
        return answer, call

    @rule(pair=calls, outcome=st.sampled_from(OUTCOMES))
    def end(self, pair, outcome):
        self.end_both(pair, outcome)

    @rule(
        pairs=st.lists(consumes(calls), min_size=1, max_size=3),
        outcome=st.sampled_from(("success", "failure")),
    )
    def end_some(self, pairs, outcome):
        for pair in pairs:
            self.end_both(pair, outcome)

    def end_both(self, pair, outcome):
        permit, call = pair
        getattr(permit, outcome)()
        self.model.end(call, outcome, self.now)

    @rule(pair=calls)
    def leave_block(self, pair):
        permit, call = pair
        with permit:
            pass
        self.model.end(call, "cancel", self.now)

    @rule(pair=calls)
    def give_back(self, pair):
        permit, call = pair
        permit.give_back()
        # Noticed at the next operation, of which there is one after every rule; then it was in time.
        if call.outcome is None:
            lease, self.model.lease = self.model.lease, float("inf")
            self.model.end(call, "cancel", self.now)
            self.model.lease = lease

    @rule(times=st.integers(1, 4), outcome=st.sampled_from(["failure", "failure", "success"]))
    def burst(self, times, outcome):
        for _ in range(times):
            permit, call = self.ask_both()
            if call is not None:
                getattr(permit, outcome)()
                self.model.end(call, outcome, self.now)

    @rule(seconds=quarters)
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule()
    def wait_as_told(self):
        self.now += self.model.retry_after(self.now) or 0.0

    @rule()
    def wait_for_a_lease(self):
        self.now += self.model.lease

    @rule(seconds=quarters)
    def open_for(self, seconds):
        self.breaker.open_for(seconds)
        self.model.by_hand("open_for", self.now, seconds)

    @rule(
        what=st.sampled_from(["reset", "enable", "reset", "enable", "force_open", "disable", "metrics_only"])
    )
    def by_hand(self, what):
        getattr(self.breaker, what)()
        self.model.by_hand(what, self.now)

    @invariant()
    def looks_the_same(self):
        if not hasattr(self, "model"):
            return
        s, m = self.breaker.snapshot(), self.model
        assert self.breaker.state is s.state
        assert (s.state.value, s.generation, s.attempt) == (m.state, m.era, m.attempt)
        t = m.tally
        assert (s.successes, s.failures, s.ignored, s.cancelled) == tuple(t[o] for o in OUTCOMES)
        assert (s.stale_results, s.rejected, s.inconclusive_probes) == (t["stale"], t["rejected"], t["empty"])
        assert s.in_flight == len(m.under_way())
        assert s.consecutive_failures == m.in_a_row(self.now)
        assert s.opened_at == (m.opened_at if m.state in SHUTTING else None)
        assert s.retry_after == m.retry_after(self.now)
        assert s.retry_after is None or s.retry_after >= 0
        assert s.listener_errors == 0

    @invariant()
    def tells_the_same(self):
        if hasattr(self, "model"):
            assert [(e.before.value, e.after.value) for e in self.heard] == self.model.arrows
            assert [e.generation for e in self.heard] == list(range(1, self.model.era + 1))


def profile(examples, steps):
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class TestBreakerIsModelQuickly(BreakerIsModel.TestCase):
    """A hundred lives of thirty steps, for every run of the tests."""

    settings = profile(100, 30)


@pytest.mark.slow
class TestBreakerIsModel(BreakerIsModel.TestCase):
    """Fifteen hundred lives of fifty steps."""

    settings = profile(1500, 50)


class ClosesOnNothing(CircuitBreaker):
    """Takes a neutral probe for a good one."""

    def _count_neutral(self, permit, outcome):
        super()._count_neutral(permit, outcome)
        if permit._probe:
            self._move(State.CLOSED, "broken")


class CountsLateResults(CircuitBreaker):
    """Asks for the generation of failures only."""

    def _conclude(self, permit, outcome, cause):
        if outcome.value == "success" and self._state is State.CLOSED:
            permit.generation = self._generation
        super()._conclude(permit, outcome, cause)


class KeepsItsBackOff(CircuitBreaker):
    """Forgets to start over after a close."""

    def _forget(self):
        attempt = self._attempt
        super()._forget()
        self._attempt = attempt


class HasNoLease(CircuitBreaker):
    """Waits for its probes for ever."""

    def _end_leases(self, now):
        pass


@pytest.mark.parametrize("make", [ClosesOnNothing, CountsLateResults, KeepsItsBackOff, HasNoLease])
def test_the_comparison_tells_a_broken_breaker(make):
    """Each mistake, made on purpose, is told from the model within the lives of a quick run."""
    broken = type("Broken", (BreakerIsModel,), {"make": make})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=settings(profile(300, 30), phases=[Phase.generate]))
