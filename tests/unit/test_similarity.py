"""Cosine, nearest rows and late interaction, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from resilient_ai.errors import InvalidInput
from resilient_ai.similarity import cosine, maxsim, sparse_dot, top_k, weighted_three_way
from resilient_ai.values import MultiEmbeddings

RNG = np.random.default_rng(3)


def plain_cosine(a, b):
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


class TestCosine:
    def test_shapes(self):
        """One vector or many on either side give a float, an array or a table."""
        a, b = RNG.normal(size=(3, 5)), RNG.normal(size=(4, 5))
        table = cosine(a, b)
        assert table.shape == (3, 4)
        assert table.dtype == np.float32
        assert cosine(a[0], b).shape == (4,)
        assert cosine(a, b[0]).shape == (3,)
        assert isinstance(cosine(a[0], b[0]), float)
        assert cosine(a[:1], b[:1]).shape == (1, 1)

    def test_values(self):
        """Every entry is the cosine of its two rows, whatever their lengths."""
        a, b = RNG.normal(size=(3, 5)) * 100, RNG.normal(size=(4, 5)) / 100
        expected = [[plain_cosine(x, y) for y in b] for x in a]
        np.testing.assert_allclose(cosine(a, b), expected, atol=1e-6)

    def test_extremes(self):
        """The same direction gives 1, the opposite -1, never more; a zero vector gives 0."""
        v = RNG.normal(size=384)
        assert cosine(v, v * 7) == pytest.approx(1, abs=1e-6)
        assert -1 <= cosine(v, -v) <= -1 + 1e-6
        assert cosine(v, np.zeros(384)) == 0.0
        many = RNG.normal(size=(200, 7))
        assert np.abs(cosine(many, many)).max() <= 1

    @pytest.mark.parametrize(
        "bad", ["text", ["a"], [[1.0], [1.0, 2.0]], [], 1.0, np.zeros((2, 2, 2)), np.zeros((2, 0)), None]
    )
    def test_what_is_no_vector(self, bad):
        """What is neither a vector nor a matrix is the caller's error."""
        with pytest.raises(InvalidInput):
            cosine(bad, [1.0, 2.0])

    def test_dimensions_must_fit(self):
        """Vectors of two models cannot be compared, and the message says so."""
        with pytest.raises(InvalidInput, match="same model"):
            cosine(np.ones(3), np.ones(4))


class TestTopK:
    def test_the_best_come_first(self):
        """Rows come by falling cosine, with their numbers."""
        query, rows = RNG.normal(size=8), RNG.normal(size=(50, 8))
        places, scores = top_k(query, rows, 5)
        expected = sorted(range(50), key=lambda i: -plain_cosine(query, rows[i]))[:5]
        assert places.tolist() == expected
        np.testing.assert_allclose(scores, [plain_cosine(query, rows[i]) for i in expected], atol=1e-6)

    def test_ties_and_few_rows(self):
        """Ties keep the rows' order, and k may exceed the number of rows."""
        rows = np.array([[1.0, 0], [0, 1], [1, 0], [2, 0]])
        places, _ = top_k([1.0, 0], rows, 100)
        assert places.tolist() == [0, 2, 3, 1]

    def test_no_rows(self):
        """Of no rows there are none."""
        places, scores = top_k([1.0, 0], np.zeros((0, 2)), 3)
        assert (len(places), len(scores)) == (0, 0)

    @pytest.mark.parametrize("k", [0, -1, True, 1.5, None, "3"])
    def test_a_strange_k(self, k):
        """The number asked for is whole and at least 1."""
        with pytest.raises(InvalidInput):
            top_k([1.0], [[1.0]], k)

    def test_one_query_at_a_time(self):
        """A matrix of queries is refused, not silently cut to its first row."""
        with pytest.raises(InvalidInput):
            top_k(np.ones((2, 3)), np.ones((4, 3)), 1)


class TestMaxsim:
    def test_values(self):
        """The mean over the query's tokens of the best cosine among the document's."""
        query, document = RNG.normal(size=(4, 6)), RNG.normal(size=(9, 6))
        expected = np.mean([max(plain_cosine(q, d) for d in document) for q in query])
        assert maxsim(query, document) == pytest.approx(expected, abs=1e-6)

    def test_one_token_each(self):
        """Single vectors count as one token."""
        assert maxsim([1.0, 0], [0.0, 2]) == pytest.approx(0)

    @pytest.mark.parametrize(("left", "right"), [((0, 3), (2, 3)), ((2, 3), (0, 3))])
    def test_no_tokens(self, left, right):
        """Without a token on one side there is no score, and the caller is told."""
        with pytest.raises(InvalidInput, match="token"):
            maxsim(np.ones(left), np.ones(right))


def multi(rows, *, seed=0):
    """Seeded dense, sparse and token vectors of so many texts, the last one without any token."""
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(rows, 4)).astype(np.float32)
    tokens = [rng.normal(size=(row + 1, 3)).astype(np.float32) for row in range(rows - 1)]
    return MultiEmbeddings(
        dense=unit / np.linalg.norm(unit, axis=1, keepdims=True),
        sparse=tuple({token: 0.5 * (token + row) for token in range(row, row + 3)} for row in range(rows)),
        colbert=(*tokens, np.empty((0, 3), np.float32)),
        model="m",
        token_counts=np.ones(rows, np.int64),
        truncated=np.zeros(rows, np.bool_),
        served_by=("cpu",) * rows,
        degraded=False,
        elapsed_ms=1.0,
    )


class TestSparse:
    def test_shared_tokens_count(self):
        """The weights of shared tokens are multiplied and summed, whichever side comes first."""
        a, b = {1: 0.5, 2: 2.0, 7: 1.0}, {2: 3.0, 7: 0.25, 9: 100.0}
        assert sparse_dot(a, b) == sparse_dot(b, a) == pytest.approx(6.25)

    def test_nothing_shared(self):
        """Texts without a common token score 0, and so does one without any."""
        assert sparse_dot({1: 1.0}, {2: 1.0}) == sparse_dot({}, {2: 1.0}) == 0.0


class TestThreeWay:
    def test_against_loops(self):
        """Each score is the weighted mean of the three ways, written out."""
        query, documents, weights = multi(2), multi(3, seed=1), (0.5, 0.2, 0.3)
        table = weighted_three_way(query, documents, weights=weights)
        assert table.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                has_tokens = len(query.colbert[i]) and len(documents.colbert[j])
                ways = (
                    plain_cosine(query.dense[i], documents.dense[j]),
                    sparse_dot(query.sparse[i], documents.sparse[j]),
                    maxsim(query.colbert[i], documents.colbert[j]) if has_tokens else 0.0,
                )
                assert table[i, j] == pytest.approx(np.dot(weights, ways), abs=1e-5)

    def test_only_the_ratio_of_the_weights_counts(self):
        """Weights are divided by their sum."""
        query, documents = multi(2), multi(2, seed=1)
        once, twice = (weighted_three_way(query, documents, weights=w) for w in ((1, 1, 2), (2, 2, 4)))
        np.testing.assert_allclose(once, twice, rtol=1e-6)

    @pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 1), (1, 1)])
    def test_weights_that_make_no_sense(self, weights):
        """None of them, negative ones, or not three."""
        with pytest.raises(InvalidInput, match="weights"):
            weighted_three_way(multi(1), multi(1), weights=weights)
