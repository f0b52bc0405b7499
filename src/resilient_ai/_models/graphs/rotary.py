"""Rotary position embeddings: queries and keys are turned by angles that grow with the position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resilient_ai._models.graphs.checkpoint import Config
from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.graphs.inputs import Inputs
from resilient_ai._models.graphs.ops import FLOAT, GraphBuilder
from resilient_ai.values import FloatArray

__all__ = ["Angles", "Rotary", "rotary_base", "scaled_angles", "stored_angles"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Angles:
    """Values of the graph: cosines and sines by place, (places, size / 2) each, and who takes which.

    `places` is int64 (batch, sequence). The operator would also take the place of the first token alone,
    but not every engine counts on from there.
    """

    cosines: str
    sines: str
    places: str


@dataclass(frozen=True, slots=True)
class Rotary:
    """Turns the first `size` numbers of each head of a projection.

    `interleaved` pairs each number with its neighbour, otherwise with the one half of `size` away.
    """

    builder: GraphBuilder
    angles: Angles
    head_size: int
    size: int
    interleaved: bool = False

    def __call__(self, x: str, *, heads: int, out: str) -> str:
        """The projection (batch, sequence, heads * head size) turned, in float32."""
        builder, angles = self.builder, self.angles
        part = {"num_heads": heads, "rotary_embedding_dim": self.size} if self.size < self.head_size else {}
        inputs = (builder.wide(x), angles.places, angles.cosines, angles.sines)
        return builder.node(
            "RotaryEmbedding", *inputs, out=out, domain=CONTRIB, interleaved=int(self.interleaved), **part
        )


def rotary_base(config: Config, field: str) -> float:
    """The base of the angles: a field of its own, or part of `rope_parameters` in newer configurations.

    Raises:
        ConfigurationError: when the angles are scaled in a way that is not supported.
        ModelCorrupt: when there is no base.
    """
    parameters: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name) or {}
        if not isinstance(value, dict) or value.get("rope_type", value.get("type", "default")) != "default":
            config.only(name, None)
        parameters |= value
    return config.with_defaults(**{field: parameters.get("rope_theta")}).number(field)


def stored_angles(
    builder: GraphBuilder, inputs: Inputs, *, base: float, size: int, longest: int, before: str = ""
) -> Angles:
    """Angles from tables for `longest` positions, computed in float64; a longer row is an error.

    `before` is int64 (1,): how many tokens stand before every row's first one; "" is none.
    """

    def angles() -> Numbers:
        return np.outer(np.arange(longest), base ** -_exponents(size))

    shape = (longest, size // 2)
    return Angles(
        builder.weight("rotary.cosines", shape, lambda: np.cos(angles()).astype(np.float32)),
        builder.weight("rotary.sines", shape, lambda: np.sin(angles()).astype(np.float32)),
        _places(builder, inputs, before or builder.constant("zero", [0], "int64")),
    )


def scaled_angles(
    builder: GraphBuilder, inputs: Inputs, *, base: float, size: int, factor: float, trained: int
) -> Angles:
    """Angles that slow down for rows longer than `trained` tokens ("dynamic NTK").

    The base grows with the length of the row itself, not of the longest one beside it, so that a
    row's angles do not depend on its batch.
    """
    stretch = _stretch(builder, inputs.lengths, factor, trained)
    # base * stretch ** (size / (size - 2)) to the power of -exponent, taken apart
    shape = (1, 1, size // 2)
    powers = builder.weight("rotary.powers", shape, lambda: _row(-_exponents(size) * size / (size - 2)))
    speeds = builder.weight("rotary.speeds", shape, lambda: _row(base ** -_exponents(size)))
    slower = builder.node("Pow", stretch, powers, out="rotary/slower")
    slowed = builder.node("Mul", speeds, slower, out="rotary/slowed")
    angles = builder.node("Mul", slowed, _column(builder, inputs), out="rotary/angles")
    by_place = builder.constant("rotary.by_place", [-1, size // 2], "int64")
    angles = builder.node("Reshape", angles, by_place, out="rotary/by_place")
    return Angles(
        builder.node("Cos", angles, out="rotary/cosines"),
        builder.node("Sin", angles, out="rotary/sines"),
        _own_places(builder, inputs),
    )


def _places(builder: GraphBuilder, inputs: Inputs, before: str) -> str:
    """The places of tokens that count on from `before`, the same in every row."""
    one = builder.constant("one_0", 1, "int64")
    first = builder.node("Squeeze", before, out="rotary/first")
    end = builder.node(
        "Squeeze", builder.node("Add", before, inputs.longest, out="rotary/ends"), out="rotary/end"
    )
    row = builder.node("Range", first, end, one, out="rotary/row")
    shape = builder.node("Shape", inputs.ids, out="rotary/shape")
    return builder.node("Expand", row, shape, out="rotary/places")


def _column(builder: GraphBuilder, inputs: Inputs) -> str:
    """The positions of a row as float32, (sequence, 1)."""
    zero, one = builder.constant("zero_0", 0, "int64"), builder.constant("one_0", 1, "int64")
    end = builder.node("Squeeze", inputs.longest, out="rotary/end")
    numbers = builder.node(
        "Cast", builder.node("Range", zero, end, one, out="rotary/range"), out="rotary/numbers", to=FLOAT
    )
    return builder.node("Unsqueeze", numbers, builder.constant("axis_1", [1], "int64"), out="rotary/column")


def _stretch(builder: GraphBuilder, lengths: str, factor: float, trained: int) -> str:
    """`max(1, factor * length / trained - (factor - 1))` of each row, (batch, 1, 1)."""
    x = builder.node("Cast", lengths, out="rotary/lengths", to=FLOAT)
    x = builder.node(
        "Mul", x, builder.constant("rotary.share", factor / trained, "float32"), out="rotary/longer"
    )
    x = builder.node("Sub", x, builder.constant("rotary.less", factor - 1, "float32"), out="rotary/stretched")
    x = builder.node("Max", x, builder.constant("rotary.least", 1.0, "float32"), out="rotary/stretch")
    return builder.node("Unsqueeze", x, builder.constant("axes_12", [1, 2], "int64"), out="rotary/rows")


def _own_places(builder: GraphBuilder, inputs: Inputs) -> str:
    """The places of a table that has a part for each row: 0, 1, 2, ... in the shape of the batch."""
    shape = builder.node("Shape", inputs.ids, out="rotary/shape")
    zero, one = builder.constant("zero_0", 0, "int64"), builder.constant("one_0", 1, "int64")
    total = builder.node("Size", inputs.ids, out="rotary/total")
    return builder.node(
        "Reshape", builder.node("Range", zero, total, one, out="rotary/all"), shape, out="rotary/own_places"
    )


def _exponents(size: int) -> Numbers:
    return np.arange(0, size, 2) / size


def _row(values: Numbers) -> FloatArray:
    return values.astype(np.float32)[None, None, :]
