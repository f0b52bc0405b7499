"""Finds what int8 can take over in a graph: products with stored matrices, and tables of rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.quantize.source import SourceGraph

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["Product", "Replacement", "find_replacements", "find_tables"]

_LEAST_SIDE: Final = 32
_LEAST_SIZE: Final = 2**13
"""Smaller matrices (heads of one column, gates) cost nothing in float32 and are often sensitive."""

_LEAST_TABLE: Final = 2**18
"""Numbers from which a table of embeddings is worth the two more operators."""

_ATTENTION_INPUTS: Final = 6
_PAST, _BIAS = 4, 5
_SHARED_ATTRIBUTES: Final = frozenset({"num_heads", "mask_filter_value", "scale", "unidirectional"})


@dataclass(frozen=True, slots=True)
class Product:
    """`out = x @ matrix + bias`, over the last axis of `x`.

    The matrix is the stored tensor `weight`, `transposed` first where that is set, and of it the
    `part`-th of `parts` equal blocks of columns. `bias` is the name of what is added, or "".
    """

    x: str
    weight: str
    out: str
    bias: str = ""
    transposed: bool = False
    part: int = 0
    parts: int = 1

    def matrix(self, source: SourceGraph) -> NDArray[Any]:
        """The values, (in, out); a view of what is stored."""
        stored = source.load(self.weight)
        matrix = stored.T if self.transposed else stored
        width = matrix.shape[1] // self.parts
        return matrix[:, self.part * width : (self.part + 1) * width]


@dataclass(frozen=True, slots=True)
class Replacement:
    """A node that goes, the products that come instead, and the nodes that follow those."""

    node: NodeProto
    products: tuple[Product, ...]
    after: tuple[NodeProto, ...] = ()


def find_replacements(source: SourceGraph) -> list[Replacement]:
    """The nodes that int8 takes over, in their order; nested graphs are left alone."""
    found = (_replacement(source, node) for node in source.model.graph.node)
    return [replacement for replacement in found if replacement is not None]


def find_tables(source: SourceGraph) -> list[NodeProto]:
    """The nodes that look up rows of large stored tables."""
    return [
        node
        for node in source.model.graph.node
        if node.op_type == "Gather"
        and source.is_matrix(node.input[0])
        and _attributes(node).get("axis", 0) == 0
        and prod(source.shape(node.input[0])) >= _LEAST_TABLE
    ]


def _replacement(source: SourceGraph, node: NodeProto) -> Replacement | None:
    if node.op_type == "MatMul" and node.domain in {"", "ai.onnx"}:
        product = Product(node.input[0], node.input[1], node.output[0])
    elif node.op_type == "Gemm":
        attributes = _attributes(node)
        scaled = attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1
        if scaled or attributes.get("transA", 0):
            return None
        bias = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004 - the third input
        turned = bool(attributes.get("transB", 0))
        product = Product(node.input[0], node.input[1], node.output[0], bias, turned)
    elif node.op_type == "Attention" and node.domain == CONTRIB:
        return _attention(source, node)
    else:
        return None
    return Replacement(node, (product,)) if _is_worth_it(source, product.weight) else None


def _attention(source: SourceGraph, node: NodeProto) -> Replacement | None:
    """Projections and attention in one: what follows the projections stays in float32."""
    inputs = [*node.input, *[""] * (_ATTENTION_INPUTS - len(node.input))]
    attributes = _attributes(node)
    simple = len(inputs) == _ATTENTION_INPUTS and not inputs[_PAST] and len(node.output) == 1
    if not simple or not _SHARED_ATTRIBUTES.issuperset(attributes) or not _is_worth_it(source, inputs[1]):
        return None
    if source.shape(inputs[1])[1] % 3:
        return None
    x, weight, bias, mask, _, added = inputs
    out = node.output[0]
    products = tuple(
        Product(x, weight, f"{out}/{name}", part=part, parts=3)
        for part, name in enumerate(("query", "key", "value"))
    )
    return Replacement(node, products, (_attend(node, products, (bias, mask, added)),))


def _attend(node: NodeProto, products: tuple[Product, ...], others: tuple[str, str, str]) -> NodeProto:
    from onnx import helper  # noqa: PLC0415  (slow to import)

    inputs = [*(product.out for product in products), *others]
    while not inputs[-1]:
        inputs.pop()
    attended = helper.make_node("MultiHeadAttention", inputs, node.output, name=node.name, domain=CONTRIB)
    attended.attribute.extend(node.attribute)
    return attended


def _is_worth_it(source: SourceGraph, weight: str) -> bool:
    if not source.is_matrix(weight):
        return False
    shape = source.shape(weight)
    return min(shape) >= _LEAST_SIDE and prod(shape) >= _LEAST_SIZE


def _attributes(node: NodeProto) -> dict[str, Any]:
    from onnx import helper  # noqa: PLC0415

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
