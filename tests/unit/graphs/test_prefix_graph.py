"""Rows that go on from a common beginning score as the whole texts do, however they are batched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai import errors
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.batching import plan
from resilient_ai._inference.session import Session
from resilient_ai._models.graphs import GraphOptions, ensure_graph
from resilient_ai.values import Batch
from tiny_checkpoints import Tiny, collate
from tiny_families import Qwen

TOLERANCE = 1e-5

MODELS = {
    "tied": lambda: Qwen(seed=1, prefix="model.", positions=120),
    "own-rows": lambda: Qwen(seed=2, prefix="model.", positions=120, tied=False, layers=3),
    "one-label": lambda: Qwen(seed=3, prefix="model.", positions=120, labels=1),
    "one-key-head": lambda: Qwen(seed=4, prefix="model.", positions=120, key_heads=1),
    "equal-heads": lambda: Qwen(seed=5, prefix="model.", positions=120, key_heads=4, size=8),
}


def graph_of(model, tmp_path, **options):
    folder = model.write(tmp_path / "model")
    defaults = {"family": "qwen3", "pooling": None, "head": "score", "shared_prefix": True}
    return ensure_graph(folder, tmp_path / "cache", **{**defaults, **options})


def backend_of(model, tmp_path, **options):
    return OrtBackend(Session(graph_of(model, tmp_path, **options), threads=1, fuse=False), device="cpu")


def batch_of(texts, shared=None, **padding):
    feeds = collate(texts, **padding)
    return Batch(
        "m",
        "score",
        feeds["input_ids"],
        feeds["attention_mask"],
        np.array([len(text) for text in texts]),
        shared_ids=None if shared is None else np.array(shared, np.int64),
    )


def texts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [[int(token) for token in rng.integers(0, 100, length)] for length in lengths]


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    """A model with its backend."""
    model = MODELS[request.param]()
    backend = backend_of(model, tmp_path_factory.mktemp("tiny"))
    yield model, backend
    backend.close()


@pytest.mark.parametrize("beginning", [1, 2, 30, 60])
def test_a_row_scores_as_its_whole_text(made, beginning):
    """Whatever its length, a row after a common beginning has the float64 score of the two together."""
    model, backend = made
    (shared, *own) = texts_of(beginning, 1, 2, 17, 60, 33, seed=beginning)
    got = backend.run(batch_of(own, shared)).values
    wanted = [model.score(shared + text) for text in own]
    assert got.shape == (5, 1)
    np.testing.assert_allclose(got[:, 0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("shared", [None, []])
def test_without_a_common_beginning_a_row_is_a_whole_text(made, shared):
    """The same graph scores plain prompts."""
    model, backend = made
    texts = texts_of(120, 1, 40, seed=7)
    got = backend.run(batch_of(texts, shared)).values[:, 0]
    np.testing.assert_allclose(got, [model.score(text) for text in texts], atol=TOLERANCE)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    model = MODELS["tied"]()
    backend = backend_of(model, tmp_path_factory.mktemp("tied"))
    yield model, backend
    backend.close()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_split_and_the_batch_do_not_matter(tied, data):
    """Wherever texts are cut into a beginning and the rest, and however batched, scores stay the same."""
    _, backend = tied
    token = st.integers(0, 99)
    shared = data.draw(st.lists(token, min_size=1, max_size=30))
    own = data.draw(st.lists(st.lists(token, min_size=1, max_size=30), min_size=1, max_size=9))
    whole = backend.run(batch_of([shared + text for text in own])).values
    cut = data.draw(st.integers(0, len(shared)))
    rest = [shared[cut:] + text for text in own]
    lengths = np.array([len(text) for text in rest])
    budget, most = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 9))
    got = np.full_like(whole, np.nan)
    for rows in plan(lengths, token_budget=budget, max_rows=most):
        padded = data.draw(st.integers(int(lengths[rows].max()), 70))
        batch = batch_of([rest[row] for row in rows], shared[:cut], pad=data.draw(token), to=padded)
        got[rows] = backend.run(batch).values
    np.testing.assert_allclose(got, whole, atol=TOLERANCE)


def test_beginnings_that_begin_alike_go_on_from_one_another(tied):
    """What is computed from the states of another beginning is as good as computed afresh."""
    model, backend = tied
    (common, *endings) = texts_of(20, 1, 5, 12, 1, seed=3)
    (text,) = texts_of(9, seed=4)
    for ending in [*endings, []]:
        got = backend.run(batch_of([text], common + ending)).values
        np.testing.assert_allclose(got, [[model.score(common + ending + text)]], atol=TOLERANCE)


def test_a_row_of_padding_stays_alone(tied):
    """A row without any token of its own gives a finite score, and the others stay as they are."""
    model, backend = tied
    got = backend.run(batch_of([[7, 8, 9], [], [4, 5]], [1, 2])).values[:, 0]
    assert np.isfinite(got).all()
    wanted = [model.score([1, 2, 7, 8, 9]), model.score([1, 2, 4, 5])]
    np.testing.assert_allclose(got[[0, 2]], wanted, atol=TOLERANCE)


def test_the_beginning_counts_against_the_longest_text(tied):
    """A row that passes the model's positions only together with its beginning is an error, not a score."""
    _, backend = tied
    shared, text = texts_of(60, 61)
    with pytest.raises(errors.ResilientAIError, match="RotaryEmbedding"):
        backend.run(batch_of([text], shared))


def test_every_product_with_weights_is_a_plain_one(tmp_path):
    """Weights stand on the right of a MatMul, where quantising finds them; what attends has none."""
    path = graph_of(MODELS["tied"](), tmp_path)
    graph = onnx.load(path).graph
    weights = {each.name for each in graph.initializer}
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * 7 + 1
    assert set(products) <= weights
    assert {node.domain for node in graph.node if node.op_type == "MultiHeadAttention"} == {"com.microsoft"}


def test_half_precision_keeps_the_scores(tmp_path):
    """A graph in half precision takes and gives states in float32 as any other does."""
    model = MODELS["tied"]()
    (shared, *own) = texts_of(20, 1, 17, 60, seed=6)
    got = backend_of(model, tmp_path, precision="fp16").run(batch_of(own, shared)).values[:, 0]
    np.testing.assert_allclose(got, [model.score(shared + text) for text in own], atol=2e-2)


@pytest.mark.parametrize(
    "options",
    [{"head": "embedding", "pooling": "last_token"}, {"family": "bert"}],
)
def test_only_scores_of_decoders_have_a_common_beginning(options, tmp_path):
    """Asked of an embedder, or of a family that reads texts as a whole, it is the caller's error."""
    model = Tiny(labels=1) if "family" in options else Qwen()
    with pytest.raises(errors.ConfigurationError, match="beginning"):
        graph_of(model, tmp_path, **options)


def test_it_is_off_unless_asked_for():
    """A graph takes ids and mask alone by default."""
    assert not GraphOptions.of("score", None).shared_prefix


def test_a_graph_without_states_refuses_rows_that_begin_alike(tmp_path):
    """Rather than a score of half a prompt there is an error that says what is missing."""
    backend = backend_of(MODELS["tied"](), tmp_path, shared_prefix=False)
    with pytest.raises(errors.ModelCorrupt, match="begin alike"):
        backend.run(batch_of([[1, 2]], [3]))
