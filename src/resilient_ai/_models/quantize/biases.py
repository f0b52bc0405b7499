"""Puts constants that products leave over into the biases that are added after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.quantize.source import SourceGraph
from resilient_ai.values import FloatArray

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["Biases"]

_ADDING: Final = frozenset({"Add", "BiasGelu", "FastGelu"})
_ATTENTION_BIAS: Final = 3
"""The input of `MultiHeadAttention` that holds the biases of query, key and value, in this order."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The `width` numbers from `start` on of a node's input `number`, a stored vector."""

    node: str
    number: int
    start: int
    width: int


class Biases:
    """The stored vectors that are added to values of a graph, and what more is to be added there.

    `nodes` are those that may do so, `reads` the names of what is read in the graph, each as often as
    that is. Not thread-safe.
    """

    def __init__(self, source: SourceGraph, nodes: Iterable[NodeProto], reads: Iterable[str]) -> None:
        self._source = source
        self._late: dict[str, dict[_Place, FloatArray]] = {}
        counts = Counter(reads)
        found = (pair for node in nodes for pair in self._found(node))
        self._places = {value: place for value, place in found if counts[value] == 1}

    def takes(self, value: str, width: int) -> bool:
        """Whether whoever reads the value adds as wide a stored vector, and nobody else reads it."""
        place = self._places.get(value)
        return place is not None and place.width == width

    def defer(self, value: str, vector: FloatArray) -> None:
        """Have a vector added to the value where its bias is; it must be one that is taken."""
        place = self._places[value]
        self._late.setdefault(place.node, {})[place] = vector

    def settle(self, node: NodeProto, keep: Callable[[str, NDArray[Any]], str]) -> NodeProto:
        """The node as it is, or a copy whose bias, handed to `keep`, includes what was deferred."""
        late = self._late.pop(node.output[0], {}) if node.output else {}
        if not late:
            return node
        number = next(iter(late)).number
        bias = np.array(self._source.load(node.input[number]), np.float32)
        for place, vector in late.items():
            bias[place.start : place.start + place.width] += vector
        settled = type(node)()
        settled.CopyFrom(node)
        settled.input[number] = keep(f"{node.output[0]}/int8/bias", bias)
        return settled

    def _found(self, node: NodeProto) -> Iterator[tuple[str, _Place]]:
        """What a node adds stored vectors to, and where it has them from."""
        out, inputs = next(iter(node.output), ""), node.input
        if node.op_type in _ADDING:
            for number, other in ((0, 1), (1, 0)):
                if len(inputs) > 1 and self._source.is_vector(inputs[number]):
                    yield inputs[other], _Place(out, number, 0, *self._source.shape(inputs[number]))
        elif node.op_type == "MultiHeadAttention" and self._source.is_vector(_at(inputs, _ATTENTION_BIAS)):
            # Where values are not as wide as queries, nothing will fit.
            width = self._source.shape(inputs[_ATTENTION_BIAS])[0] // _ATTENTION_BIAS
            for part, name in enumerate(inputs[:_ATTENTION_BIAS]):
                yield name, _Place(out, _ATTENTION_BIAS, part * width, width)


def _at(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else ""
