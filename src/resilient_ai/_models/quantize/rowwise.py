"""The operators of a product on integers, with a scale for every row and every column.

::

    x --by its channels' scales--> low, high of each row --> uint8 --MatMulIntegerToFloat-->
      --times the row's scale--> --plus [float32 columns, low] @ a few rows of weights--> --plus bias-->

Each arrow is a pass over all values, and there the time goes that the integers leave. So what is
known of a value spares what it can: the reading of its least values, the shift by them, and their
share in the product (see `Treatment`).

A row is a token, and nothing of a row depends on another: so a text's answer does not depend on
what it is batched with, as it does where one scale serves a whole batch. Values are unsigned and
weights signed: the other way round, and with both signed, ONNX Runtime's kernels are far slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.quantize.integers import Int8Array, quantize_rows
from resilient_ai._models.quantize.outliers import Treatment
from resilient_ai.values import FloatArray

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["RowwiseNodes"]

_AXES_ARE_INPUTS: Final = 18
"""The opset from which reductions take their axes as an input."""

_FLOAT: Final = 1  # TensorProto.FLOAT

Keep = Callable[[str, NDArray[Any]], str]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A value as integers: of each row its way's `levels` are worth its number in `span`.

    `beside` is what is multiplied in float32, "" for nothing: the columns of `way`, and then the
    rows' least values where these have to be added again.
    """

    integers: str
    zero: str
    span: str
    beside: str
    way: Treatment


class RowwiseNodes:
    """Collects a graph's operators and hands their weights on. Not thread-safe.

    `keep` stores a tensor under a name and returns the name.
    """

    def __init__(self, keep: Keep, *, opset: int) -> None:
        self.nodes: list[NodeProto] = []
        self.keep = keep
        self._opset = opset
        self._rows: dict[str, _Rows] = {}
        self._constants: set[str] = set()

    def product(
        self, x: str, matrix: NDArray[Any], way: Treatment, *, added: Sequence[str], out: str
    ) -> None:
        """`out = x @ matrix`, and what is `added` to that; the matrix is one that `way` leveled.

        Products of the same `x` share its integers, so also its `way`.
        """
        if x not in self._rows:
            self._rows[x] = self._to_integers(x, way)
        rows = self._rows[x]
        beside = np.asarray(matrix[way.columns], np.float32)
        weights, scales = way.integers_of(matrix)
        if way.is_corrected:
            # What each row's least value was worth, now that it is 0.
            beside = np.vstack([beside, np.sum(weights, axis=0, dtype=np.int64) * scales])
        parts = [self._multiply(rows, weights, scales, out)]
        if rows.beside:
            parts.append(self._multiply_beside(rows.beside, beside.astype(np.float32), out))
        self._add([*parts, *added], out)

    def table(self, table: NDArray[Any], ids: str, *, out: str) -> None:
        """`out`: the rows of a table that `ids` name, kept as int8 with a scale each."""
        values, scales = quantize_rows(table)
        found = self._node("Gather", self.keep(f"{out}/int8/rows", values), ids, out=f"{out}/int8/found")
        scale = self._node("Gather", self.keep(f"{out}/int8/scales", scales), ids, out=f"{out}/int8/scale")
        floats = self._node("Cast", found, out=f"{out}/int8/floats", to=_FLOAT)
        self._node("Mul", floats, scale, out=out)

    def _to_integers(self, x: str, way: Treatment) -> _Rows:
        rest, beside = self._set_apart(x, way)
        rest, range_, low = self._range(x, rest, way)
        beside += [low] if way.is_corrected else []
        # On a column each is many times as fast as `Max` and `Div` with a constant.
        least = self._number(f"least/{way.least_span!r}", way.least_span)
        span = self._node("Clip", range_, least, out=f"{x}/int8/span")
        density = self._node("Reciprocal", span, out=f"{x}/int8/density")
        shares = self._node("Mul", rest, density, out=f"{x}/int8/shares")
        zero = self._constant(f"zero/{way.zero or 0}", np.array(way.zero or 0, np.uint8))
        step = self._number(f"step/{way.levels}", 1 / way.levels)
        integers = self._node("QuantizeLinear", shares, step, zero, out=f"{x}/int8")
        if len(beside) > 1:
            beside = [self._node("Concat", *beside, out=f"{x}/int8/beside", axis=-1)]
        return _Rows(integers, zero, span, "".join(beside), way)

    def _range(self, x: str, rest: str, way: Treatment) -> tuple[str, str, str]:
        """What becomes integers, how far each row reaches, and its least value; "" where not needed."""
        high = self._reduce("ReduceMax", rest, out=f"{x}/int8/high")
        if way.floor is not None:
            return rest, high, ""
        low = self._reduce("ReduceMin", rest, out=f"{x}/int8/low")
        if way.zero is None:
            above = self._node("Sub", rest, low, out=f"{x}/int8/above")
            return above, self._node("Sub", high, low, out=f"{x}/int8/range"), low
        depth = self._node("Neg", low, out=f"{x}/int8/depth")
        return rest, self._node("Max", high, depth, out=f"{x}/int8/range"), low

    def _set_apart(self, x: str, way: Treatment) -> tuple[str, list[str]]:
        """`x` by its scales, which are 0 for the float32 columns, and those columns."""
        if way.scales is None:
            return x, []
        rest = self._node("Mul", x, self.keep(f"{x}/int8/scales", way.scales), out=f"{x}/int8/rest")
        columns = self.keep(f"{x}/int8/columns", way.columns)
        return rest, [self._node("Gather", x, columns, out=f"{x}/int8/apart", axis=-1)]

    def _multiply(self, rows: _Rows, weights: Int8Array, scales: FloatArray, out: str) -> str:
        one = self._number("one", 1)
        weight = self.keep(f"{out}/int8/weight", weights)
        scale = self.keep(f"{out}/int8/scale", scales / np.float32(rows.way.levels))
        inputs = (rows.integers, weight, one, scale, rows.zero)
        steps = self._node("MatMulIntegerToFloat", *inputs, out=f"{out}/int8/steps", domain=CONTRIB)
        return self._node("Mul", steps, rows.span, out=f"{out}/int8/product")

    def _multiply_beside(self, beside: str, weights: FloatArray, out: str) -> str:
        # With a single row of weights it is a multiplication, which is faster.
        op, kept = ("MatMul", weights) if len(weights) > 1 else ("Mul", weights[0])
        return self._node(op, beside, self.keep(f"{out}/int8/beside", kept), out=f"{out}/int8/rest")

    def _add(self, parts: list[str], out: str) -> None:
        """Give the sum of the parts the name `out`."""
        total = parts[0]
        for number, part in enumerate(parts[1:]):
            total = self._node("Add", total, part, out=f"{out}/int8/sum{number}")
        self.nodes[-1].output[0] = self.nodes[-1].name = out

    def _reduce(self, op: str, x: str, *, out: str) -> str:
        if self._opset < _AXES_ARE_INPUTS:
            return self._node(op, x, out=out, axes=[-1], keepdims=1)
        axis = self._constant("last_axis", np.array([-1], np.int64))
        return self._node(op, x, axis, out=out, keepdims=1)

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        name = f"int8/{name}"
        if name not in self._constants:
            self._constants.add(name)
            self.keep(name, value)
        return name

    def _node(self, op: str, *inputs: str, out: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper  # noqa: PLC0415  (slow to import)

        node = helper.make_node(op, inputs, [out], name=out, domain=domain, **attributes)
        self.nodes.append(node)
        return out
