"""Turns a `Graph` into an ONNX file, the same bytes for the same graph every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from resilient_ai._models.graphs.graph import CONTRIB, Graph, Initializer, Node, Port

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["INLINE_LIMIT", "graph_files", "write_graph"]

INLINE_LIMIT = 32 * 2**20
"""Bytes of weights up to which they stand inside the graph file.

A protobuf message is copied several times while it is written and cannot pass 2 GiB. Weights in a
file of their own are written one tensor at a time, and a session maps them into memory: the same
speed, a faster start, and a third of the memory while building (docs/decisions.md).
"""

# LayerNormalization came with opset 17; nothing newer is needed, so older runtimes still load it.
_OPSET = 17
_IR_VERSION = 8
# Parts of a file can be mapped into memory from page borders only. Pages have 4 KiB on most machines
# and 64 KiB at most; large tensors stand where any of them can map and share them, and the largest
# where a system that joins pages into huge ones of 2 MiB can do so.
_BORDERS = ((0, 4096), (2**20, 65536), (2**22, 2**21))
"""From how many bytes on a tensor begins at a multiple of how many."""
# What is smaller stays in the graph file: shapes and axes are needed before weights are mapped.
_SMALL = 1024


def graph_files(path: Path, graph: Graph, *, inline_limit: int = INLINE_LIMIT) -> tuple[Path, ...]:
    """The files `write_graph` makes for this graph, weights before the graph that names them."""
    if graph.nbytes <= inline_limit:
        return (path,)
    return path.with_name(f"{path.name}.data"), path


def write_graph(graph: Graph, path: Path, *, inline_limit: int = INLINE_LIMIT) -> None:
    """Write the graph, and beside it its weights where they pass `inline_limit` bytes.

    Not atomic: write into a folder of your own and rename.

    Raises:
        OSError: when a file cannot be written.
        ModelCorrupt: when a weight's values cannot be used.
    """
    files = graph_files(path, graph, inline_limit=inline_limit)
    if len(files) == 1:
        tensors = [_inline(initializer) for initializer in graph.initializers]
    else:
        with files[0].open("wb") as stream:
            tensors = _external(graph, stream, files[0].name)
    path.write_bytes(_model(graph, tensors).SerializeToString(deterministic=True))


def _model(graph: Graph, tensors: list[TensorProto]) -> ModelProto:
    from onnx import helper  # noqa: PLC0415  (slow to import, and needed only when a graph is built)

    nodes = [_node(node) for node in graph.nodes]
    inputs, outputs = ([_value_info(port) for port in ports] for ports in (graph.inputs, graph.outputs))
    proto = helper.make_graph(nodes, graph.name, inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(
        proto, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="resilient_ai"
    )
    helper.set_model_props(model, dict(graph.metadata))
    return model


def _node(node: Node) -> NodeProto:
    from onnx import helper  # noqa: PLC0415

    attributes: dict[str, Any] = dict(node.attributes)
    name = node.outputs[0]
    return helper.make_node(node.op, node.inputs, node.outputs, name=name, domain=node.domain, **attributes)


def _value_info(port: Port) -> ValueInfoProto:
    from onnx import helper  # noqa: PLC0415

    return helper.make_tensor_value_info(port.name, _data_type(port.dtype), list(port.dims))


def _data_type(dtype: str) -> int:
    from onnx import helper  # noqa: PLC0415

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _inline(initializer: Initializer) -> TensorProto:
    tensor = _empty(initializer)
    tensor.raw_data = b"".join(_content(initializer))
    return tensor


def _external(graph: Graph, stream: BinaryIO, location: str) -> list[TensorProto]:
    """Write the weights to `stream`, one after another, and point at them.

    Those with the widest borders come last, so that the small ones leave no gaps between them.
    """
    written = {
        each.name: _inline(each) if each.nbytes < _SMALL else _written(each, stream, location)
        for each in sorted(graph.initializers, key=_border)
    }
    return [written[each.name] for each in graph.initializers]


def _written(initializer: Initializer, stream: BinaryIO, location: str) -> TensorProto:
    from onnx import TensorProto  # noqa: PLC0415

    stream.write(b"\0" * (-stream.tell() % _border(initializer)))
    place = {"location": location, "offset": stream.tell(), "length": initializer.nbytes}
    stream.writelines(_content(initializer))
    tensor = _empty(initializer)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _border(initializer: Initializer) -> int:
    return max(border for least, border in _BORDERS if initializer.nbytes >= least)


def _empty(initializer: Initializer) -> TensorProto:
    from onnx import TensorProto  # noqa: PLC0415

    kind = _data_type(initializer.dtype)
    return TensorProto(name=initializer.name, data_type=kind, dims=initializer.shape)


def _content(initializer: Initializer) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor, piece by piece."""
    # ONNX stores little-endian numbers, whatever the machine.
    little = np.dtype(initializer.dtype).newbyteorder("<")
    left = initializer.nbytes
    for piece in initializer.pieces():
        content = np.ascontiguousarray(piece, little)
        left -= content.nbytes
        yield content.data
    assert left == 0, f"{initializer.name} is not of shape {initializer.shape}"
