"""A manager against a page of rules: who may serve now, what is counted, and when it may come back."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resilient_ai._resilience.breaker import State
from resilient_ai._resilience.fault_kinds import ERROR_CLASSES
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai.errors import InvalidInput
from resilient_ai.testing import FakeBackend, FakeClock, FaultPlan, batch_of
from resilient_ai.values import Vectors

pytestmark = pytest.mark.slow

BATCH = batch_of([1, 2, 3], [4, 5])
ONE_ROW = batch_of([6, 7])
CANARY = batch_of([101, 7, 102])
THRESHOLD, WINDOW, SETTLING = 3, 20.0, 0.05


def error(preset):
    what = FaultPlan.preset(preset).rules[0].what
    return ERROR_CLASSES[what.error](what.text)


PASSING = {"transient": error("transient"), "unknown": RuntimeError("something or other")}
FRESH = {"poisoned": error("poisoned"), "worker_died": error("worker_died"), "corrupt": None}
PERSON = {"device_lost": error("device_lost"), "missing_library": error("missing_library")}
NAN = Vectors(np.full((2, 16), np.nan, np.float32), "gpu")


def only_one_row_fits(batch):
    if batch.rows > 1:
        raise RuntimeError("CUDA failure 2: out of memory")


class Rules:
    """What the device's guard must do, in plain arithmetic."""

    def __init__(self, recovery_time, shares, step):
        self.recovery_time, self.step = recovery_time, step
        self.shares = [Fraction(share).limit_denominator(100) for share in shares]
        self.open_until = None
        self.in_a_row = self.trips = 0
        self.back_since = None  # None: never out yet
        self.level, self.steps, self.owed = len(shares) - 1, 0, Fraction(0)

    @property
    def ramping(self):
        return self.level < len(self.shares) - 1

    def admits(self):
        if self.open_until is not None:
            return False
        if not self.ramping:
            return True
        self.owed += self.shares[self.level]
        if self.owed < 1:
            return False
        self.owed -= 1
        return True

    def succeeded(self):
        self.in_a_row = 0
        if self.ramping:
            self.steps += 1
            if self.steps == self.step:
                self.level, self.steps = self.level + 1, 0

    def failed(self, now, *, at_once, fresh):
        """A call failed; returns whether the device is out now."""
        self.in_a_row += 1
        tripped = self.in_a_row >= THRESHOLD
        if at_once or tripped or self.ramping:
            self.trip(now, fresh=fresh, own=tripped)
        return self.open_until is not None

    def trip(self, now, *, fresh, own=False):
        was_out = self.open_until is not None
        if not was_out and (self.back_since is None or now - self.back_since > WINDOW):
            self.trips = 0
        self.trips += 1
        wait = self.recovery_time
        if fresh:
            wait = min(wait, 0.0 if self.trips == 1 else 2.0 ** (self.trips - 2))
        if own:
            wait = max(wait, min(SETTLING, self.recovery_time))
        self.open_until = now + wait

    def returned(self, now):
        self.open_until, self.back_since, self.in_a_row = None, now, 0
        self.level = 0 if len(self.shares) > 1 else self.level
        self.steps, self.owed = 0, 1 - self.shares[0]


