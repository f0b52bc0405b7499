"""What an operator says about the values it gives, so that they need not be looked at.

What is known of a value saves passes over it. Where it has a least value that the operator never
goes below, one fixed integer can stand for 0. Where no sign is preferred, the integers lie evenly
around 0. And behind a layer normalisation the channels, each divided by its gain, always add up to
the same number: a shift of a whole row is then a shift along that sum, of which weights can be
made independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from resilient_ai._models.quantize.outliers import EVEN, PLAIN, FixedSum, Treatment
from resilient_ai._models.quantize.source import SourceGraph

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["treatments"]

_GELU_FLOOR: Final = -0.1701
"""Below every value of GELU and of its approximation by tanh, the least of which is -0.17004."""

_GELU_ZERO: Final = 40
"""Leaves 215 integers above 0; only rows whose largest value is below 0.92 would be finer with fewer."""

_GELU: Final = Treatment(zero=_GELU_ZERO, floor=_GELU_FLOOR)
_BY_OPERATOR: Final[Mapping[str, Treatment]] = MappingProxyType(
    {
        "Attention": EVEN,
        "BiasGelu": _GELU,
        "FastGelu": _GELU,
        "Gelu": _GELU,
        "GroupQueryAttention": EVEN,
        "MultiHeadAttention": EVEN,
        "Relu": Treatment(zero=0, floor=0.0),
    }
)

_WIDEST: Final = 8.0
"""A gain may be this much smaller than most others: with less, its channel's weights would dwarf the rest."""


def treatments(source: SourceGraph) -> Mapping[str, Treatment]:
    """How the values of a graph may be turned into integers, by what made them; others are `PLAIN`."""
    return {node.output[0]: _of(source, node) for node in source.model.graph.node if node.output}


def _of(source: SourceGraph, node: NodeProto) -> Treatment:
    if node.op_type == "LayerNormalization":
        return _normalized(source, node)
    return _BY_OPERATOR.get(node.op_type, PLAIN)


def _normalized(source: SourceGraph, node: NodeProto) -> Treatment:
    """Before gain and shift a normalised row adds up to 0."""
    stored = [name for name in node.input[1:] if name]
    if not _is_last_axis(node) or not all(source.is_vector(name) for name in stored):
        return PLAIN
    gain = np.asarray(source.load(stored[0]), np.float64)
    if not _is_tame(gain):
        return PLAIN
    shift = np.asarray(source.load(stored[1]), np.float64) if len(stored) > 1 else np.zeros_like(gain)
    weights = np.asarray(1 / gain, np.float32)
    return Treatment(fixed_sum=FixedSum(weights, float(shift @ weights)))


def _is_last_axis(node: NodeProto) -> bool:
    return all(attribute.i == -1 for attribute in node.attribute if attribute.name == "axis")


def _is_tame(gain: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether dividing by it leaves no channel far above the others, and all on one side of 0."""
    sizes = np.abs(gain)
    one_sided = bool((gain > 0).all() or (gain < 0).all())
    return one_sided and bool(sizes.min() * _WIDEST >= np.median(sizes))
