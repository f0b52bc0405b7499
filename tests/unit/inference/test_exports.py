"""Graphs as others export them are taken as they are; what cannot be used is told, with a remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

from graph_kit import FLOAT, write_export
from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.ports import Ports
from resilient_ai._inference.session import Session
from resilient_ai.errors import ModelCorrupt
from resilient_ai.testing import batch_of

pytest.importorskip("onnxruntime")

SCALE = np.array([1, 2, 3, -4], np.float32)
HALF = TensorProto.FLOAT16
ROWS = batch_of([3, 5, 7], [2], task="pool")


def left(batch):
    """The same rows with their padding on the left."""
    ids, mask = np.zeros_like(batch.input_ids), np.zeros_like(batch.attention_mask)
    for row, length in enumerate(batch.lengths):
        ids[row, -length:] = batch.input_ids[row, :length]
        mask[row, -length:] = 1
    return replace(batch, input_ids=ids, attention_mask=mask)


@pytest.fixture
def backend(tmp_path):
    def build(*outputs, pooling=None, **options):
        session = Session(write_export(tmp_path / "model.onnx", *outputs, **options), threads=1)
        return OrtBackend(session, device="cpu", pooling=pooling)

    return build


class TestDecoders:
    @pytest.mark.parametrize("half_cache", [False, True])
    @pytest.mark.parametrize("side", [lambda batch: batch, left], ids=["right", "left"])
    def test_an_empty_cache(self, backend, half_cache, side):
        """A decoder exported for generating gets an empty cache, of any precision, and last-token pooling."""
        decoder = backend(
            ("last_hidden_state", FLOAT, "tokens"), cache=3, half_cache=half_cache, pooling="last_token"
        )
        answer = decoder.run(side(ROWS))
        np.testing.assert_allclose(answer.values, [SCALE * 7, SCALE * 2])

    def test_what_it_gives_back_is_not_fetched(self, backend, monkeypatch):
        """The cache that a decoder gives back is asked for by nobody."""
        decoder, asked = backend(("last_hidden_state", FLOAT, "tokens"), cache=2, pooling="cls"), []
        plain = decoder._session.run
        monkeypatch.setattr(
            decoder._session, "run", lambda outputs, feeds: asked.extend(outputs) or plain(outputs, feeds)
        )
        decoder.run(ROWS)
        assert asked == ["last_hidden_state"]

    @pytest.mark.parametrize("side", [lambda batch: batch, left], ids=["right", "left"])
    def test_positions(self, backend, side):
        """Positions count a row's real tokens from 0, on whichever side its padding is."""
        decoder = backend(("last_hidden_state", FLOAT, "tokens"), positions=True, pooling="last_token")
        answer = decoder.run(side(ROWS))
        np.testing.assert_allclose(answer.values, [SCALE * 7 + 2, SCALE * 2])

    def test_a_cache_of_unknown_shape(self, backend):
        """A cache whose heads or width are not stated cannot be made, and that is told."""
        with pytest.raises(ModelCorrupt, match=r"past_key_values\.0\.key.*heads"):
            backend(("last_hidden_state", FLOAT, "tokens"), cache=1, cache_shape=("rows", "heads", "past", 8))


