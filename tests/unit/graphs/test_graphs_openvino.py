"""The graphs that this library builds give the same answers on OpenVINO as on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai._inference.openvino_runtime import openvino_version
from resilient_ai._inference.session import Session
from resilient_ai._models.graphs import ensure_graph
from tiny_checkpoints import Tiny, collate
from tiny_families import MPNet, Nomic, Qwen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed"),
]

LENGTHS = (3, 17, 1, 9)
EMBEDDING = {"head": "embedding"}
SCORE = {"head": "score", "pooling": None}


def qwen(**options):
    return Qwen(seed=1, prefix="model.", positions=120, **options)


GRAPHS = {
    "bert-mean": (lambda: Tiny("bert"), {"family": "bert", "pooling": "mean", **EMBEDDING}),
    "bert-cls": (lambda: Tiny("bert"), {"family": "bert", "pooling": "cls", **EMBEDDING}),
    "xlm-roberta": (
        lambda: Tiny("xlm-roberta", types=1),
        {"family": "xlm-roberta", "pooling": "cls", **EMBEDDING},
    ),
    "mpnet": (MPNet, {"family": "mpnet", "pooling": "mean", **EMBEDDING}),
    "nomic": (Nomic, {"family": "nomic-bert", "pooling": "mean", **EMBEDDING}),
    "qwen": (qwen, {"family": "qwen3", "pooling": "last_token", **EMBEDDING}),
    "qwen-score": (qwen, {"family": "qwen3", **SCORE}),
    "qwen-prefix": (qwen, {"family": "qwen3", "shared_prefix": True, **SCORE}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_same_answers(tmp_path, name):
    """Every output of rows of all lengths, and after a common beginning, agrees to 1e-5."""
    make, options = GRAPHS[name]
    graph = ensure_graph(make().write(tmp_path / "model"), tmp_path / "cache", **options)
    reference, ours = Session(graph, threads=1, fuse=False), OpenVinoSession(graph, threads=1)
    assert ours.inputs == reference.inputs
    outputs = list(reference.outputs)
    for feeds in feeds_of(reference):
        pairs = zip(outputs, reference.run(outputs, feeds), ours.run(outputs, feeds), strict=True)
        for output, right, found in pairs:
            np.testing.assert_allclose(found, right, atol=1e-5, err_msg=output)


def feeds_of(session):
    rng = np.random.default_rng(0)
    rows = [[int(token) for token in rng.integers(5, 60, length)] for length in LENGTHS]
    feeds = {name: array for name, array in collate(rows).items() if name in session.inputs}
    if "prefix_states" not in session.inputs:
        return [feeds]
    layers, heads, _, size = session.input_shapes["prefix_states"]
    states = [rng.normal(size=(layers, heads, length, size)).astype(np.float32) for length in (0, 7)]
    return [{**feeds, "prefix_states": each, "kept_tokens": np.array([2])} for each in states]
