"""Writes a graph anew with integers where float32 was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.quantize.biases import Biases
from resilient_ai._models.quantize.integers import row_error
from resilient_ai._models.quantize.outliers import Treatment
from resilient_ai._models.quantize.products import Product, Replacement, find_tables
from resilient_ai._models.quantize.recipes import Recipe
from resilient_ai._models.quantize.rowwise import RowwiseNodes
from resilient_ai._models.quantize.source import SourceGraph
from resilient_ai._models.quantize.weight_file import WeightFile

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

__all__ = ["Plan", "rewrite"]

_TABLE_LIMIT: Final = 0.01
"""How far a row may move, as a share of its length, for a table of embeddings to become int8."""

_LEAST_IR: Final = 4
"""The version from which stored tensors need not be inputs too."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What becomes of a graph: `replacements` and `tables` by the first output of their nodes.

    `ways` says how each value that products read is turned into integers.
    """

    replacements: Mapping[str, Replacement]
    tables: Mapping[str, NodeProto]
    ways: Mapping[str, Treatment]

    @classmethod
    def of(
        cls, source: SourceGraph, replacements: Iterable[Replacement], ways: Mapping[str, Treatment]
    ) -> Plan:
        """Leave out what `ways` says nothing of, and the tables whose rows int8 would spoil."""
        taken = {each.node.output[0]: each for each in replacements if each.products[0].x in ways}
        tables = {
            node.output[0]: node
            for node in find_tables(source)
            if row_error(source.load(node.input[0])) <= _TABLE_LIMIT
        }
        return cls(taken, tables, ways)

    def nodes_that_stay(self, source: SourceGraph) -> Iterator[NodeProto]:
        """Those that are not replaced, and those that follow the products of those that are."""
        for node in source.model.graph.node:
            replacement = self.replacements.get(node.output[0]) if node.output else None
            yield from (node,) if replacement is None else replacement.after

    def reads(self, source: SourceGraph) -> Iterator[str]:
        """What is read by the products that come, and by whoever asks the graph."""
        for replacement in self.replacements.values():
            yield from (product.x for product in replacement.products)
        yield from (port.name for port in source.model.graph.output)

    def nbytes(self, source: SourceGraph) -> int:
        """About how many bytes the weights will have."""
        shrunk = {product.weight for each in self.replacements.values() for product in each.products}
        shrunk |= {node.input[0] for node in self.tables.values()}
        return sum(_nbytes(tensor) // (4 if name in shrunk else 1) for name, tensor in source.tensors.items())


def rewrite(source: SourceGraph, plan: Plan, recipe: Recipe, path: Path, data: Path | None) -> None:
    """Write the graph to `path`, and its weights to `data`; with None they stay inside.

    One matrix is in memory at a time.

    Raises:
        OSError: when a file cannot be written.
    """
    with WeightFile(data) as weights:
        nodes = _rewritten(source, plan, weights)
        _keep_the_rest(source, nodes, weights)
        model = _model(source, nodes, weights.tensors, recipe)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rewritten(source: SourceGraph, plan: Plan, weights: WeightFile) -> list[NodeProto]:
    made = RowwiseNodes(weights.add, opset=source.opset)
    stay = list(plan.nodes_that_stay(source))
    biases = Biases(source, stay, [*_reads(stay), *plan.reads(source)])
    for node in source.model.graph.node:
        out = node.output[0] if node.output else ""
        if out in plan.replacements:
            replacement = plan.replacements[out]
            for product in replacement.products:
                _multiply(made, product, product.matrix(source), plan.ways[product.x], biases)
            made.nodes.extend(biases.settle(after, weights.add) for after in replacement.after)
        elif out in plan.tables:
            made.table(source.load(node.input[0]), node.input[1], out=out)
        else:
            made.nodes.append(biases.settle(node, weights.add))
    return made.nodes


def _multiply(
    made: RowwiseNodes, product: Product, matrix: NDArray[Any], way: Treatment, biases: Biases
) -> None:
    leveled, offset = way.leveled(matrix)
    added = [product.bias] if product.bias else []
    if offset.any() and biases.takes(product.out, len(offset)):
        biases.defer(product.out, offset)
    elif offset.any():
        added.append(made.keep(f"{product.out}/int8/offset", offset))
    made.product(product.x, leveled, way, added=added, out=product.out)


def _keep_the_rest(source: SourceGraph, nodes: Iterable[NodeProto], weights: WeightFile) -> None:
    """Take over the stored tensors that are still read."""
    read = set(_reads(nodes)) | {port.name for port in source.model.graph.output}
    for name, tensor in source.tensors.items():
        if name not in read:
            continue
        if tensor.external_data or _nbytes(tensor) >= weights.least_bytes:
            weights.add(name, source.load(name))
        else:
            weights.tensors.append(tensor)


def _reads(nodes: Iterable[NodeProto]) -> Iterable[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from _reads(nested.node)
                yield from (port.name for port in nested.output)


def _model(
    source: SourceGraph, nodes: list[NodeProto], tensors: list[TensorProto], recipe: Recipe
) -> ModelProto:
    from onnx import helper  # noqa: PLC0415  (slow to import)

    old = source.model
    # Old exports list weights among the inputs.
    inputs = [port for port in old.graph.input if port.name not in source.tensors]
    graph = helper.make_graph(nodes, old.graph.name, inputs, old.graph.output, tensors)
    domains = [entry for entry in old.opset_import if entry.domain != CONTRIB]
    model = helper.make_model(
        graph,
        opset_imports=[*domains, helper.make_opsetid(CONTRIB, 1)],
        ir_version=max(old.ir_version, _LEAST_IR),
        producer_name="resilient_ai",
    )
    model.functions.extend(old.functions)
    told = {entry.key: entry.value for entry in old.metadata_props}
    helper.set_model_props(model, {**told, "precision": "int8", "recipe": recipe.name})
    return model


def _nbytes(tensor: TensorProto) -> int:
    from onnx import helper  # noqa: PLC0415

    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(prod(tensor.dims) * kind.itemsize)
