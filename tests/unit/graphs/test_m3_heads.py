"""One pass over BGE-M3 gives the dense vector, the lexical weights and the ColBERT vectors of a text."""

from __future__ import annotations

import numpy as np
import pytest
from torch_kit import write_torch_file

from resilient_ai import errors
from resilient_ai._models.graphs import describe_graph, ensure_graph
from tiny_checkpoints import Tiny, collate

ort = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5
WIDTH = 24


class M3:
    """An XLM-RoBERTa with the two further heads beside it."""

    def __init__(self, seed=0):
        self.tiny = Tiny(family="xlm-roberta", types=1, seed=seed)
        rng = np.random.default_rng(seed + 100)
        hidden = self.tiny.hidden
        self.heads = {
            "sparse": {"weight": rng.normal(0, 0.2, (1, hidden)), "bias": rng.normal(0, 0.2, 1)},
            "colbert": {"weight": rng.normal(0, 0.2, (WIDTH, hidden)), "bias": rng.normal(0, 0.2, WIDTH)},
        }

    def write(self, folder):
        self.tiny.write(folder)
        for name, head in self.heads.items():
            halves = {part: value.astype(np.float16) for part, value in head.items()}
            write_torch_file(folder / f"{name}_linear.pt", halves)
        return folder

    def apply(self, name, states):
        weight, bias = (
            self.heads[name][part].astype(np.float16).astype(float) for part in ("weight", "bias")
        )
        return states @ weight.T + bias


def graph_of(model, tmp_path, **options):
    defaults = {"family": "xlm-roberta", "pooling": "cls", "head": "embedding", "multi": True}
    return ensure_graph(model.write(tmp_path / "model"), tmp_path / "cache", **(defaults | options))


def run(path, texts):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, collate(texts, pad=1)), strict=True))


TEXTS = [[0, 5, 6, 7, 2], [0, 9, 2], [], [0, *range(10, 29), 2]]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", TOLERANCE), ("fp16", 5e-3)])
def test_all_three_come_out_of_one_pass(precision, tolerance, tmp_path):
    """Dense vector, weights and token vectors equal the reference; padding is 0 in both token outputs."""
    model = M3()
    got = run(graph_of(model, tmp_path, precision=precision), TEXTS)
    assert got["colbert"].shape == (4, 21, WIDTH)
    for row, text in enumerate(TEXTS):
        assert not got["token_weights"][row, len(text) :].any()
        assert not got["colbert"][row, len(text) :].any()
        if not text:
            continue
        states = model.tiny.hidden_states(text)
        dense = states[0] / np.linalg.norm(states[0])
        np.testing.assert_allclose(got["sentence_embedding"][row], dense, atol=tolerance)
        weights = np.maximum(model.apply("sparse", states)[:, 0], 0)
        np.testing.assert_allclose(got["token_weights"][row, : len(text)], weights, atol=tolerance)
        vectors = model.apply("colbert", states)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(got["colbert"][row, : len(text)], vectors, atol=tolerance)


def test_the_outside_is_told(tmp_path):
    """The further outputs are there when asked for, and only then."""
    multi = describe_graph(graph_of(M3(), tmp_path))
    assert multi.outputs == ("sentence_embedding", "pooled", "token_weights", "colbert")
    assert multi.dims["colbert"] == ("batch", "sequence", WIDTH)
    assert multi.dims["token_weights"] == ("batch", "sequence")
    assert describe_graph(graph_of(M3(), tmp_path, multi=False)).outputs == ("sentence_embedding", "pooled")


def test_new_heads_make_a_new_graph(tmp_path):
    """The heads are sources of the graph like the weights."""
    before = graph_of(M3(), tmp_path).read_bytes()
    other = M3()
    other.heads = M3(seed=1).heads
    assert graph_of(other, tmp_path).read_bytes() != before


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_missing_head_is_named(name, tmp_path):
    """A folder without a head's file says which one is not there; a plain embedder does not ask."""
    folder = M3().write(tmp_path / "model")
    (folder / name).unlink()
    options = {"family": "xlm-roberta", "pooling": "cls", "head": "embedding"}
    ensure_graph(folder, tmp_path / "cache", **options)
    with pytest.raises(errors.ModelNotFound, match=name):
        ensure_graph(folder, tmp_path / "cache", multi=True, **options)


@pytest.mark.parametrize(
    ("name", "part", "shape"),
    [
        ("sparse", "weight", (2, 32)),
        ("sparse", "bias", (2,)),
        ("colbert", "weight", (WIDTH, 31)),
        ("colbert", "bias", (WIDTH + 1,)),
        ("colbert", "weight", ()),
    ],
)
def test_a_head_of_another_shape_is_named(name, part, shape, tmp_path):
    """A head that does not fit the model is refused with its file and shape."""
    model = M3()
    model.heads[name][part] = np.zeros(shape)
    with pytest.raises(errors.ModelCorrupt, match=f"{name}_linear") as caught:
        graph_of(model, tmp_path)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_head_without_its_parts_is_named(part, tmp_path):
    """A file that lacks weight or bias says so."""
    model = M3()
    del model.heads["colbert"][part]
    with pytest.raises(errors.ModelCorrupt, match=f"colbert_linear.*'{part}'"):
        graph_of(model, tmp_path)


def test_other_families_have_no_such_heads(tmp_path):
    """Asking another architecture for them is the caller's error."""
    folder = Tiny().write(tmp_path / "model")
    with pytest.raises(errors.ConfigurationError, match="lexical"):
        ensure_graph(folder, tmp_path / "cache", family="bert", pooling="cls", head="embedding", multi=True)
