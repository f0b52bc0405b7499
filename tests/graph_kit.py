"""Tiny ONNX graphs whose outputs can be told by hand."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

INT, FLOAT = TensorProto.INT64, TensorProto.FLOAT
DIM = 4


def write_graph(path, *outputs, type_ids=False, half=False):
    """A model of dimension 4 with the given outputs; see `vector_of` for what it computes.

    `token_embeddings` and `last_hidden_state`: each token id times (1, 2, 3, -4), or plus ten times
    its type id first. `pooled` and `sentence_embedding`: the first token's vector. `logits`: the
    first token id, one a row. `wide`: two logits a row.
    """
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["typed" if type_ids else "masked"], ["numbers"], to=FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["tokens"]),
        helper.make_node("Gather", ["tokens", "zero"], ["first"], axis=1),
        helper.make_node("Gather", ["numbers", "zeros"], ["score"], axis=1),
        helper.make_node("Concat", ["score", "score"], ["scores"], axis=1),
    ]
    if type_ids:
        nodes[1:1] = [
            helper.make_node("Mul", ["token_type_ids", "ten"], ["tens"]),
            helper.make_node("Add", ["masked", "tens"], ["typed"]),
        ]
    sources = {
        "token_embeddings": ("tokens", ["rows", "longest", DIM]),
        "last_hidden_state": ("tokens", ["rows", "longest", DIM]),
        "pooled": ("first", ["rows", DIM]),
        "sentence_embedding": ("first", ["rows", DIM]),
        "logits": ("score", ["rows", 1]),
        "wide": ("scores", ["rows", 2]),
        "unnamed": ("tokens", ["rows", "longest", "dim"]),
    }
    infos = []
    for output in outputs:
        source, shape = sources["wide" if output == "logits2" else output]
        name = "logits" if output == "logits2" else output
        kind = TensorProto.FLOAT16 if half else FLOAT
        nodes.append(helper.make_node("Cast", [source], [name], to=kind))
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if type_ids else [])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, INT, ["rows", "longest"]) for name in inputs],
        infos,
        [
            helper.make_tensor("last", INT, [1], [2]),
            helper.make_tensor("zero", INT, [], [0]),
            helper.make_tensor("zeros", INT, [1], [0]),
            helper.make_tensor("ten", INT, [1], [10]),
            helper.make_tensor("scale", FLOAT, [1, 1, DIM], [1, 2, 3, -4]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_failing_graph(path):
    """A graph that loads and takes any ids, but fails while it runs unless there are exactly two."""
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["input_ids", "two"], ["pair"]),
            helper.make_node("Cast", ["pair"], ["pooled"], to=FLOAT),
        ],
        "failing",
        [helper.make_tensor_value_info("input_ids", INT, ["rows", "longest"])],
        [helper.make_tensor_value_info("pooled", FLOAT, [2])],
        [helper.make_tensor("two", INT, [1], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path
