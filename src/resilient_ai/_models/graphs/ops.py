"""The builder that the model families write their graphs with.

A value is known by its name (a string), as in ONNX itself. Values are named after the place they
have in the model, never by a counter alone, so the same model always gives the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import numpy as np

from resilient_ai._models.graphs.graph import (
    CONTRIB,
    Array,
    Attribute,
    DType,
    Graph,
    Initializer,
    Node,
    Port,
)
from resilient_ai._models.graphs.halves import to_half

__all__ = ["FLOAT", "INT32", "INT64", "Activation", "GraphBuilder"]

Activation = Literal["gelu", "gelu_tanh", "relu"]

FLOAT, INT32, INT64, _HALF = 1, 6, 7, 10  # as TensorProto numbers them
_NOT_CONTAGIOUS: Final = frozenset({"Cast", "Shape"})


class GraphBuilder:
    """Collects nodes and weights in running order; `finish` gives the graph. Not thread-safe.

    Every operator method takes the names of its inputs and the name of its result (`out`), and
    returns that name. A name that was used before is a mistake of the caller and raises.

    With `half` the graph computes in two precisions. Matrices are stored in float16, and what is
    computed from a float16 value is float16 too; `narrow` and `wide` lead from one to the other.
    Without `half` all is float32 and these two do nothing.
    """

    def __init__(self, name: str, *, half: bool = False) -> None:
        self._name = name
        self._half = half
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []
        self._nodes: list[Node] = []
        self._initializers: list[Initializer] = []
        self._constants: dict[str, Array] = {}
        self._names: set[str] = set()
        self._narrow: set[str] = set()
        self._casts: dict[str, str] = {}

    # -- values ------------------------------------------------------------------------------

    def input(self, name: str, dtype: DType, *dims: int | str) -> str:
        """Declare an input of the graph."""
        self._inputs.append(Port(self._claim(name), dtype, dims))
        return name

    def output(self, value: str, dtype: DType, *dims: int | str) -> None:
        """Declare an existing value to be an output, under its own name."""
        assert value in self._names, f"{value} is not a value of this graph"
        assert value not in self._narrow, f"output {value} is in half precision"
        self._outputs.append(Port(value, dtype, dims))

    def weight(self, name: str, shape: tuple[int, ...], load: Callable[[], Array]) -> str:
        """Add a float32 tensor whose values are read when the graph is written."""
        return self._initialize(name, "float32", shape, lambda: (load(),))

    def matrix(self, name: str, shape: tuple[int, ...], load: Callable[[], Array]) -> str:
        """Like `weight`, for a tensor that is worth storing in half precision."""
        return self.table(name, shape, lambda: (load(),))

    def table(self, name: str, shape: tuple[int, ...], pieces: Callable[[], Iterable[Array]]) -> str:
        """Like `matrix`, for a tensor so large that it comes in parts along its first axis."""
        if not self._half:
            return self._initialize(name, "float32", shape, pieces)
        self._narrow.add(name)
        return self._initialize(name, "float16", shape, lambda: (to_half(name, piece) for piece in pieces()))

    def constant(self, name: str, value: float | Sequence[int], dtype: DType) -> str:
        """A small tensor whose values are known now; the first to name it adds it."""
        array = np.asarray(value, dtype)
        if name in self._constants:
            assert np.array_equal(self._constants[name], array), f"constant {name} has two values"
            return name
        self._constants[name] = array
        return self._initialize(name, dtype, array.shape, lambda: (array,))

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

    def _initialize(
        self, name: str, dtype: DType, shape: tuple[int, ...], pieces: Callable[[], Iterable[Array]]
    ) -> str:
        self._initializers.append(Initializer(self._claim(name), dtype, shape, pieces))
        return name

    def has(self, name: str) -> bool:
        """Whether a value of that name was made already."""
        return name in self._names

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
        if op not in _NOT_CONTAGIOUS and not self._narrow.isdisjoint(inputs):
            self._narrow.update(names)
        self._nodes.append(Node(op, inputs, names, domain, tuple(sorted(attributes.items()))))
        return names

    # -- precision ---------------------------------------------------------------------------

    def narrow(self, x: str) -> str:
        """`x` in the precision of the matrices."""
        if not self._half or not x or x in self._narrow:
            return x
        name = self._casts.get(x)
        if name is None:
            name = self._casts[x] = self.node("Cast", x, out=f"{x}/half", to=_HALF)
            self._narrow.add(name)
        return name

    def wide(self, x: str) -> str:
        """`x` in float32."""
        return self.node("Cast", x, out=f"{x}/wide", to=FLOAT) if x in self._narrow else x

    # -- operators the families share --------------------------------------------------------

    def add(self, left: str, right: str, *, out: str) -> str:
        return self.node("Add", left, right, out=out)

    def matmul(self, x: str, weight: str, *, out: str) -> str:
        """`x @ weight`, with `weight` laid out (in, out), in the precision of the weight."""
        return self.node("MatMul", self.narrow(x) if weight in self._narrow else x, weight, out=out)

    def linear(self, x: str, weight: str, bias: str, *, out: str) -> str:
        """`x @ weight + bias`; the sum is float32."""
        return self.add(self.wide(self.matmul(x, weight, out=f"{out}/matmul")), bias, out=out)

    def layer_norm(self, x: str, weight: str, bias: str, *, epsilon: float, out: str) -> str:
        """Normalise over the last axis.

        Residual sums are a plain `Add` before it: the CPU kernel of the fused
        `SkipLayerNormalization` is slower than the two operators it replaces.
        """
        return self.node("LayerNormalization", x, weight, bias, out=out, axis=-1, epsilon=epsilon)

    def rms_norm(self, x: str, weight: str, *, epsilon: float, out: str) -> str:
        """Scale the last axis to a mean square of 1, then by `weight`."""
        return self.node("SimplifiedLayerNormalization", x, weight, out=out, axis=-1, epsilon=epsilon)

    def activation(self, x: str, bias: str, kind: Activation, *, out: str) -> str:
        """`kind(x + bias)`; "gelu" is the exact one (erf), "gelu_tanh" its approximation."""
        bias = self.narrow(bias)
        if kind == "gelu":
            return self.node("BiasGelu", x, bias, out=out, domain=CONTRIB)
        if kind == "gelu_tanh":
            return self.node("FastGelu", x, bias, out=out, domain=CONTRIB)
        return self.node("Relu", self.add(x, bias, out=f"{out}/biased"), out=out)

    def gated(self, x: str, gate: str, up: str, *, out: str) -> str:
        """`silu(x @ gate) * (x @ up)`."""
        opened = self.matmul(x, gate, out=f"{out}/gate")
        share = self.node("Sigmoid", opened, out=f"{out}/share")
        opened = self.node("Mul", opened, share, out=f"{out}/opened")
        return self.node("Mul", opened, self.matmul(x, up, out=f"{out}/up"), out=out)

    def unit_rows(self, x: str, *, out: str) -> str:
        """Scale the last axis to length 1; zeros stay zeros."""
        norm = self.node("ReduceL2", x, out=f"{out}/norm", axes=[-1], keepdims=1)
        tiny = self.constant("tiny", 1e-12, "float32")
        return self.node("Div", x, self.node("Max", norm, tiny, out=f"{out}/divisor"), out=out)
