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

_ATTENDED = 4
"""Common tokens that take as much memory in each row as one token of its own.

Of a common token a row has keys and values in one layer at a time; of its own it has all that is
computed.
"""


def plan(lengths: IntArray, *, token_budget: int, max_rows: int) -> list[IntArray]:
    """Split rows into batches; return each batch's row numbers, the longest rows first.

    Each batch holds at most `max_rows` rows and `token_budget` tokens, padding included; a row
    longer than the budget makes a batch of its own. Every row is in exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = min(max_rows, max(1, token_budget // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


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
