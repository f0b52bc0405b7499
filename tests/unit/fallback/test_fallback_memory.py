"""A device whose memory is too small for a batch: pieces, their order, and the ceiling."""

from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import CANARY, OUT_OF_MEMORY, TwoDevices, two_devices

from resilient_ai._resilience.breaker import State
from resilient_ai._serving.pieces import Ceiling, halve
from resilient_ai._telemetry.events import BatchSplit
from resilient_ai.testing import FakeBackend, FaultPlan, FaultRule, FaultyBackend, OutOfMemory, batch_of


class Small(FakeBackend):
    """A device with room for so many tokens."""

    def __init__(self, tokens, device="gpu"):
        super().__init__(device)
        self.tokens = tokens
        self.fitted = []

    def run(self, batch):
        if batch.input_ids.size > self.tokens:
            super().run(batch)
            raise RuntimeError(OUT_OF_MEMORY)
        self.fitted.append(batch.rows)
        return super().run(batch)


def rows_of(*lengths):
    return batch_of(*([row + 1] * length for row, length in enumerate(lengths)))


def test_a_batch_too_large_is_run_in_halves_in_order():
    """Pieces give the same values in the same order as the whole; the breaker counts nothing."""
    batch = rows_of(8, 7, 6, 5, 4, 3, 2, 1)
    with two_devices(Small(24)) as two:
        answer = two.run(batch)
        assert (answer.device, answer.degraded) == ("gpu", False)
        np.testing.assert_array_equal(answer.values, two.cpu.answer(batch).values)
        assert two.counted.failures == 0
        assert two.cpu.calls == ()
        assert two.manager.stats().splits == len(two.told(BatchSplit)) > 0


def test_type_ids_and_shared_ids_go_with_their_rows():
    """The pieces carry the types of their own rows and the query that belongs to all of them."""
    batch = rows_of(6, 5, 4, 3)
    types = (np.arange(batch.input_ids.size).reshape(batch.input_ids.shape) % 2) * batch.attention_mask
    batch = replace(batch, task="maxsim", type_ids=types, shared_ids=np.array([9, 8, 7]))
    with two_devices(Small(12)) as two:
        answer = two.run(batch)
        np.testing.assert_array_equal(answer.values, two.cpu.answer(batch).values)
        assert len(answer.values) == 4


def test_later_batches_are_cut_before_they_fail():
    """What did not fit is not tried again: the next batch of that size is cut first."""
    batch = rows_of(8, 8, 8, 8)
    with two_devices(Small(16)) as two:
        two.run(batch)
        splits = two.manager.stats().splits
        asked = len(two.gpu.calls)
        two.run(batch)
        assert two.manager.stats().splits == splits
        assert all(call.input_ids.size <= 16 for call in two.gpu.calls[asked:])


def test_the_ceiling_recovers():
    """When memory is free again, batches near the ceiling raise it until the whole fits."""
    batch = rows_of(8, 8, 8, 8)
    with two_devices(Small(16)) as two:
        two.run(batch)
        two.gpu.tokens = 1000
        for _ in range(40):
            two.run(batch)
        assert two.gpu.fitted[-1] == 4


def test_only_a_single_row_that_does_not_fit_counts():
    """A row that alone is too large is a failure of the call, and the CPU answers."""
    with two_devices(Small(4), error_threshold=2) as two:
        answer = two.run(rows_of(8))
        assert answer.device == "cpu"
        assert two.counted.failures == 1
        assert two.state is State.CLOSED
        two.run(rows_of(8))
        assert two.is_open()


def test_a_single_row_that_does_not_fit_is_not_run_twice():
    """Without a canary in the batch there is nothing to leave out, so it is not tried again."""
    with two_devices(Small(4)) as two:
        two.run(rows_of(8))
        assert len(two.gpu.calls) == 1


@pytest.mark.parametrize("verify", ["every", "sampled"])
def test_the_canary_does_not_make_a_row_too_large(verify):
    """A row that fits alone but not beside the canary is run apart from it, and still verified."""
    gpu = FaultyBackend(FakeBackend("gpu"))
    two = TwoDevices(gpu, verify=verify, error_threshold=1)
    two.prober(canaries=(CANARY,))._examine(two.guard)
    gpu.set_plan(FaultPlan((FaultRule(OutOfMemory(above_rows=1)),)))
    for _ in range(30):
        assert two.run(rows_of(20)).device == "gpu"
    two.manager.close()
    assert two.counted.failures == 0


def test_wrong_values_are_found_when_the_canary_runs_apart():
    """A row and its canary that ran apart are judged together: a wrong canary discards the row."""

    def compute(batch):
        if batch.rows > 1:
            raise RuntimeError(OUT_OF_MEMORY)
        return np.roll(right.answer(batch).values, 1, axis=1)

    right = FakeBackend("cpu")
    two = TwoDevices(verify="every")
    two.prober(canaries=(CANARY,))._examine(two.guard)
    two.gpu._compute = compute
    answer = two.run(rows_of(20))
    two.manager.close()
    assert answer.device == "cpu"
    assert two.manager.stats().failures == {"corrupt": 1}


def test_halves_are_as_wide_as_their_longest_row():
    """Cutting leaves out the padding that only the other half needed."""
    first, second = halve(rows_of(9, 8, 2, 1))
    assert (first.input_ids.shape, second.input_ids.shape) == ((2, 9), (2, 2))


def test_an_odd_batch_is_cut_without_losing_a_row():
    """Three rows become two and one."""
    first, second = halve(rows_of(3, 2, 1))
    assert (first.rows, second.rows) == (2, 1)


def test_the_ceiling_never_falls_below_one_token():
    """However small the batch that did not fit, something can be sent."""
    ceiling = Ceiling()
    for _ in range(20):
        ceiling.lower(1)
    assert ceiling.tokens == 1
    ceiling.fitted(1)
    assert ceiling.tokens > 1
