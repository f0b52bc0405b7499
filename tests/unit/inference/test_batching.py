"""Packing rows into batches and handing their answers back."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np
import pytest

from resilient_ai._inference.batching import collate, plan
from resilient_ai._inference.buffers import BufferPool
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Tokens


def tokens_of(*rows, types=False):
    offsets = np.zeros(len(rows) + 1, np.int64)
    offsets[1:] = np.cumsum([len(row) for row in rows], dtype=np.int64)
    ids = np.array([token for row in rows for token in row], np.int64)
    return Tokens(ids, offsets, np.zeros(len(rows), np.bool_), ids % 2 if types else None)


def test_the_longest_first():
    """Batches go from long rows to short ones, so that neighbours are alike."""
    batches = plan(np.array([6, 9, 5, 9, 6]), token_budget=18, max_rows=2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [0, 4], [2]]


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([100, 10, 10, 10], [1, 3]),  # 270 tokens of padding against one more batch
        ([20, 10, 10, 10], [4]),  # 30 tokens are not worth one
        ([20, 10, 10, 10, 10], [1, 4]),  # 40 are
        ([60, 58, 56, 20, 19, 18], [3, 3]),
        ([10] * 40, [32, 8]),
    ],
)
def test_padding_or_another_batch(lengths, sizes):
    """A batch ends where the padding saved is worth more than a sixteenth of the budget."""
    batches = plan(np.array(lengths), token_budget=512, max_rows=32)
    assert [len(batch) for batch in batches] == sizes


def test_no_rows_no_batches():
    """Nothing to do makes no batch."""
    assert plan(np.array([], np.int64), token_budget=10, max_rows=2) == []


def test_rows_are_padded_on_the_right():
    """Padding is id 0 under mask 0, behind the real tokens; types go along."""
    tokens = tokens_of([5, 6, 7], [8], [9, 10], types=True)
    pool = BufferPool(1 << 20)
    with collate(tokens, np.array([2, 0]), pool, model="m", task="embed", due=1.0, priority="bulk") as batch:
        assert batch.input_ids.tolist() == [[9, 10, 0], [5, 6, 7]]
        assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
        assert batch.type_ids.tolist() == [[1, 0, 0], [1, 0, 1]]
        assert (batch.rows, batch.tokens, batch.due, batch.priority) == (2, 5, 1.0, "bulk")
        assert all(array.flags.c_contiguous for array in (batch.input_ids, batch.attention_mask))


def test_used_memory_does_not_shine_through():
    """Padding is clean also in memory that another batch has used."""
    pool = BufferPool(1 << 14)
    with collate(tokens_of([7] * 50, [7] * 50), np.arange(2), pool, model="m", task="embed"):
        pass
    with collate(tokens_of([1], [2, 3]), np.arange(2), pool, model="m", task="embed") as batch:
        assert batch.input_ids.tolist() == [[1, 0], [2, 3]]
        assert batch.attention_mask.tolist() == [[1, 0], [1, 1]]
    assert pool.statistics().reuses == 1


def test_memory_comes_back_from_a_failed_batch():
    """A batch that ends in an error has returned its memory."""
    pool = BufferPool(1 << 14)
    with (
        pytest.raises(RuntimeError),
        collate(tokens_of([1], types=True), np.arange(1), pool, model="m", task="embed"),
    ):
        raise RuntimeError
    assert pool.statistics().leases == 0


def test_rows_without_tokens():
    """Texts without a single token still make a batch one column wide."""
    with collate(tokens_of([], []), np.arange(2), BufferPool(1 << 14), model="m", task="embed") as batch:
        assert batch.input_ids.shape == (2, 1)
        assert batch.attention_mask.sum() == 0


def test_a_batch_that_cannot_fit_is_refused():
    """A batch whose matrices together exceed the pool is refused at once; it must not wait for itself."""
    pool = BufferPool(1 << 14)
    tokens = tokens_of([1] * 1500)  # 12 kB a matrix, two matrices, 16 kB in all
    outcome = []

    def attempt():
        try:
            with collate(tokens, np.arange(1), pool, model="m", task="embed"):
                outcome.append("lent")
        except ConfigurationError:
            outcome.append("refused")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome == ["refused"]


def test_batches_do_not_wait_for_each_other():
    """Batches that together exceed the pool run one after another; none holds half and waits."""
    pool = BufferPool(1 << 14)
    tokens = tokens_of([1] * 600, types=True)
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(50):
            with collate(tokens, np.arange(1), pool, model="m", task="embed"):
                pass

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    with ExitStack() as joined:
        for thread in threads:
            thread.start()
            joined.callback(thread.join, 20)
    assert not any(thread.is_alive() for thread in threads)
    assert pool.statistics().leases == 0
