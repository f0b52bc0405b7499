"""Pooling, normalising and scoring, against loops that anyone can read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resilient_ai._inference.pooling import l2_normalize, maxsim, pool, sigmoid
from resilient_ai.errors import ConfigurationError

HOW = ["cls", "mean", "max", "last_token"]


def plain_pool(hidden, mask, how):
    """One row at a time, over a list of its real tokens."""
    out = []
    for row, kept in zip(hidden, mask, strict=True):
        real = [vector for vector, keep in zip(row, kept, strict=True) if keep]
        out.append(
            {
                "cls": lambda real=real, row=row: row[0],
                "last_token": lambda real=real: real[-1],
                "mean": lambda real=real: np.mean(real, axis=0, dtype=np.float64),
                "max": lambda real=real: np.max(real, axis=0),
            }[how]()
        )
    return np.array(out, np.float32)


@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(6, 9, 5)).astype(np.float32)
    mask = (np.arange(9) < rng.integers(1, 10, 6)[:, None]).astype(np.int64)
    return hidden, mask


@pytest.mark.parametrize("how", HOW)
def test_pooling(case, how):
    """Every pooling reads real tokens alone and gives contiguous float32."""
    hidden, mask = case
    got = pool(hidden, mask, how)
    np.testing.assert_allclose(got, plain_pool(hidden, mask, how), atol=1e-6)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous


@pytest.mark.parametrize("how", ["mean", "max", "last_token"])
def test_padding_on_the_left(case, how):
    """Where padding is does not matter but to "cls"."""
    hidden, mask = case
    np.testing.assert_allclose(
        pool(hidden, mask[:, ::-1], how), plain_pool(hidden, mask[:, ::-1], how), atol=1e-6
    )


@pytest.mark.parametrize("how", HOW)
def test_a_row_without_tokens(case, how):
    """A row without any real token gives a zero vector, by every pooling."""
    hidden, mask = case
    mask[2] = 0
    got = pool(hidden, mask, how)
    assert not got[2].any()
    assert got[[0, 1, 3]].any(axis=1).all()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_garbage_stays_visible(case, how, garbage):
    """NaN and infinity in real tokens come through: those who check answers must see them."""
    hidden, mask = case
    hidden[1, mask[1] == 1] = garbage
    got = pool(hidden, mask, how)
    assert not np.isfinite(got[1]).any()
    assert np.isfinite(got[[0, 2, 3, 4, 5]]).all()


def test_an_unknown_pooling(case):
    """An unknown pooling is refused by name."""
    with pytest.raises(ConfigurationError, match="median"):
        pool(*case, "median")


def test_l2_normalize():
    """Rows become unit vectors; a zero row stays zero and finite."""
    vectors = np.array([[3, 4], [0, 0], [1e-3, 0], [1e15, 1e15]], np.float32)
    got = l2_normalize(vectors)
    np.testing.assert_allclose(got, [[0.6, 0.8], [0, 0], [1, 0], [0.70710677, 0.70710677]], rtol=1e-6)
    assert got.dtype == np.float32


def test_l2_normalize_of_token_matrices():
    """The last axis is the one that is scaled."""
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(l2_normalize(vectors), axis=2), 1, rtol=1e-6)


def test_sigmoid_at_both_ends():
    """Exact in the middle and at the ends, without a warning of overflow."""
    logits = np.array([-1e30, -200, -88.8, -5, 0, 5, 88.8, 200, 1e30, -np.inf, np.inf], np.float32)
    expected = [0, 0, math.exp(-88.8), 1 / (1 + math.exp(5)), 0.5, 1 / (1 + math.exp(-5)), 1, 1, 1, 0, 1]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = sigmoid(logits)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-38)
    assert got.dtype == np.float32


def test_maxsim(case):
    """For each query token the best cosine among the row's real tokens, averaged."""
    hidden, mask = case
    query = l2_normalize(np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32))
    expected = []
    for row, kept in zip(hidden, mask, strict=True):
        best = [max(float(q @ (d / np.linalg.norm(d))) for d in row[kept == 1]) for q in query]
        expected.append(sum(best) / len(best))
    hidden[mask == 0] = 1e6  # whatever stands under the mask
    np.testing.assert_allclose(maxsim(query, hidden, mask), expected, atol=1e-6)


def test_maxsim_does_not_change_its_input(case):
    """The hidden states belong to the caller."""
    hidden, mask = case
    kept = hidden.copy()
    maxsim(l2_normalize(hidden[0, :2].copy()), hidden, mask)
    assert (hidden == kept).all()
