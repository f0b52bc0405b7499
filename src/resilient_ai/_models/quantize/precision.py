"""Tells a graph's precision from what is in it. Names of files say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from resilient_ai.errors import ModelCorrupt, ModelNotFound

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["CudaVerdict", "Precision", "graph_precision", "load_model", "precision_of", "runs_on_cuda"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "mixed"]

_INT8_OPS: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QOrderedMatMul",
    }
)
_BLOCK_OPS: Final = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"})
"""Operators whose weights are packed, with the width in an attribute."""

# ONNX Runtime has no CUDA kernels for these: each would send its values to the CPU and back.
_CPU_ONLY: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QEmbedLayerNormalization",
        "QGemm",
    }
)
_SUBSTANTIAL: Final = 0.1
"""A type that holds less of the weights than this is not what the graph is about."""
_SMALL: Final = 1024
"""Tensors of fewer numbers are shapes, scales and biases."""


@dataclass(frozen=True, slots=True)
class CudaVerdict:
    """Whether a graph can run on CUDA as a whole; `reason` says why not, or is empty. Truthy if so."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def graph_precision(path: Path) -> Precision:
    """The precision of a graph's weights, "mixed" where no single word is true.

    A graph whose products run on integers is "int8" or "int4", whatever else it holds.

    Raises:
        ModelNotFound: when there is no such file.
        ModelCorrupt: when it is not an ONNX model.
    """
    return precision_of(load_model(path))


def precision_of(model: ModelProto) -> Precision:
    """The same of a model in memory, whose weights may be elsewhere."""
    widths = {width for node in _nodes(model.graph) for width in _integer_width(node)}
    widths |= _dequantized_widths(model.graph)
    if len(widths) > 1:
        return "mixed"
    if widths:
        return "int8" if widths == {8} else "int4"
    return _stored_precision(model.graph)


def runs_on_cuda(path: Path) -> CudaVerdict:
    """Whether ONNX Runtime's CUDA provider has every operator of a graph.

    Raises:
        ModelNotFound: when there is no such file.
        ModelCorrupt: when it is not an ONNX model.
    """
    found = {node.op_type for node in _nodes(load_model(path).graph)}
    lacking = sorted(op for op in found if op in _CPU_ONLY or op.startswith("QLinear"))
    if not lacking:
        return CudaVerdict(ok=True, reason="")
    reason = f"CUDA has no {', '.join(lacking)}; this graph is for the CPU. Use fp16 or fp32 on the GPU."
    return CudaVerdict(ok=False, reason=reason)


def load_model(path: Path) -> ModelProto:
    """Read an ONNX file, but not the weights that it keeps in other files.

    Raises:
        ModelNotFound: when there is no such file.
        ModelCorrupt: when it is not an ONNX model.
    """
    import onnx  # noqa: PLC0415  (slow to import, and needed only for files not seen before)

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} is not there. Fetch the model again.") from exc
    except Exception as exc:  # protobuf's DecodeError has no typed home; whatever it is, it cannot be read
        raise ModelCorrupt(f"{path} is not a readable ONNX file ({exc}). Fetch it again.") from exc
    # An empty or cut file can still be a valid message with nothing in it.
    if not model.graph.node:
        raise ModelCorrupt(f"{path} holds no ONNX graph; it may be truncated. Fetch it again.")
    return model


def _nodes(graph: GraphProto) -> Iterable[NodeProto]:
    """Every node, those of nested graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from _nodes(nested)


def _integer_width(node: NodeProto) -> Iterable[int]:
    """The bits of the weights an operator takes, where it works on integers."""
    if node.op_type in _INT8_OPS or node.op_type.startswith("QLinear"):
        yield 8
    elif node.op_type in _BLOCK_OPS:
        bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
        yield 8 if bits > 4 else 4  # noqa: PLR2004 - bits to a number


def _dequantized_widths(graph: GraphProto) -> set[int]:
    """The bits of stored weights that are turned into floats before they are used."""
    from onnx import TensorProto  # noqa: PLC0415

    widths: dict[int, int] = {TensorProto.INT8: 8, TensorProto.UINT8: 8}
    for kind in ("INT4", "UINT4", "INT2", "UINT2"):  # not in every version of onnx
        if hasattr(TensorProto, kind):
            widths[getattr(TensorProto, kind)] = 4
    stored = {tensor.name: tensor for tensor in _tensors(graph)}
    fed = (node.input[0] for node in _nodes(graph) if node.op_type == "DequantizeLinear")
    kinds = (stored[name].data_type for name in fed if name in stored and _count(stored[name]) >= _SMALL)
    return {widths[kind] for kind in kinds if kind in widths}


def _stored_precision(graph: GraphProto) -> Precision:
    from onnx import TensorProto  # noqa: PLC0415

    names: dict[int, Precision] = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "int8",
    }
    held: Counter[Precision] = Counter()
    for tensor in _tensors(graph):
        if tensor.data_type in names:
            held[names[tensor.data_type]] += _count(tensor)
    substantial = [name for name, count in held.items() if count >= _SUBSTANTIAL * held.total()]
    return substantial[0] if len(substantial) == 1 else "mixed" if substantial else "fp32"


def _tensors(graph: GraphProto) -> Iterable[TensorProto]:
    """Every stored tensor: weights, and constants as nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                # A constant is known by the name of what its node gives.
                tensor = type(attribute.t)()
                tensor.dims.extend(attribute.t.dims)
                tensor.data_type, tensor.name = attribute.t.data_type, node.output[0]
                yield tensor
            for nested in (attribute.g, *attribute.graphs):
                yield from _tensors(nested)


def _count(tensor: TensorProto) -> int:
    return prod(tensor.dims)
