"""The inputs of a graph, and what can be read off them."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_ai._models.graphs.ops import INT32, GraphBuilder

__all__ = ["Inputs", "declare_inputs", "last_positions"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The names of a graph's inputs and of what was made of them.

    `lengths` is int32 (batch,), `longest` int64 (1,): the length of the longest row. `types` is
    None for graphs that take none.
    """

    ids: str
    mask: str
    lengths: str
    longest: str
    types: str | None


def declare_inputs(builder: GraphBuilder, *, types: bool = False) -> Inputs:
    """Declare the inputs of a model, int64 (batch, sequence) each, padded on the right."""
    ids = builder.input("input_ids", "int64", "batch", "sequence")
    mask = builder.input("attention_mask", "int64", "batch", "sequence")
    type_ids = builder.input("token_type_ids", "int64", "batch", "sequence") if types else None
    small = builder.node("Cast", mask, out="attention_mask/int32", to=INT32)
    axis = builder.constant("axis_1", [1], "int64")
    lengths = builder.node("ReduceSum", small, axis, out="lengths", keepdims=0)
    longest = builder.node("Shape", ids, out="sequence_length", start=1, end=2)
    return Inputs(ids, mask, lengths, longest, type_ids)


def last_positions(builder: GraphBuilder, inputs: Inputs) -> str:
    """Where each row's last real token stands, int64 (batch, 1); 0 for a row of padding alone."""
    if builder.has("last"):
        return "last"
    axis = builder.constant("axis_1", [1], "int64")
    one = builder.constant("one", [1], "int64")
    count = builder.node("ReduceSum", inputs.mask, axis, out="last/count", keepdims=1)
    return builder.node("Sub", builder.node("Max", count, one, out="last/after"), one, out="last")
