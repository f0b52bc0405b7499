"""Common beginnings are computed once, as far as they are common, and kept within bounds."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from resilient_ai import errors
from resilient_ai._inference.prefix import PrefixCache

PER_TOKEN = 4 * 2 * 3 * 5
"""Bytes of the states of one token here: two layers' keys and values, three heads of five numbers."""


class Decoder:
    """States that tell which token they are of and where it stands; `runs` are the tokens computed."""

    def __init__(self, spoil=None):
        self.runs = []
        self._spoil = spoil

    def __call__(self, before, ids):
        self.runs.append(ids.tolist())
        places = np.arange(before.shape[2], before.shape[2] + ids.size)
        states = np.broadcast_to((ids * 1000 + places)[None, None, :, None], (2, 3, ids.size, 5))
        return np.full_like(states, self._spoil, np.float32) if self._spoil else states.astype(np.float32)


def cache(decoder, tokens=100):
    return PrefixCache(decoder, np.zeros((2, 3, 0, 5), np.float32), max_bytes=tokens * PER_TOKEN)


def right(ids):
    """What the states of these ids must be."""
    return Decoder()(np.zeros((2, 3, 0, 5)), np.array(ids))


def asked(made, *ids):
    states = made.states(np.array(ids, np.int64))
    np.testing.assert_array_equal(states, right(ids))
    return states


@pytest.mark.parametrize("ids", [None, np.array([], np.int64)])
def test_nothing_in_common_has_no_states(ids):
    """Rows that share nothing start from states of length 0, and nothing is computed."""
    decoder = Decoder()
    assert cache(decoder).states(ids).shape == (2, 3, 0, 5)
    assert decoder.runs == []


def test_the_same_beginning_is_computed_once():
    """What was asked for before is there."""
    decoder = Decoder()
    made = cache(decoder)
    assert asked(made, 4, 5, 6) is asked(made, 4, 5, 6)
    assert decoder.runs == [[4, 5, 6]]


def test_only_what_differs_is_computed():
    """Another beginning goes on from where it leaves the known one that it follows longest."""
    decoder = Decoder()
    made = cache(decoder)
    for ids in ([1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 7, 8], [1, 2, 9, 9], [5, 1]):
        asked(made, *ids)
    assert decoder.runs == [[1, 2, 3, 4], [9], [7, 8], [9], [5, 1]]


def test_the_beginning_of_a_beginning_is_known():
    """What something kept begins with need not be computed."""
    decoder = Decoder()
    made = cache(decoder)
    asked(made, 1, 2, 3, 4)
    asked(made, 1, 2)
    asked(made, 1, 2)
    assert decoder.runs == [[1, 2, 3, 4]]


def test_the_oldest_goes_first():
    """Beyond its bytes the cache forgets what was not asked for the longest time."""
    decoder = Decoder()
    made = cache(decoder, tokens=6)
    for first in (1, 2, 1, 3):  # 2 has to go for 3
        asked(made, first, 0, 0)
    decoder.runs.clear()
    asked(made, 1, 0, 0)
    assert decoder.runs == []
    asked(made, 2, 0, 0)
    assert decoder.runs == [[2, 0, 0]]


def test_the_latest_is_kept_whatever_it_weighs():
    """The batches of one call never compute their beginning twice, however long it is."""
    decoder = Decoder()
    made = cache(decoder, tokens=2)
    asked(made, *range(10))
    asked(made, *range(10))
    assert len(decoder.runs) == 1
    asked(made, 77)
    assert "1 beginnings" in repr(made)


def test_what_is_asked_with_is_not_held_on_to():
    """The caller may use the array of its ids again."""
    made = cache(Decoder())
    ids = np.array([1, 2, 3])
    made.states(ids)
    ids[:] = 9
    asked(made, 1, 2, 3)
    asked(made, 9, 9, 9)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_are_no_numbers_is_not_kept(number):
    """A device that fails once fails one batch, and not all that begin alike."""
    decoder = Decoder(spoil=number)
    made = cache(decoder)
    for _ in range(2):
        with pytest.raises(errors.DeviceFailed, match="NaN"):
            made.states(np.array([1, 2]))
    assert len(decoder.runs) == 2


def test_all_is_forgotten_on_demand():
    """After `clear` a beginning is computed again."""
    decoder = Decoder()
    made = cache(decoder)
    asked(made, 1, 2)
    made.clear()
    asked(made, 1, 2)
    assert decoder.runs == [[1, 2], [1, 2]]


def test_threads_may_ask_for_the_same_at_once():
    """Whoever comes first, everybody gets the right states, and one of them is kept."""
    gate = threading.Barrier(4)
    decoder = Decoder()
    made = cache(lambda before, ids: (gate.wait(10), decoder(before, ids))[1])
    got = []
    threads = [threading.Thread(target=lambda: got.append(asked(made, 1, 2, 3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(got) == 4
    assert "1 beginnings" in repr(made)
