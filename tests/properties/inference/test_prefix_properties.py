"""The cache of common beginnings against no cache at all."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._inference.prefix import PrefixCache

BEGINNINGS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=30)


def states_of(before, ids):
    """States that depend on the token, its place and all that stands before it, like a decoder's."""
    seen = before[0, 0, -1, 0] if before.shape[2] else 0
    sums = seen * 3 + np.cumsum([(token + 1) * 3**place for place, token in enumerate(ids)])
    return np.broadcast_to(sums[None, None, :, None], (2, 1, len(ids), 1)).astype(np.float32)


def exact(ids):
    """The same, one token at a time."""
    states = np.zeros((2, 1, 0, 1), np.float32)
    for token in ids:
        states = np.concatenate([states, states_of(states, np.array([token]))], axis=2)
    return states


@given(BEGINNINGS, st.integers(0, 200))
def test_whatever_is_kept_the_states_are_right(beginnings, max_bytes):
    """Every beginning gets its own states in every order and with any bound, and the bound holds."""
    computed = []

    def one_by_one(before, ids):
        computed.append(len(ids))
        for token in ids:
            before = np.concatenate([before, states_of(before, np.array([token]))], axis=2)
        return before[:, :, -len(ids) :]

    made = PrefixCache(one_by_one, np.zeros((2, 1, 0, 1), np.float32), max_bytes=max_bytes)
    for beginning in beginnings:
        ids = np.array(beginning, np.int64)
        np.testing.assert_array_equal(made.states(ids), exact(beginning))
        kept = [states.nbytes for _, states in made._kept.values()]
        assert len(kept) <= 1 or sum(kept) <= max_bytes
    assert 0 not in computed
    assert sum(computed) <= sum(map(len, beginnings))
