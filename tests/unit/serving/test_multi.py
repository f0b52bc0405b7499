"""Calls for dense, sparse and token vectors at once, over fakes that say something of every token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.multi import MultiCall
from resilient_ai._serving.validation import CorruptAnswer, check_answer
from resilient_ai._serving.verifier import Verifier
from resilient_ai.errors import ConfigurationError
from resilient_ai.testing import FakeBackend, batch_of
from serving_kit import DIMENSION, EMBEDDER, ENCODER, LIMITS, engine

WIDTH = 3


class Telling(FakeBackend):
    """Answers "multi" as "embed", and says of each token its id, thrice: as weight and as vector."""

    def run(self, batch):
        answer = super().run(replace(batch, task="embed"))
        ids = np.concatenate([row[:size] for row, size in zip(batch.input_ids, batch.lengths, strict=True)])
        return replace(answer, tokens=np.repeat(ids[:, None], 1 + WIDTH, axis=1).astype(np.float32))


def hosted(card):
    manager = FallbackManager([Telling("cpu", DIMENSION)])
    return HostedModel(replace(card, multi=True), ENCODER, manager, BatchLimits(token_budget=24, max_rows=3))


@pytest.fixture
def run(tmp_path):
    service = engine(tmp_path, load=hosted)

    def call(*texts):
        made = MultiCall(texts, "document", None)
        future = service.submit(EMBEDDER.name, made, timeout=None, priority="interactive", progress=None)
        return future.result(10)

    yield call
    service.close()


def test_each_text_gets_what_was_said_of_its_own_tokens(run):
    """However rows are sorted and cut into batches, weights and vectors are those of the text's tokens."""
    texts = [" ".join(f"word{n}" for n in range(size)) for size in (3, 9, 1, 0, 5, 2, 8)]
    found = run(*texts)
    assert len(found) == len(texts)
    for text, weights, vectors in zip(texts, found.sparse, found.colbert, strict=True):
        ids = ENCODER.encode([text]).ids
        assert set(weights) == set(ids.tolist()) - set(ENCODER.control_tokens.values())
        assert all(weight == token for token, weight in weights.items())
        np.testing.assert_array_equal(vectors, np.repeat(ids[1:, None], WIDTH, axis=1))


def test_no_text_gives_empty_answers(run):
    """(0, dimensions), and no rows elsewhere."""
    found = run()
    assert found.dense.shape == (0, DIMENSION)
    assert found.sparse == found.colbert == ()


def test_a_word_that_comes_twice_has_one_weight(run):
    """The ids of a text are the keys, each once."""
    (weights,) = run("again and again").sparse
    assert len(weights) == len({"again", "and"})


def test_a_model_without_these_vectors_says_so(tmp_path):
    """An embedder that gives dense vectors alone is the wrong one to ask."""
    model = HostedModel(EMBEDDER, ENCODER, FallbackManager([FakeBackend("cpu", DIMENSION)]), LIMITS)
    with pytest.raises(ConfigurationError, match="bge-m3"):
        MultiCall(["a"], "document", None).route(model)


def test_token_values_that_cannot_be_right_are_refused():
    """Values of too few tokens, none at all, or NaN among them."""
    batch = replace(batch_of([1, 2, 3], [4, 5]), task="multi")
    right = Telling("cpu", DIMENSION).run(batch)
    check_answer(batch, right, "cpu")
    spoilt = right.tokens.copy()
    spoilt[1, 2] = np.nan
    for tokens in (right.tokens[:-1], None, spoilt):
        with pytest.raises(CorruptAnswer, match="token values"):
            check_answer(batch, replace(right, tokens=tokens), "cpu")


def test_the_canary_leaves_with_its_tokens():
    """What rides along in a batch takes its row and its tokens away again."""
    canary = np.array([7, 8, 9, 10])
    backend = Telling("cpu", DIMENSION)
    expected = backend.run(replace(batch_of(canary.tolist()), task="multi")).values
    verifier = Verifier(canary, {"multi": expected}, limit=0.99, mode="every")
    batch = replace(batch_of([1, 2, 3], [4, 5]), task="multi")
    answer = verifier.unload(verifier.load(batch), backend.run(verifier.load(batch)))
    assert answer.values.shape == (2, DIMENSION)
    np.testing.assert_array_equal(answer.tokens[:, 0], [1, 2, 3, 4, 5])
