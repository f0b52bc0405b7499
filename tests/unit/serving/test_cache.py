"""The cache keeps what was asked for last, and nothing of bulk runs."""

from __future__ import annotations

import numpy as np
import pytest

from resilient_ai._serving.cache import CachedVector, VectorCache


def vector(number):
    return CachedVector(np.full(2, number, np.float32), 3, truncated=False, served_by="cpu")


def test_hits_and_misses():
    """What was kept is found and counted, what was not is counted too."""
    cache = VectorCache(8)
    cache.keep(["a", "b"], [vector(1), vector(2)])
    found = cache.look_up(["b", "c", "a"])
    assert [one and one.vector[0] for one in found] == [2, None, 1]
    told = cache.figures()
    assert (told.size, told.capacity, told.hits, told.misses) == (2, 8, 2, 1)
    cache.clear()
    assert cache.figures().size == 0


def test_the_oldest_goes():
    """Beyond the capacity what was asked for longest ago goes."""
    cache = VectorCache(2)
    cache.keep(["a", "b"], [vector(1), vector(2)])
    cache.look_up(["a"])
    cache.keep(["c"], [vector(3)])
    assert [one is not None for one in cache.look_up(["a", "b", "c"])] == [True, False, True]


@pytest.mark.parametrize(
    ("capacity", "texts", "admitted"),
    [(0, 1, False), (100, 25, True), (100, 26, False), (1, 1, True), (1, 2, False), (100, 0, False)],
)
def test_who_is_admitted(capacity, texts, admitted):
    """Calls of up to a quarter of the capacity are kept; a capacity of 0 keeps nothing."""
    assert VectorCache(capacity).admits(texts) is admitted
