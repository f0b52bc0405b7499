"""A foreign graph can be told before it is loaded."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from resilient_ai import errors
from resilient_ai._models.graphs import describe_graph, ensure_graph
from tiny_checkpoints import Tiny

DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def graph(tmp_path):
    """A graph of ours whose weights lie in a file of their own."""
    folder = Tiny().write(tmp_path / "model")
    options = {"family": "bert", "pooling": "cls", "head": "embedding", "inline_limit": 0}
    return ensure_graph(folder, tmp_path / "cache", **options)


def test_the_outside_of_a_graph_is_told(graph):
    """Inputs, outputs, shapes, files and what the builder wrote about itself."""
    got = describe_graph(graph)
    assert got.inputs == ("input_ids", "attention_mask")
    assert got.outputs == ("sentence_embedding", "pooled")
    assert got.dims["input_ids"] == ("batch", "sequence")
    assert got.dims["pooled"] == ("batch", 32)
    assert got.external_files == (f"{graph.name}.data",)
    assert got.missing_files == ()
    assert got.opset == 17
    assert got.metadata["max_tokens"] == "24"
    assert got.metadata["pooling"] == "cls"
    got.require_complete()


@pytest.mark.parametrize("damage", ["delete", "cut"])
def test_missing_and_short_weights_are_told(graph, damage):
    """A sidecar that is absent, or shorter than the graph needs, is named."""
    data = graph.with_name(f"{graph.name}.data")
    if damage == "delete":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-1])
    got = describe_graph(graph)
    assert got.missing_files == (data.name,)
    with pytest.raises(errors.ModelCorrupt, match=data.name):
        got.require_complete()


@pytest.mark.parametrize("text", [b"", b"not a protobuf", b"\x08", bytes(100)])
def test_what_is_no_onnx_is_corrupt(tmp_path, text):
    """An empty, cut or foreign file is refused by type."""
    path = tmp_path / "model.onnx"
    path.write_bytes(text)
    with pytest.raises(errors.ModelCorrupt, match=r"model\.onnx"):
        describe_graph(path)


def test_a_cut_graph_is_corrupt(graph):
    """Half a graph is not a graph."""
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    with pytest.raises(errors.ModelCorrupt):
        describe_graph(graph)


def test_a_missing_graph_is_not_found(tmp_path):
    """A path without a file is named."""
    with pytest.raises(errors.ModelNotFound, match="nowhere"):
        describe_graph(tmp_path / "nowhere.onnx")


def foreign(path, **place):
    """An ONNX file with one external weight, listed among the inputs as old exports do."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xwy"]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:2], ports[2:], [weight])), path)


def test_weights_are_not_inputs(tmp_path):
    """A weight that is also listed as an input is a weight; an axis without a name is None."""
    foreign(tmp_path / "m.onnx", location="part/weights.bin", length="8")
    got = describe_graph(tmp_path / "m.onnx")
    assert got.inputs == ("x",)
    assert got.dims["x"] == (None, 2)
    assert got.external_files == got.missing_files == ("part/weights.bin",)


@pytest.mark.parametrize(
    "place", [{"location": "../w"}, {"location": "/w"}, {"offset": "1"}, {"location": "w", "offset": "a"}]
)
def test_weights_outside_the_folder_are_refused(tmp_path, place):
    """A graph may not point anywhere else on the disk."""
    foreign(tmp_path / "m.onnx", **place)
    with pytest.raises(errors.ModelCorrupt, match="tensor 'w'"):
        describe_graph(tmp_path / "m.onnx")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data are not here")
def test_published_exports_are_told():
    """An export without its weights says which files it needs; a whole one needs none."""
    export = describe_graph(DATA / "bge-m3" / "onnx" / "model.onnx")
    assert "model.onnx_data" in export.missing_files
    assert export.outputs == ("token_embeddings", "sentence_embedding")
    assert describe_graph(DATA / "tiny-xlmroberta-ce-onnx" / "model.onnx").missing_files == ()
