"""The float32 graph that is made smaller: its structure in memory, its weights where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.graphs.describe import describe_graph
from resilient_ai._models.quantize.precision import load_model, precision_of
from resilient_ai.errors import ConfigurationError, ModelCorrupt

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

__all__ = ["SourceGraph"]


@dataclass(frozen=True, slots=True, eq=False)
class SourceGraph:
    """A graph and its stored tensors by name. Files must not change while it is used."""

    path: Path
    model: ModelProto
    tensors: Mapping[str, TensorProto]
    external_files: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> SourceGraph:
        """Read a graph's structure; weights in files of their own are not touched.

        Raises:
            ModelNotFound: when there is no such file.
            ModelCorrupt: when it is not an ONNX model, or weights are missing.
            ConfigurationError: when its weights are not float32, so that it is no graph to start from.
        """
        description = describe_graph(path)
        description.require_complete()
        model = load_model(path)
        precision = precision_of(model)
        if precision != "fp32":
            raise ConfigurationError(
                f"{path} is a graph of {precision} already; int8 is made from fp32. "
                "Use the model's fp32 graph."
            )
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        return cls(path, model, tensors, description.external_files)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators that the graph is written in."""
        versions = (entry.version for entry in self.model.opset_import if entry.domain in {"", "ai.onnx"})
        return int(next(versions, 0))

    def is_matrix(self, name: str) -> bool:
        """Whether a name is that of a stored float32 tensor of two dimensions."""
        tensor = self.tensors.get(name)
        return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == 1  # noqa: PLR2004

    def is_vector(self, name: str) -> bool:
        """Whether a name is that of a stored float32 tensor of one dimension."""
        tensor = self.tensors.get(name)
        return tensor is not None and len(tensor.dims) == 1 and tensor.data_type == 1

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].dims)

    def load(self, name: str) -> NDArray[Any]:
        """The values of a stored tensor, read-only; those of another file are mapped, not read.

        Raises:
            ModelCorrupt: when there are fewer than its shape says.
        """
        try:
            return self._load(self.tensors[name])
        except (ValueError, OSError) as exc:
            raise ModelCorrupt(
                f"{self.path}: the values of {name!r} cannot be read ({exc}). Fetch the model again."
            ) from exc

    def _load(self, tensor: TensorProto) -> NDArray[Any]:
        from onnx import helper, numpy_helper  # noqa: PLC0415  (slow to import)

        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            return numpy_helper.to_array(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).newbyteorder("<")
        size = prod(tensor.dims)
        if not size:
            return np.empty(tuple(tensor.dims), dtype)
        file = self.path.parent / place["location"]
        mapped = np.memmap(file, dtype, "r", int(place.get("offset", 0)), (size,))
        return mapped.reshape(tuple(tensor.dims))
