"""From packed tokens to padded batches and back: plan, collate, scatter.

Rows are sorted by length and batches filled by a token budget (rows x longest), so that almost
nothing is computed for padding. `scatter` undoes what `plan` reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from resilient_ai._inference.buffers import BufferPool
from resilient_ai.values import Batch, FloatArray, IntArray, Priority, Task, Tokens

__all__ = ["collate", "plan", "scatter", "shared_load"]

_BATCHES_WORTH = 16
"""What can be run at once costs so many times what a batch costs beside its tokens.

That is 32 tokens on a CPU: what small batches lose there is the time of about 28 with MiniLM, and of 20
with a model of 0.6B parameters, whose weights have to be read each time.
"""

_ATTENDED = 4
"""Common tokens that take as much memory in each row as one token of its own.

Of a common token a row has keys and values in one layer at a time; of its own it has all that is
computed.
"""


def plan(lengths: IntArray, *, token_budget: int, max_rows: int) -> list[IntArray]:
    """Split rows into batches; return each batch's row numbers, the longest rows first.

    Each batch holds at most `max_rows` rows and `token_budget` tokens, padding included; a row
    longer than the budget makes a batch of its own. A batch ends sooner where the padding that it
    saves is worth another batch. Every row is in exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(falling[start]))
        most = min(max_rows, max(1, token_budget // longest))
        rows = _worth_one_batch(falling[start : start + most], token_budget // _BATCHES_WORTH)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def _worth_one_batch(falling: IntArray, price: int) -> int:
    """How many of these rows, the longest first, go into one batch, if another costs `price` tokens."""
    longest, most = falling[0], len(falling)
    if (longest - falling[-1]) * (most - 1) <= price:
        return most
    saved = (longest - falling[1:]) * np.arange(most - 1, 0, -1)
    best = int(np.argmax(saved))
    return best + 1 if saved[best] > price else most


def shared_load(task: Task, shared_ids: IntArray | None) -> int:
    """By how much each row counts as longer, in planning and cutting, for what all rows begin with."""
    return 0 if task != "score" or shared_ids is None else -(-len(shared_ids) // _ATTENDED)


@contextmanager
def collate(
    tokens: Tokens,
    rows: IntArray,
    pool: BufferPool,
    *,
    model: str,
    task: Task,
    shared_ids: IntArray | None = None,
    due: float | None = None,
    deadline: float | None = None,
    priority: Priority = "interactive",
) -> Iterator[Batch]:
    """Lend a batch of the given rows, right-padded with id 0 under a zero mask.

    The batch's matrices belong to `pool` and are taken back when the context ends.
    """
    lengths = tokens.lengths[rows]
    shape = (len(rows), max(1, int(lengths.max(initial=0))))
    # One lease for all: who holds a part and waits for the rest may wait for somebody who does the same.
    with pool.lease((2 if tokens.type_ids is None else 3, *shape), np.int64) as (ids, mask, *rest):
        np.less(np.arange(shape[1]), lengths[:, None], out=mask, casting="unsafe")
        _fill(ids, tokens.ids, tokens.offsets, rows)
        types = rest[0] if rest else None
        if types is not None and tokens.type_ids is not None:
            _fill(types, tokens.type_ids, tokens.offsets, rows)
        yield Batch(
            model=model,
            task=task,
            input_ids=ids,
            attention_mask=mask,
            lengths=lengths,
            type_ids=types,
            shared_ids=shared_ids,
            due=due,
            deadline=deadline,
            priority=priority,
        )


def scatter(values: FloatArray, rows: IntArray, out: FloatArray) -> None:
    """Put a batch's rows back where `plan` took them from."""
    out[rows] = values


def _fill(matrix: IntArray, packed: IntArray, offsets: IntArray, rows: IntArray) -> None:
    matrix.fill(0)
    for place, row in enumerate(rows):
        start, end = offsets[row], offsets[row + 1]
        matrix[place, : end - start] = packed[start:end]