class ManagerMachine(RuleBasedStateMachine):
    @initialize(
        recovery_time=st.sampled_from((0.0, 1.5, 60.0)),
        ramp=st.sampled_from(((1.0,), (0.5, 1.0), (0.1, 0.25, 1.0))),
        step=st.integers(1, 3),
    )
    def start(self, recovery_time, ramp, step):
        self.clock, self.rules = FakeClock(), Rules(recovery_time, ramp, step)
        self.gpu, self.cpu = FakeBackend("gpu"), FakeBackend("cpu")
        policy = FallbackPolicy(
            recovery_time=recovery_time, ramp=ramp, ramp_step=step, error_threshold=THRESHOLD,
            auto_retry=False, flap_window=WINDOW, verify="off",
        )  # fmt: skip
        self.manager = FallbackManager([self.gpu, self.cpu], policy, clock=self.clock, sleep=self.clock.sleep)
        self.prober = Prober(self.manager, [CANARY], limit=0.999, clock=self.clock)
        self.prober._right_answers()
        self.guard = self.manager.guarded[0]
        self.failures = self.served = self.fallbacks = 0

    def teardown(self):
        if hasattr(self, "manager"):
            self.manager.close()

    def call(self, batch=BATCH):
        """One batch; True when the device had it."""
        asked = len(self.gpu.calls)
        may = self.rules.admits()
        answer = self.manager.run(batch)
        np.testing.assert_array_equal(answer.values, self.cpu.answer(batch).values)
        assert (len(self.gpu.calls) > asked) is may
        assert answer.degraded is (answer.device == "cpu")
        self.fallbacks += answer.degraded
        self.gpu.heal()
        return may, answer.device

    @rule(rows=st.sampled_from((BATCH, ONE_ROW)))
    def all_is_well(self, rows):
        may, device = self.call(rows)
        assert device == ("gpu" if may else "cpu")
        if may:
            self.served += 1
            self.rules.succeeded()

    @rule(name=st.sampled_from(sorted(PASSING | FRESH | PERSON)))
    def the_device_fails(self, name):
        self.gpu.fail_with(NAN if name == "corrupt" else (PASSING | FRESH | PERSON)[name])
        may, device = self.call()
        assert device == "cpu"
        if may:
            self.failures += 1
            self.rules.failed(self.clock(), at_once=name not in PASSING, fresh=name in FRESH)

    @rule()
    def a_row_does_not_fit(self):
        self.gpu.fail_with(RuntimeError("CUDA failure 2: out of memory"))
        may, device = self.call(ONE_ROW)
        assert device == "cpu"
        if may:
            self.failures += 1
            self.rules.failed(self.clock(), at_once=False, fresh=False)

    @rule()
    def a_batch_does_not_fit(self):
        self.gpu._before = only_one_row_fits
        may, device = self.call(BATCH)
        self.gpu._before = None
        assert device == ("gpu" if may else "cpu")
        if may:
            self.served += 1
            self.rules.succeeded()

    @rule()
    def the_caller_is_wrong(self):
        self.gpu.fail_with(InvalidInput("too long"))
        if self.rules.admits():
            with pytest.raises(InvalidInput):
                self.manager.run(BATCH)
        else:
            assert self.manager.run(BATCH).device == "cpu"
            self.fallbacks += 1
        self.gpu.heal()

    @rule(seconds=st.sampled_from((0.01, 0.5, 1.0, 3.0, 25.0, 61.0)))
    def time_passes(self, seconds):
        self.clock.tick(seconds)

    @rule(name=st.sampled_from(("well", *sorted(FRESH), *sorted(PERSON), "unknown")))
    def the_prober_looks(self, name):
        if name == "corrupt":
            self.gpu.fail_with(Vectors(np.zeros((1, 16), np.float32), "gpu"))
        elif name != "well":
            self.gpu.fail_with((PASSING | FRESH | PERSON)[name])
        asked = len(self.gpu.calls)
        now = self.clock()
        due = self.rules.open_until is not None and now >= self.rules.open_until
        wait = self.prober.probe_due()
        assert (len(self.gpu.calls) > asked) is due
        assert wait >= 0
        self.gpu.heal()
        if due and name == "well":
            self.rules.returned(now)
        elif due:
            self.rules.trip(now, fresh=name in FRESH, own=True)

    @precondition(lambda self: self.rules.open_until is not None)
    @rule()
    def exactly_when_it_is_due(self):
        self.clock.tick(max(0.0, self.rules.open_until - self.clock()))

    @invariant()
    def it_is_as_the_rules_say(self):
        if not hasattr(self, "manager"):
            return
        seen = self.guard.breaker.snapshot()
        assert seen.in_flight == 0
        assert (seen.state is State.CLOSED) is (self.rules.open_until is None)
        assert self.manager.device == ("gpu" if self.rules.open_until is None else "cpu")
        if self.rules.open_until is None:
            assert seen.consecutive_failures == self.rules.in_a_row
            assert self.guard.ramp.share == pytest.approx(float(self.rules.shares[self.rules.level]))
        else:
            left = max(0.0, self.rules.open_until - self.clock())
            assert seen.retry_after == pytest.approx(left, abs=1e-6)
            assert left <= self.rules.recovery_time
        stats = self.manager.stats()
        assert stats.gpu_calls == self.served
        assert stats.devices["gpu"].failures == self.failures
        assert stats.fallbacks == self.fallbacks == stats.cpu_calls


ManagerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestManagerMachine = ManagerMachine.TestCase