class TestInputs:
    def test_narrow_ids(self, backend):
        """A graph that takes 32-bit ids gets them."""
        answer = backend(("last_hidden_state", FLOAT, "tokens"), ids=TensorProto.INT32, pooling="cls").run(
            ROWS
        )
        np.testing.assert_allclose(answer.values, [SCALE * 3, SCALE * 2])

    @pytest.mark.parametrize("task", ["pool", "maxsim"])
    def test_one_row_at_a_time(self, backend, task):
        """A graph that was exported for one row is run row by row."""
        single = backend(("last_hidden_state", FLOAT, "tokens"), rows=1, pooling="last_token")
        answer = single.run(replace(ROWS, task=task, shared_ids=np.array([4, 9])))
        np.testing.assert_allclose(answer.values, [[1], [1]] if task == "maxsim" else [SCALE * 7, SCALE * 2])

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"rows": 4}, "exactly 4 texts at a time.*dynamic batch axis"),
            ({"longest": 128}, "exactly 128 tokens.*dynamic sequence axis"),
            ({"extra_input": "pixel_values"}, "takes input_ids, attention_mask, pixel_values"),
        ],
    )
    def test_what_cannot_be_fed(self, backend, options, told):
        """What nobody can feed is told when the graph is loaded, with what would be better."""
        with pytest.raises(ModelCorrupt, match=told):
            backend(("last_hidden_state", FLOAT, "tokens"), **options)

    def test_a_type_that_no_batch_has(self):
        """An input of another type than numbers is told."""
        with pytest.raises(ModelCorrupt, match=r"input_ids is a tensor\(string\)"):
            Ports({"input_ids": "tensor(string)"}, {"input_ids": ("rows", "longest")}, {})


class TestOutputs:
    @pytest.mark.parametrize(("name", "source"), [("embeddings", "first"), ("output_0", "tokens")])
    def test_the_only_output(self, backend, name, source):
        """The only output of a graph is known by its shape, whatever it is called."""
        answer = backend((name, FLOAT, source), pooling="cls", cache=1).run(replace(ROWS, task="embed"))
        np.testing.assert_allclose(answer.values, [SCALE / np.linalg.norm(SCALE)] * 2, rtol=1e-6)

    @pytest.mark.parametrize("last", [1, 2, "columns"])
    def test_the_only_output_of_a_reranker(self, last):
        """So it is for scores: one or two a row."""
        ports = Ports(
            {"input_ids": "tensor(int64)"}, {"input_ids": ("rows", "longest")}, {"scores": ("rows", last)}
        )
        assert ports.logits == "scores"

    def test_two_outputs_of_unknown_names(self, backend):
        """Of several outputs with unknown names none is guessed at."""
        graph = backend(("a", FLOAT, "first"), ("b", FLOAT, "tokens"), pooling="cls")
        with pytest.raises(ModelCorrupt, match="outputs a, b"):
            graph.run(ROWS)

    def test_half_precision(self, backend):
        """Outputs in half precision become float32 before they are pooled."""
        answer = backend(("last_hidden_state", HALF, "tokens"), pooling="mean").run(ROWS)
        assert answer.values.dtype == np.float32
        np.testing.assert_allclose(answer.values, [SCALE * 5, SCALE * 2])

    def test_bytes(self, backend):
        """Vectors in bytes cannot be compared with others, and are refused."""
        with pytest.raises(ModelCorrupt, match="uint8"):
            backend(("sentence_embedding", TensorProto.UINT8, "bytes")).run(replace(ROWS, task="embed"))


class TestMulti:
    @pytest.mark.parametrize("first", ["tokens", "inner"], ids=["every token", "all but the first"])
    def test_all_three(self, backend, first):
        """Dense, lexical and token vectors come in one pass, row after row, as every export has them."""
        graph = backend(
            ("dense_vecs", FLOAT, "first"), ("sparse_vecs", FLOAT, "weights"), ("colbert_vecs", FLOAT, first)
        )
        answer = graph.run(replace(batch_of([3, 6, 7], [9, 2]), task="multi"))
        unit = SCALE / np.linalg.norm(SCALE)
        np.testing.assert_allclose(answer.values, [unit, unit], rtol=1e-6)
        np.testing.assert_allclose(answer.tokens[:, 0], [0, 1, 2, 4, 0])
        for place in (1, 2, 4):  # the first of each row is nobody's
            np.testing.assert_allclose(answer.tokens[place, 1:], unit, rtol=1e-6)

    def test_a_model_without(self, backend):
        """A graph that has no such heads is told so."""
        with pytest.raises(ModelCorrupt, match="token_weights and colbert"):
            backend(("last_hidden_state", FLOAT, "tokens"), pooling="cls").run(replace(ROWS, task="multi"))
