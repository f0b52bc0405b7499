"""The buffer pool against a model of a few lines: leases never overlap, sums add up, budgets hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from resilient_ai._inference.buffers import BufferPool, _size_class
from resilient_ai.errors import ConfigurationError, InvalidInput, Overloaded
from resilient_ai.testing import FakeClock

BUDGET = 64 * 1024
DTYPES = ["uint8", "int16", "float32", "int64"]


@given(st.integers(0, 1 << 50))
def test_size_classes_waste_little(wanted):
    """A block holds what was asked for, wastes at most a fifth of itself, and is a class of its own."""
    size = _size_class(wanted)
    assert size >= max(wanted, 4096)
    assert _size_class(size) == size
    assert wanted <= 4096 or (size - wanted) / size <= 0.2


class PoolMachine(RuleBasedStateMachine):
    """Lends, shares, returns and trims at random; `open` maps each open lease to its content."""

    leases = Bundle("leases")
    returned = Bundle("returned")

    def __init__(self):
        super().__init__()
        self.pool = BufferPool(BUDGET, clock=FakeClock())
        self.open = {}
        self.asked = 0
        self.contents = itertools.count(1)

    @rule(
        target=leases,
        shape=st.lists(st.integers(0, 60), min_size=1, max_size=3).map(tuple),
        dtype=st.sampled_from(DTYPES),
    )
    def lease(self, shape, dtype):
        before = self.pool.statistics()
        try:
            lease = self.pool.lease(shape, dtype, timeout=0)
        except ConfigurationError:
            assert np.prod(shape) * np.dtype(dtype).itemsize > BUDGET * 0.8
            return None
        except Overloaded:
            assert self.pool.statistics().leases == before.leases
            return None
        assert lease.array.shape == shape
        assert lease.array.dtype == dtype
        self.asked += 1
        content = next(self.contents) % 100
        lease.array.fill(content)
        self.open[lease] = content
        return lease

    @rule(target=leases, lease=leases)
    def share(self, lease):
        if lease not in self.open:
            with pytest.raises(InvalidInput):
                lease.share() if lease is not None else self.pool.lease((-1,), "int64")
            return None
        other = lease.share()
        self.open[other] = self.open[lease]
        return other

    @rule(target=returned, lease=consumes(leases))
    def release(self, lease):
        if lease in self.open:
            del self.open[lease]
            lease.release()
        return lease

    @rule(lease=returned)
    def misuse(self, lease):
        """A lease that was returned can neither be read, shared nor returned again."""
        if lease is None:
            return
        before = self.pool.statistics()
        for act in (lease.release, lease.share, lambda: lease.array, lease.__enter__):
            with pytest.raises(InvalidInput):
                act()
        assert self.pool.statistics() == before

    @rule()
    def trim(self):
        before = self.pool.statistics()
        freed = self.pool.trim()
        assert freed == before.allocated - before.lent
        assert self.pool.statistics().allocated == before.lent

    @invariant()
    def nothing_overlaps(self):
        """Every open lease still holds what was written to it, so no two share memory by accident."""
        for lease, content in self.open.items():
            assert (lease.array == content).all()
        blocks = {id(lease._block): lease for lease in self.open}
        for one, other in itertools.combinations(blocks.values(), 2):
            assert not np.shares_memory(one.array, other.array)

    @invariant()
    def sums_add_up(self):
        told = self.pool.statistics()
        blocks = {id(lease._block): lease._block for lease in self.open}
        assert told.leases == len(self.open)
        assert told.leases_total == self.asked == told.allocations + told.reuses
        assert told.lent == sum(block.memory.nbytes for block in blocks.values())
        assert told.lent <= told.allocated <= told.peak <= told.budget
        assert 0 <= told.fragmentation < 1 or told.fragmentation == 1


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
