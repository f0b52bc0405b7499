"""Tells what an ONNX file is without loading its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from resilient_ai.errors import ModelCorrupt, ModelNotFound

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

__all__ = ["GraphDescription", "describe_graph"]

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class GraphDescription:
    """The outside of a graph.

    `dims` has the shape of every input and output: a number, the name of a free axis, or None
    for an axis that is not told. `external_files` are the files beside the graph that hold its
    weights; `missing_files` are those of them that are absent or too short.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Dims]
    external_files: tuple[str, ...]
    missing_files: tuple[str, ...]
    opset: int
    metadata: Mapping[str, str]

    def require_complete(self) -> None:
        """Raise `ModelCorrupt` when a file with weights is missing or truncated."""
        if self.missing_files:
            names = ", ".join(self.missing_files)
            msg = f"{self.path} keeps its weights in {names}, which is missing or truncated"
            raise ModelCorrupt(f"{msg} in {self.path.parent}. Fetch the model again.")


def describe_graph(path: Path) -> GraphDescription:
    """Read an ONNX file's inputs, outputs and needs.

    Raises:
        ModelNotFound: when there is no such file.
        ModelCorrupt: when it is not an ONNX model, or points outside its folder.
    """
    model = _load(path)
    needed = _external_needs(path, model.graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    # Old exports list weights among the inputs.
    inputs = [port for port in model.graph.input if port.name not in weights]
    return GraphDescription(
        path=path,
        inputs=tuple(port.name for port in inputs),
        outputs=tuple(port.name for port in model.graph.output),
        dims=MappingProxyType({port.name: _dims(port) for port in (*inputs, *model.graph.output)}),
        external_files=tuple(needed),
        missing_files=tuple(name for name, size in needed.items() if not _holds(path.parent / name, size)),
        opset=next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0),
        metadata=MappingProxyType({entry.key: entry.value for entry in model.metadata_props}),
    )


def _load(path: Path) -> ModelProto:
    import onnx  # noqa: PLC0415  (slow to import, and needed only for files not seen before)

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} is not there. Fetch the model again.") from exc
    except Exception as exc:  # protobuf's DecodeError has no typed home; whatever it is, it cannot be read
        raise ModelCorrupt(f"{path} is not a readable ONNX file ({exc}). Fetch it again.") from exc
    # An empty or cut file can still be a valid message with nothing in it.
    if not model.graph.node or not model.graph.output:
        raise ModelCorrupt(f"{path} holds no ONNX graph; it may be truncated. Fetch it again.")
    return model


def _external_needs(path: Path, graph: GraphProto) -> dict[str, int]:
    """Per file beside the graph, the bytes it must at least have; sorted by name."""
    needs: dict[str, int] = {}
    for tensor in _tensors(graph):
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            continue
        name = place.get("location", "")
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelCorrupt(
                f"{path}: tensor '{tensor.name}' lies at {name!r}, outside the model's folder."
            )
        try:
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
        except ValueError as exc:
            raise ModelCorrupt(f"{path}: tensor '{tensor.name}' has an unreadable place ({exc}).") from exc
        needs[name] = max(end, needs.get(name, 0))
    return dict(sorted(needs.items()))


def _tensors(graph: GraphProto) -> Iterable[TensorProto]:
    """Every stored tensor: weights, constants, and those of nested graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for nested in (attribute.g, *attribute.graphs):
                yield from _tensors(nested)


def _holds(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size >= size


def _dims(port: ValueInfoProto) -> Dims:
    shape = port.type.tensor_type.shape
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in shape.dim)
