"""The learned size of batches: it halves, it comes back, it seldom asks for too much, it asks for a row at least."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_ai._resilience.failures import Classifier
from resilient_ai._serving.attempts import Attempts
from resilient_ai._serving.pieces import Ceiling, cut, join
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.stats import Ledger
from resilient_ai._serving.tier import GuardedDevice
from resilient_ai._telemetry.events import EventBus
from resilient_ai.testing import FakeBackend, batch_of

MOST = 16_384
STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 3 * MOST)), max_size=80)
ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=12)


@given(steps=STEPS, initial=st.none() | st.integers(1, 2 * MOST))
def test_a_ceiling_keeps_within_its_bounds(steps, initial):
    """Between 1 and its budget, at most half of what did not fit, and told of whenever it moves."""
    told = []
    ceiling = Ceiling(most=MOST, initial=initial, on_change=told.append)
    assert ceiling.tokens == min(MOST, MOST if initial is None else initial)
    for fitted, size in steps:
        before, heard = ceiling.tokens, len(told)
        if fitted:
            ceiling.fitted(size)
            assert before <= ceiling.tokens <= max(before, min(MOST, before * 1.05))
        else:
            assert ceiling.lower(size) == int(ceiling.tokens) <= max(1, size / 2)
            assert ceiling.tokens <= before
        assert 1 <= ceiling.tokens <= MOST
        assert told[heard:] == ([] if ceiling.tokens == before else [int(ceiling.tokens)])


@given(failed=st.integers(2, MOST), sizes=st.lists(st.integers(1, 1_000), max_size=300))
def test_nothing_grows_far_above_what_is_sent(failed, sizes):
    """However many batches fit, the ceiling stays near twice the largest of them, or where it was."""
    ceiling = Ceiling()
    lowered = ceiling.lower(failed)
    for size in sizes:
        ceiling.fitted(size)
    assert ceiling.tokens <= max(lowered, 2.1 * max(sizes, default=1))


class Card:
    """Memory for so many tokens, and batches as the ceiling allows them; counts those that do not fit."""

    def __init__(self, capacity, ceiling):
        self.capacity, self.ceiling = capacity, ceiling
        self.failed = self.sent = 0

    def run(self, size):
        """A batch planned for `size` tokens; it is halved as the failover layer does it."""
        if size > self.ceiling.tokens and size > 1:
            self.run(size // 2)
            self.run(size - size // 2)
            return
        self.sent += 1
        if size > self.capacity:
            self.failed += 1
            self.ceiling.lower(size)
            self.run(size)
        else:
            self.ceiling.fitted(size)


@pytest.mark.parametrize("capacity", [100, 5_000, 8_500, 12_000, 16_000])
@pytest.mark.parametrize("least", [0.6, 1.0])
def test_a_card_that_stays_short_seldom_fails(capacity, least):
    """With less memory than the budget for good, one batch in two hundred does not fit, at most."""
    rng = random.Random(capacity)
    card = Card(capacity, Ceiling(most=MOST))
    for _ in range(10_000):
        card.run(max(1, int(card.ceiling.tokens * rng.uniform(least, 1.0))))
    assert 0 < card.failed <= card.sent / 200


def test_small_batches_at_the_top_prove_nothing():
    """Where only a full batch is too large, and full ones are seldom, it is not tried again each time."""
    card = Card(15_000, Ceiling(most=MOST))
    for number in range(20_000):
        card.run(int(card.ceiling.tokens * (1.0 if number % 150 == 0 else 0.7)))
    assert 0 < card.failed <= card.sent / 400


@pytest.mark.parametrize("batches", [0, 10_000])
def test_memory_that_is_free_again_is_used_again(batches):
    """Soon after a single shortage, and within some thousand batches after a long one, all is as before."""
    card = Card(3_000, Ceiling(most=MOST))
    card.run(MOST)
    for _ in range(batches):
        card.run(int(card.ceiling.tokens))
    card.capacity = MOST
    assert card.ceiling.tokens < MOST / 4
    for _ in range(4_000 if batches else 60):
        card.run(int(card.ceiling.tokens))
    assert card.ceiling.tokens == MOST


def test_patience_falls_again_where_all_goes_well():
    """After long good times a new shortage is met as the first one was: the way back is short again."""
    card = Card(9_000, Ceiling(most=MOST))
    for _ in range(5_000):
        card.run(int(card.ceiling.tokens))
    card.capacity = MOST
    for _ in range(6_000):
        card.run(int(card.ceiling.tokens))
    card.ceiling.lower(MOST)
    for _ in range(20):
        card.run(int(card.ceiling.tokens))
    assert card.ceiling.tokens == MOST


@given(rows=ROWS, capacity=st.integers(12, 150), most=st.integers(1, 200))
def test_whatever_the_memory_no_row_is_left_behind(rows, capacity, most):
    """On a device with room for one row at least, every batch is answered, a row alone if need be.

    The ceiling falls to half of what did not fit, so never below half of what does.
    """

    def room(batch):
        if batch.input_ids.size > capacity:
            raise RuntimeError("CUDA failure 2: out of memory")

    policy = FallbackPolicy(verify="off")
    device = GuardedDevice(FakeBackend("gpu", before=room), policy)
    device.ceiling = Ceiling(most=most)
    attempts = Attempts(policy, Classifier().classify, ledger=Ledger(("gpu", "cpu")), events=EventBus())
    batch = batch_of(*rows)
    answer = attempts.run(device, batch, give_up=device._clock() + 30)
    np.testing.assert_array_equal(answer.values, FakeBackend("gpu").answer(batch).values)
    assert device.ceiling.tokens >= min(most, capacity // 2)
    assert all(call.rows == 1 or call.input_ids.size <= most for call in device.backend.calls)
    device.close()


@given(rows=ROWS, tokens=st.integers(1, 200))
def test_cut_pieces_are_whole_small_and_in_order(rows, tokens):
    """Every row is in one piece, in order; pieces keep to the size, and no two neighbours could be one."""
    batch = batch_of(*rows)
    pieces = cut(batch, tokens)
    kept = [
        ids[:length].tolist()
        for piece in pieces
        for ids, length in zip(piece.input_ids, piece.lengths, strict=True)
    ]
    assert kept == rows
    assert all(piece.rows == 1 or piece.input_ids.size <= tokens for piece in pieces)
    for one, other in pairwise(pieces):
        widest = max(one.input_ids.shape[1], int(other.lengths[0]))
        assert (one.rows + 1) * widest > tokens
    fake = FakeBackend("cpu")
    together = join([fake.answer(piece) for piece in pieces])
    np.testing.assert_array_equal(together.values, fake.answer(batch).values)
