"""The table of models in memory, whatever is done to it in whatever order."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from resilient_ai._models.cards import ModelCard
from resilient_ai._models.keeping import KeepRules, Origin
from resilient_ai._models.residents import Residents
from resilient_ai.errors import ServiceClosed

CARD = ModelCard(name="m", kind="reranker", family="bert", score="sigmoid")
NAMES = st.sampled_from("abc")


class Model:
    """What is in the table: knows whether it was closed."""

    def __init__(self):
        self.closed = False


class ResidentsMachine(RuleBasedStateMachine):
    loading = Bundle("loading")
    leases = Bundle("leases")
    taken = Bundle("taken")

    def __init__(self):
        super().__init__()
        self.ticks = count()
        self.keep = KeepRules(models=2, nbytes=50)
        self.crowds = 0
        self.table = Residents(self.keep, on_crowd=self.crowd, clock=lambda: float(next(self.ticks)))
        self.held = {}  # the lease, to the model it is for
        self.closed = False

    def crowd(self):
        self.crowds += 1

    def lease_of(self, lease):
        self.held[lease] = lease.model
        return lease

    @rule(target=loading, name=NAMES)
    def enter(self, name):
        """Whoever finds nobody loading has to load; others wait for the same."""
        if self.closed:
            with pytest.raises(ServiceClosed):
                self.table.enter(name)
            return (None, name)
        known = self.table.find(name)
        resident, is_mine = self.table.enter(name)
        assert is_mine is (known is None)
        assert is_mine or resident is known
        return (resident if is_mine else None, name)

    @rule(target=leases, what=consumes(loading), size=st.integers(0, 40))
    def settle(self, what, size):
        resident, _ = what
        if resident is None or resident.future.done():
            return None
        model = Model()
        if self.closed:
            with pytest.raises(ServiceClosed):
                self.table.settle(resident, model, Origin(CARD, "", None, size))
            self.table.give_up(resident, RuntimeError())
            return None
        return self.lease_of(self.table.settle(resident, model, Origin(CARD, "", None, size)))

    @rule(what=consumes(loading))
    def give_up(self, what):
        resident, name = what
        if resident is None or resident.future.done():
            return
        self.table.give_up(resident, RuntimeError("no"))
        assert self.table.lease(name) is None
        assert isinstance(resident.future.exception(), RuntimeError)

    @rule(target=leases, name=NAMES)
    def lease(self, name):
        lease = self.table.lease(name)
        return None if lease is None else self.lease_of(lease)

    @rule(lease=consumes(leases), times=st.integers(1, 2))
    def release(self, lease, times):
        if lease is None:
            return
        before = self.crowds
        for _ in range(times):
            lease.release()
        model = self.held.pop(lease)
        # Told once, when the last one left a model, and there is one that could go.
        is_last = not any(held is model for held in self.held.values())
        assert self.crowds - before == (is_last and bool(self.keep.leaving(self.table.told())))

    @rule(target=taken, name=NAMES, size=st.integers(0, 40))
    def replace(self, name, size):
        old, model = self.table.find(name), Model()
        if old is None or old.origin is None or self.closed:
            return None
        assert self.table.replace(old, model, Origin(CARD, "", None, size), began=0.0)
        assert self.table.find(name).future.result() is model
        return old

    @rule(target=taken, name=NAMES)
    def take_out(self, name):
        resident = self.table.take_out(name)
        assert self.table.lease(name) is None
        return resident

    @rule(coming=st.integers(0, 60))
    def take_out_crowd(self, coming):
        for resident in self.table.take_out_crowd(coming=coming):
            assert resident.users == 0
            self.close_one(resident)

    @rule(resident=consumes(taken))
    def close_one(self, resident):
        """What nobody uses any more is closed, by one of those who try."""
        if resident is None or not self.table.wait_idle(resident, 0.0):
            return
        if self.table.begin_closing(resident):
            model = resident.future.result()
            assert not model.closed
            model.closed = True
        assert not self.table.begin_closing(resident)

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self):
        self.closed = True
        for resident in self.table.close():
            self.close_one(resident)
        assert self.table.told() == []

    @invariant()
    def what_is_held_is_open(self):
        assert not any(model.closed for model in self.held.values())

    @invariant()
    def users_are_counted(self):
        for told in self.table.told():
            model = self.table.find(told.name).future.result()
            assert told.users == sum(held is model for held in self.held.values())
            assert not model.closed


TestResidents = ResidentsMachine.TestCase
TestResidents.settings = settings(max_examples=150, stateful_step_count=40)
