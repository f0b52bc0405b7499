"""A graph as plain data; nothing here knows ONNX's protobuf classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONTRIB", "Array", "Attribute", "DType", "Graph", "Initializer", "Node", "Port"]

Array = NDArray[Any]
DType = Literal["float32", "float16", "int64", "int32"]
Attribute = int | float | str | Sequence[int]

CONTRIB = "com.microsoft"
"""The operator domain of ONNX Runtime's own kernels."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph; a dimension is a number or the name of a free axis."""

    name: str
    dtype: DType
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant tensor; `pieces` makes its values when the file is written, and not before.

    Its arrays are parts along the first axis. So a graph of gigabytes costs kilobytes while it is
    put together, and a part of one tensor at a time while it is written.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call; an empty input name is an optional input that is left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str
    attributes: tuple[tuple[str, Attribute], ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A finished graph: nodes in the order they run, and everything they read."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    initializers: tuple[Initializer, ...]
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights together."""
        return sum(initializer.nbytes for initializer in self.initializers)
