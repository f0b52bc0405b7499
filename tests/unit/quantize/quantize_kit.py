"""Small graphs with stored matrices, as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resilient_ai._inference.session import Session
from resilient_ai._models.quantize import quantize_graph

WORDS, HIDDEN, WIDE = 200, 64, 128


def write_mlp(path, *, large_values=1.0, large_weights=1.0, half=False, words=WORDS, external=False):
    """Token ids to `token_embeddings`: a table's rows through two matrices, a bias and a Relu.

    Two channels of what the first matrix reads are `large_values` times as large, and its weights for
    them as much smaller: the answers stay the same. Two rows of the second matrix are `large_weights`
    times as large, and what they read as much smaller.
    """
    rng = np.random.default_rng(7)
    values, weights = np.ones(HIDDEN), np.ones(WIDE)
    values[[3, 40]], weights[[5, 90]] = large_values, large_weights
    first = rng.normal(size=(HIDDEN, WIDE)) / np.sqrt(HIDDEN)
    second = rng.normal(size=(WIDE, HIDDEN)) / np.sqrt(WIDE)
    tensors = {
        "table": rng.normal(size=(words, HIDDEN)) * values,
        "first": first / values[:, None] / weights,
        "second": second * weights[:, None],
        "bias": rng.normal(size=HIDDEN),
    }
    kind = np.float16 if half else np.float32
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "first"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["narrow"]),
        helper.make_node("Add", ["narrow", "bias"], ["token_embeddings"]),
    ]
    return write(
        path, nodes, {name: value.astype(kind) for name, value in tensors.items()}, external=external
    )


def write_block(path, *, gain=None, readers=1):
    """Token ids to `token_embeddings` as a transformer's feed-forward part: normalise, matrix, GELU, matrix.

    `gain` is that of the normalisation. With two `readers` the first product has another besides GELU.
    """
    rng = np.random.default_rng(11)
    tensors = {
        "table": rng.normal(size=(WORDS, HIDDEN)) + rng.normal(size=HIDDEN),
        "gain": rng.uniform(0.5, 1.5, HIDDEN) if gain is None else gain,
        "shift": rng.normal(size=HIDDEN),
        "first": (rng.normal(size=(HIDDEN, WIDE)) + 0.2) / np.sqrt(HIDDEN),
        "inner": rng.normal(size=WIDE),
        "second": rng.normal(size=(WIDE, HIDDEN)) / np.sqrt(WIDE),
        "outer": rng.normal(size=HIDDEN),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "first"], ["wide"]),
        helper.make_node("BiasGelu", ["wide", "inner"], ["active"], domain="com.microsoft"),
        helper.make_node("MatMul", ["active", "second"], ["narrow"]),
        helper.make_node("Add", ["narrow", "outer"], ["projected"]),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[-1]),
        helper.make_node("Add", ["projected", "mean" if readers > 1 else "normed"], ["token_embeddings"]),
    ]
    if readers == 1:
        del nodes[-2]
    return write(path, nodes, {name: value.astype(np.float32) for name, value in tensors.items()})


def write(path, nodes, tensors, *, external=False, output="token_embeddings", kind=TensorProto.FLOAT):
    """A graph from `input_ids`; its checker is not asked, for it does not know ONNX Runtime's operators."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    where = (
        {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    )
    onnx.save(model, str(path), **where)
    return path


def open_graph(path):
    """Loads a graph to be looked into."""
    return Session(path, threads=1, fuse=False).run


def quantized(source, recipe="rowwise", **options):
    """The int8 graph of a graph, beside it."""
    target = source.with_name(f"{source.stem}-{recipe if isinstance(recipe, str) else recipe.name}.onnx")
    quantize_graph(source, target, recipe=recipe, open_graph=open_graph, **options)
    return target


def answers(path, ids):
    """What a graph makes of token ids, (tokens, HIDDEN)."""
    return open_graph(path)(["token_embeddings"], {"input_ids": np.atleast_2d(ids)})[0][0]


def error(path, source, seed=1):
    """How far a graph's answers are from those of another, as a share of their lengths; the mean."""
    ids = np.random.default_rng(seed).integers(0, WORDS, 64)
    exact, found = answers(source, ids), answers(path, ids)
    return float(np.mean(np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)))


def operators(path):
    """The names of a graph's operators, in order."""
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
