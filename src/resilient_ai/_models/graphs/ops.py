"""A graph as plain data, and the builder that the model families write it with.

Nothing here knows ONNX's protobuf classes: `writing` turns a finished `Graph` into a file. Weights
stay promises (`Initializer.load`) until then, so that a graph of gigabytes costs kilobytes while
it is put together.

A value is known by its name (a string), as in ONNX itself. Values are named after the place they
have in the model, never by a counter alone, so the same model always gives the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Activation", "Graph", "GraphBuilder", "Initializer", "Node", "Port"]

Array = NDArray[Any]
DType = Literal["float32", "int64", "int32"]
Attribute = int | float | str | Sequence[int]
Activation = Literal["gelu", "gelu_tanh", "relu"]

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
    """A constant tensor; `load` makes its values, C-contiguous, when the file is written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    load: Callable[[], Array]

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


class GraphBuilder:
    """Collects nodes and weights in running order; `finish` gives the graph. Not thread-safe.

    Every operator method takes the names of its inputs and the name of its result (`out`), and
    returns that name. A name that was used before is a mistake of the caller and raises.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []
        self._nodes: list[Node] = []
        self._initializers: list[Initializer] = []
        self._names: set[str] = set()

    # -- values ------------------------------------------------------------------------------

    def input(self, name: str, dtype: DType, *dims: int | str) -> str:
        """Declare an input of the graph."""
        self._inputs.append(Port(self._claim(name), dtype, dims))
        return name

    def output(self, value: str, dtype: DType, *dims: int | str) -> None:
        """Declare an existing value to be an output, under its own name."""
        assert value in self._names, f"{value} is not a value of this graph"
        self._outputs.append(Port(value, dtype, dims))

    def weight(self, name: str, shape: tuple[int, ...], load: Callable[[], Array]) -> str:
        """Add a float32 tensor whose values are read when the graph is written."""
        self._initializers.append(Initializer(self._claim(name), "float32", shape, load))
        return name

    def constant(self, name: str, value: float | Sequence[int], dtype: DType) -> str:
        """Add a small tensor whose values are known now."""
        array = np.asarray(value, dtype)
        self._initializers.append(Initializer(self._claim(name), dtype, array.shape, lambda: array))
        return name

    def finish(self, **metadata: str | int) -> Graph:
        """The graph collected so far; `metadata` is written into the file for readers of it."""
        return Graph(
            name=self._name,
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            nodes=tuple(self._nodes),
            initializers=tuple(self._initializers),
            metadata=tuple((key, str(value)) for key, value in sorted(metadata.items())),
        )

    def _claim(self, name: str) -> str:
        assert name not in self._names, f"{name} is named twice in graph {self._name}"
        self._names.add(name)
        return name

    # -- any operator ------------------------------------------------------------------------

    def node(self, op: str, *inputs: str, out: str, domain: str = "", **attributes: Attribute) -> str:
        """Add an operator with one result."""
        self.nodes(op, *inputs, outs=(out,), domain=domain, **attributes)
        return out

    def nodes(
        self, op: str, *inputs: str, outs: Sequence[str], domain: str = "", **attributes: Attribute
    ) -> tuple[str, ...]:
        """Add an operator with several results."""
        missing = [name for name in inputs if name and name not in self._names]
        assert not missing, f"{op} reads {missing}, which nothing has made yet"
        names = tuple(self._claim(name) for name in outs)
        self._nodes.append(Node(op, inputs, names, domain, tuple(sorted(attributes.items()))))
        return names

    # -- operators the families share --------------------------------------------------------

    def add(self, left: str, right: str, *, out: str) -> str:
        return self.node("Add", left, right, out=out)

    def linear(self, x: str, weight: str, bias: str, *, out: str) -> str:
        """`x @ weight + bias`, with `weight` laid out (in, out)."""
        return self.add(self.node("MatMul", x, weight, out=f"{out}/matmul"), bias, out=out)

    def layer_norm(self, x: str, weight: str, bias: str, *, epsilon: float, out: str) -> str:
        """Normalise over the last axis.

        Residual sums are a plain `Add` before it: the CPU kernel of the fused
        `SkipLayerNormalization` is slower than the two operators it replaces.
        """
        return self.node("LayerNormalization", x, weight, bias, out=out, axis=-1, epsilon=epsilon)

    def activation(self, x: str, bias: str, kind: Activation, *, out: str) -> str:
        """`kind(x + bias)`; "gelu" is the exact one (erf), "gelu_tanh" its approximation."""
        if kind == "gelu":
            return self.node("BiasGelu", x, bias, out=out, domain=CONTRIB)
        if kind == "gelu_tanh":
            return self.node("FastGelu", x, bias, out=out, domain=CONTRIB)
        return self.node("Relu", self.add(x, bias, out=f"{out}/biased"), out=out)

    def self_attention(self, x: str, weight: str, bias: str, lengths: str, *, heads: int, out: str) -> str:
        """Every token attends to the real tokens of its row: projections and attention in one.

        `weight` is (hidden, 3 * hidden) and `bias` (3 * hidden,), in the order query, key, value.
        `lengths` is int32 (batch,): keys at and after it get a score so low that their share is
        exactly zero.
        """
        return self.node("Attention", x, weight, bias, lengths, out=out, domain=CONTRIB, num_heads=heads)

    def cross_attention(
        self, query: str, key: str, value: str, bias: str, lengths: str, *, heads: int, out: str
    ) -> str:
        """Projected queries attend to the real keys of their row; `bias` is still to be added.

        `bias` and `lengths` are as in `self_attention`.
        """
        inputs = (query, key, value, bias, lengths)
        return self.node("MultiHeadAttention", *inputs, out=out, domain=CONTRIB, num_heads=heads)

    def unit_rows(self, x: str, *, out: str) -> str:
        """Scale each row of a matrix to length 1; a row of zeros stays a row of zeros."""
        norm = self.node("ReduceL2", x, out=f"{out}/norm", axes=[1], keepdims=1)
        tiny = self.constant(f"{out}/tiny", 1e-12, "float32")
        return self.node("Div", x, self.node("Max", norm, tiny, out=f"{out}/divisor"), out=out)
