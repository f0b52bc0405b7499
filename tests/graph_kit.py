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
    first token id, one a row. Under the name of `logits` too: `no_and_yes`, three times the first
    token id and once; `classes`, three a row; `words`, the token embeddings.
    """
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["typed" if type_ids else "masked"], ["numbers"], to=FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["tokens"]),
        helper.make_node("Gather", ["tokens", "zero"], ["first"], axis=1),
        helper.make_node("Gather", ["numbers", "zeros"], ["score"], axis=1),
        helper.make_node("Mul", ["score", "three"], ["threefold"]),
        helper.make_node("Concat", ["threefold", "score"], ["two"], axis=1),
        helper.make_node("Concat", ["score", "score", "score"], ["several"], axis=1),
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
        "no_and_yes": ("two", ["rows", 2]),
        "classes": ("several", ["rows", 3]),
        "words": ("tokens", ["rows", "longest", DIM]),
        "unnamed": ("tokens", ["rows", "longest", "dim"]),
    }
    infos = []
    for output in outputs:
        source, shape = sources[output]
        name = "logits" if output in {"no_and_yes", "classes", "words"} else output
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
            helper.make_tensor("three", FLOAT, [1], [3]),
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


def write_export(
    path,
    *outputs,
    cache=0,
    cache_shape=("rows", 2, "past", 8),
    half_cache=False,
    positions=False,
    ids=INT,
    rows="rows",
    longest="longest",
    extra_input=None,
):
    """A graph as others export them: each output is a name, a type and how it is computed.

    "tokens" is (rows, longest, DIM): each token id times (1, 2, 3, -4), plus its position where
    `positions` are an input. "first" is that of the first token; "weights" (rows, longest, 1) the token
    ids less 5; "inner" the tokens but for the first; "bytes" the first as uint8; "column" the first
    token id, one a row. A `cache` of so many
    layers is joined to what it gives back as `present.*`.
    """
    inputs = [helper.make_tensor_value_info("input_ids", ids, [rows, longest])]
    inputs.append(helper.make_tensor_value_info("attention_mask", ids, [rows, longest]))
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["numbers"], to=FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "last"], ["numeral"]),
        helper.make_node("Mul", ["numeral", "scale"], ["scaled"]),
        helper.make_node("Gather", ["tokens", "zero"], ["first"], axis=1),
        helper.make_node("Sub", ["numeral", "five"], ["weights"]),
        helper.make_node("Gather", ["numbers", "zeros"], ["column"], axis=1),
        helper.make_node("Slice", ["tokens", "one", "end", "one"], ["inner"]),
        helper.make_node("Cast", ["first"], ["bytes"], to=TensorProto.UINT8),
    ]
    if positions:
        inputs.append(helper.make_tensor_value_info("position_ids", INT, [rows, longest]))
        nodes[4:4] = [
            helper.make_node("Cast", ["position_ids"], ["places"], to=FLOAT),
            helper.make_node("Unsqueeze", ["places", "last"], ["place"]),
            helper.make_node("Add", ["scaled", "place"], ["tokens"]),
        ]
    else:
        nodes.insert(4, helper.make_node("Identity", ["scaled"], ["tokens"]))
    if extra_input is not None:
        inputs.append(helper.make_tensor_value_info(extra_input, FLOAT, ["rows"]))
    infos = []
    for name, kind, source in outputs:
        shape = {
            "first": ["rows", DIM],
            "bytes": ["rows", DIM],
            "column": ["rows", 1],
            "weights": ["rows", "longest", 1],
        }
        nodes.append(helper.make_node("Cast", [source], [name], to=kind))
        infos.append(helper.make_tensor_value_info(name, kind, shape.get(source, ["rows", "longest", DIM])))
    kind = TensorProto.FLOAT16 if half_cache else FLOAT
    for layer in range(cache):
        for part in ("key", "value"):
            name = f"past_key_values.{layer}.{part}"
            inputs.append(helper.make_tensor_value_info(name, kind, list(cache_shape)))
            nodes.append(helper.make_node("Concat", [name, name], [f"present.{layer}.{part}"], axis=2))
            infos.append(helper.make_tensor_value_info(f"present.{layer}.{part}", kind, [None] * 4))
    graph = helper.make_graph(
        nodes,
        "exported",
        inputs,
        infos,
        [
            helper.make_tensor("last", INT, [1], [2]),
            helper.make_tensor("zero", INT, [], [0]),
            helper.make_tensor("zeros", INT, [1], [0]),
            helper.make_tensor("one", INT, [1], [1]),
            helper.make_tensor("end", INT, [1], [2**31]),
            helper.make_tensor("five", FLOAT, [1], [5]),
            helper.make_tensor("scale", FLOAT, [1, 1, DIM], [1, 2, 3, -4]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path
