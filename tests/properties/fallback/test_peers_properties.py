"""Equal devices against a page of rules: who answers, who is tried, and when an answer is degraded."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._resilience.fault_kinds import ERROR_CLASSES
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai._telemetry.events import FellBack
from resilient_ai.testing import FakeBackend, FakeClock, FaultPlan, batch_of

BATCHES = (batch_of([1, 2, 3], [4, 5]), batch_of([6, 7]))
CANARY = batch_of([101, 7, 102])
CARDS = 4


def dies(_):
    what = FaultPlan.preset("worker_died").rules[0].what
    raise ERROR_CLASSES[what.error](what.text)


class Bench:
    """Four cards and a CPU, and which of the cards should be up by the rules."""

    def __init__(self):
        self.clock = FakeClock()
        self.cards = [FakeBackend(f"gpu:{number}") for number in range(CARDS)]
        self.cpu = FakeBackend("cpu")
        policy = FallbackPolicy(ramp=(1.0,), verify="off", recovery_time=10.0)
        self.manager = FallbackManager([self.cards, self.cpu], policy, clock=self.clock)
        self.prober = Prober(self.manager, [CANARY], limit=0.999, clock=self.clock)
        self.heard = []
        self.manager.events.subscribe(self.heard.append)
        self.up = set(range(CARDS))

    def call(self, batch, dying):
        """One batch while some cards die of whatever they are given."""
        for number, card in enumerate(self.cards):
            card._before = dies if number in dying else None
        asked = [len(card.calls) for card in self.cards]
        answer = self.manager.run(batch)
        tried = [n for n, card in enumerate(self.cards) if len(card.calls) > asked[n]]
        np.testing.assert_array_equal(answer.values, self.cpu.answer(batch).values)
        assert set(tried) <= self.up
        died = dying & set(tried)
        assert len(tried) <= 2
        if answer.device == "cpu":
            assert died == set(tried)
            assert len(tried) == min(2, len(self.up))
        else:
            assert {f"gpu:{number}" for number in set(tried) - died} == {answer.device}
        self.up -= died
        return answer

    def bring_back(self):
        for card in self.cards:
            card._before = None
        self.clock.tick(60.0)
        self.prober.probe_due()
        self.up = set(range(CARDS))


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(BATCHES), st.sets(st.integers(0, CARDS - 1)), st.booleans()), max_size=30
    )
)
def test_cards_stand_in_for_each_other(steps):
    """A batch is tried on two cards that are up at most; only the CPU's answers are degraded, and told."""
    bench = Bench()
    degraded = 0
    for batch, dying, comes_back in steps:
        if comes_back:
            bench.bring_back()
        answer = bench.call(batch, dying)
        assert answer.degraded is (answer.device == "cpu")
        degraded += answer.degraded
        assert {n for n, guard in enumerate(bench.manager.guarded) if guard.is_in_service} == bench.up
        assert bench.manager.outlook().width == max(1, len(bench.up))
    stats = bench.manager.stats()
    assert stats.fallbacks == stats.cpu_calls == degraded
    assert sum(isinstance(event, FellBack) for event in bench.heard) == degraded
    assert not any(bench.manager._groups[0]._load.values())
    bench.manager.close()


@given(sizes=st.lists(st.integers(1, 30), min_size=CARDS, max_size=60))
def test_idle_cards_are_used_evenly(sizes):
    """One caller alone uses every card as often as any other, whatever the sizes of its batches."""
    bench = Bench()
    for size in sizes:
        bench.call(batch_of([1] * size), set())
    asked = [len(card.calls) for card in bench.cards]
    assert max(asked) - min(asked) <= 1
    bench.manager.close()
