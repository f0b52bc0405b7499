"""What counts as a right answer."""

from __future__ import annotations

import numpy as np
import pytest
from drill_kit import embeddings

from resilient_ai._adapters.drill.judge import Judge
from resilient_ai._adapters.drill.requests import Request
from resilient_ai.values import RankedDocument, Ranking

VECTORS = Request(("a", "b"))
SCORES = Request(("a", "b", "c"), query="q")
EMBEDDED = [[1.0, 0.0], [0.6, 0.8]]


def ranking(*scores):
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    documents = tuple(RankedDocument(index, scores[index], "abc"[index]) for index in order)
    rows = len(scores)
    return Ranking(
        documents, "m", np.ones(rows, np.int64), np.zeros(rows, np.bool_), ("cpu",) * rows, False, 1.0
    )


@pytest.fixture
def judge():
    made = Judge(0.9999)
    made.learn(VECTORS, embeddings(EMBEDDED))
    made.learn(SCORES, ranking(0.1, 0.9, 0.5))
    return made


@pytest.mark.parametrize(
    ("vectors", "right"),
    [
        (EMBEDDED, True),
        ([[1.0, 1e-4], [0.6, 0.8]], True),
        ([[1.0, 0.1], [0.6, 0.8]], False),
        ([[0.6, 0.8], [1.0, 0.0]], False),
        ([[1.0, 0.0], [np.nan, 0.8]], False),
        ([[1.0, 0.0], [0.0, 0.0]], False),
        ([[1.0, 0.0]], False),
        ([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], False),
    ],
    ids=["the same", "rounding", "one row off", "rows swapped", "NaN", "zeros", "a row less", "wider"],
)
def test_vectors_are_right_within_the_limit(judge, vectors, right):
    """An embedding is right when every row agrees with the one learned, at its own place."""
    assert judge.is_right(VECTORS, embeddings(vectors)) is right


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ((0.1, 0.9, 0.5), True),
        ((0.10005, 0.9, 0.5), True),
        ((0.102, 0.9, 0.5), False),
        ((0.9, 0.1, 0.5), False),
        ((0.1, 0.9), False),
    ],
    ids=["the same", "rounding", "one off", "documents swapped", "a document less"],
)
def test_rankings_are_right_score_by_score(judge, scores, right):
    """A ranking is right when every document of the caller has the score it should have."""
    assert judge.is_right(SCORES, ranking(*scores)) is right
