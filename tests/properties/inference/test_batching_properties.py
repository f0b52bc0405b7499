"""Planning is a partition, collating and scattering undo each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai._inference.batching import collate, plan, scatter
from resilient_ai._inference.buffers import BufferPool
from resilient_ai.values import Tokens

POOL = BufferPool(1 << 22)


@given(st.lists(st.integers(0, 600), max_size=80), st.integers(1, 2000), st.integers(1, 40))
def test_a_plan_is_a_partition_within_limits(lengths, budget, most):
    """Each row is in one batch; rows and padded tokens stay in bounds, but for a row that is too long alone."""
    lengths = np.array(lengths, np.int64)
    batches = plan(lengths, token_budget=budget, max_rows=most)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(1, int(lengths[batch].max()))
        assert 1 <= len(batch) <= most
        assert padded <= budget or len(batch) == 1
    tops = [lengths[batch].max() for batch in batches]
    assert tops == sorted(tops, reverse=True)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 10**6), max_size=30), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 8),
    st.booleans(),
)
def test_what_is_collated_and_scattered_is_what_was_there(rows, budget, most, types):
    """Sums of the batches' rows, put back, are the sums of the rows; no token is lost or moved."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    ids = np.array([token for row in rows for token in row], np.int64)
    tokens = Tokens(ids, offsets, np.zeros(len(rows), np.bool_), ids * 2 if types else None)
    out = np.full((len(rows), 3), -1, np.float32)
    for batch_rows in plan(tokens.lengths, token_budget=budget, max_rows=most):
        with collate(tokens, batch_rows, POOL, model="m", task="embed") as batch:
            for place, row in enumerate(batch_rows):
                real = batch.attention_mask[place].astype(bool)
                assert batch.input_ids[place][real].tolist() == rows[row]
                assert not batch.input_ids[place][~real].any()
                if types:
                    assert batch.type_ids[place][real].tolist() == [2 * token for token in rows[row]]
            totals = batch.input_ids.sum(1) % 4096
            scatter(np.stack([totals, totals + 1, totals + 2], 1).astype(np.float32), batch_rows, out)
    expected = np.array([sum(row) % 4096 for row in rows], np.float32)
    assert (out == np.stack([expected, expected + 1, expected + 2], 1)).all()
    assert POOL.statistics().leases == 0
