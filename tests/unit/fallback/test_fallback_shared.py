"""Scores of rows that begin alike, on devices that may fail: proved, verified and cut like all others."""

from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import ROWS, TwoDevices

from resilient_ai._inference.batching import shared_load
from resilient_ai._inference.prompts import SharedTokens
from resilient_ai._serving.canary import canary_batches
from resilient_ai._serving.pieces import cut
from resilient_ai._serving.validation import CorruptAnswer
from resilient_ai._serving.verifier import Verifier
from resilient_ai.testing import FakeBackend, batch_of
from resilient_ai.values import Tokens

BEGINNING = np.array([50, 51, 52, 53, 54])
OWN = ([1, 2, 3], [4], [5, 6, 7, 8])
RIGHT = FakeBackend("cpu")


def packed(rows):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Tokens(np.concatenate(rows).astype(np.int64), offsets, np.zeros(len(rows), np.bool_))


def shared_batch(*rows, beginning=BEGINNING):
    return replace(batch_of(*rows, task="score"), shared_ids=beginning)


CANARIES = canary_batches(
    packed([[*BEGINNING, *OWN[0]], [9, 9, 9]]),
    model="fake",
    task="score",
    longest=16,
    token_budget=64,
    max_rows=8,
    shared=SharedTokens(BEGINNING, packed(OWN)),
)


class BadAtSharing(FakeBackend):
    """A device that scores whole rows rightly, and forgets what rows begin with from `turns` batches on."""

    def __init__(self, turns=0):
        super().__init__("gpu")
        self._left = turns

    def answer(self, batch):
        if batch.shared_ids is not None:
            self._left -= 1
            if self._left < 0:
                return super().answer(replace(batch, shared_ids=None))
        return super().answer(batch)


def test_the_third_canary_has_a_common_beginning():
    """Where rows may begin alike, a device is proved with such rows, too."""
    assert [canary.shared_ids is None for canary in CANARIES] == [True, True, False]
    assert CANARIES[2].shared_ids.tolist() == BEGINNING.tolist()
    assert CANARIES[2].lengths.tolist() == [3, 1, 4]


def test_a_device_that_cannot_share_does_not_come_in():
    """It answers whole rows rightly, and yet the CPU serves."""
    two = TwoDevices(BadAtSharing())
    failure = two.prober(canaries=CANARIES)._examine(two.guard)
    assert failure is not None
    assert "agreement" in failure.text
    assert two.prober(canaries=CANARIES[:2])._examine(two.guard) is None
    two.manager.close()


def test_a_device_that_shares_wrongly_later_is_found_out():
    """With every batch verified, no score of rows that begin alike goes out wrong."""
    two = TwoDevices(BadAtSharing(turns=5), verify="every", recovery_time=1000.0)
    assert two.prober(canaries=CANARIES)._examine(two.guard) is None
    batch = shared_batch(*ROWS)
    devices = []
    for _ in range(6):
        answer = two.run(batch)
        devices.append(answer.device)
        np.testing.assert_array_equal(answer.values, RIGHT.answer(batch).values)
    assert devices[0] == "gpu"
    assert devices[-1] == "cpu"
    assert two.manager.stats().failures["corrupt"] == 1
    two.manager.close()


def test_such_a_batch_is_followed_by_the_canary_in_two_parts():
    """The canary is computed the same way as the rows it vouches for."""
    two = TwoDevices(verify="every")
    assert two.prober(canaries=CANARIES)._examine(two.guard) is None
    two.run(shared_batch(*ROWS, beginning=np.array([1, 2])))
    scored, canary = two.gpu.calls[-2:]
    assert scored.rows == len(ROWS)
    assert canary.shared_ids.tolist() == BEGINNING.tolist()
    assert canary.input_ids.tolist() == [OWN[0]]
    two.run(batch_of(*ROWS, task="score"))
    assert two.gpu.calls[-1].rows == len(ROWS) + 1  # a whole row rides along
    two.manager.close()


@pytest.mark.parametrize("shared", [0, 3])
def test_a_verifier_finds_a_wrong_score(shared):
    """Whole or in two parts, the canary must have its own score."""
    ids = np.array([1, 2, 3, 4, 5])
    verifier = Verifier(
        ids,
        {"score": RIGHT.answer(batch_of(ids, task="score")).values},
        limit=0.99,
        mode="every",
        shared=shared,
    )
    canary = verifier.alone(shared_batch(*ROWS))
    assert (canary.shared_ids is None) == (shared == 0)
    verifier.check(canary, RIGHT.answer(canary))
    wrong = RIGHT.answer(canary)
    wrong.values[:] = -5
    with pytest.raises(CorruptAnswer):
        verifier.check(canary, wrong)


@pytest.mark.parametrize(("tokens", "load"), [(0, 0), (1, 1), (4, 1), (5, 2), (88, 22)])
def test_what_rows_begin_with_counts_a_quarter(tokens, load):
    """It is computed once, but takes memory in every row."""
    assert shared_load("score", np.zeros(tokens, np.int64)) == load
    assert shared_load("maxsim", np.zeros(tokens, np.int64)) == shared_load("score", None) == 0


def test_a_batch_is_cut_with_what_its_rows_begin_with():
    """Pieces hold so many rows as fit together with the beginning, each with the beginning, in order."""
    batch = shared_batch(*([row] * 6 for row in range(1, 11)), beginning=np.arange(16))
    assert cut(batch, 100) == [batch]
    pieces = cut(batch, 40)
    assert [piece.rows for piece in pieces] == [4, 4, 2]
    assert all(piece.shared_ids is batch.shared_ids for piece in pieces)
    np.testing.assert_array_equal(np.concatenate([piece.input_ids for piece in pieces]), batch.input_ids)
    assert len(cut(batch, 1)) == 10
