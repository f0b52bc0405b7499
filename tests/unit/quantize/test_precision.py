"""A graph's precision is in its contents."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from quantize_kit import quantized, write, write_mlp

from resilient_ai._models.quantize import graph_precision, runs_on_cuda
from resilient_ai.errors import ModelCorrupt, ModelNotFound

BYTES = np.ones((64, 64), np.int8)
CONTRIB = "com.microsoft"


def write_qdq(path):
    """Weights as bytes that are turned into floats before they are used."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["floats"]),
        helper.make_node("MatMul", ["x", "floats"], ["token_embeddings"]),
    ]
    return write(path, nodes, {"weight": BYTES, "scale": np.array(0.1, np.float32)})


def write_dynamic(path):
    """What ONNX Runtime's own tool makes: one scale for a whole batch."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["integers", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["integers", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["token_embeddings"], to=TensorProto.FLOAT),
    ]
    return write(path, nodes, {"weight": BYTES})


def write_blocks(path, bits):
    """Weights packed in blocks."""
    packed = np.zeros((64, 2, 32 * bits // 8), np.uint8)
    options = {"K": 64, "N": 64, "bits": bits, "block_size": 32}
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node(
            "MatMulNBits", ["x", "weight", "scales"], ["token_embeddings"], domain=CONTRIB, **options
        ),
    ]
    return write(path, nodes, {"weight": packed, "scales": np.ones(128, np.float32)})


GRAPHS = {
    "fp32": (write_mlp, "fp32", True),
    "fp16": (lambda path: write_mlp(path, half=True), "fp16", True),
    "our own": (lambda path: quantized(write_mlp(path)), "int8", False),
    "of bytes, used as floats": (write_qdq, "int8", True),
    "dynamic": (write_dynamic, "int8", False),
    "8-bit blocks": (lambda path: write_blocks(path, 8), "int8", True),
    "4-bit blocks": (lambda path: write_blocks(path, 4), "int4", True),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_by_content(tmp_path, kind):
    """Whatever the file is called, the precision is that of what it multiplies with."""
    make, precision, on_cuda = GRAPHS[kind]
    path = make(tmp_path / "model_q4_fp16.onnx")
    assert graph_precision(path) == precision
    verdict = runs_on_cuda(path)
    assert bool(verdict) is on_cuda
    assert ("MatMulInteger" in verdict.reason) is not on_cuda


def test_what_is_no_graph(tmp_path):
    """A missing file, a damaged one and an empty one are told apart from a graph, by their names."""
    with pytest.raises(ModelNotFound, match=r"gone\.onnx"):
        graph_precision(tmp_path / "gone.onnx")
    for content in (b"", b"<html>not found</html>"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelCorrupt, match=r"bad\.onnx"):
            graph_precision(tmp_path / "bad.onnx")
