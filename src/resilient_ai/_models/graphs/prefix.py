"""Rows that all begin alike: their common tokens are run once, and every row goes on from there.

A decoder's token sees what stands before it and nothing after. So the keys and values of a common
beginning are the same whatever follows, and one run of it serves all rows of all batches.
"""

from __future__ import annotations

from typing import Final

from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.graphs.inputs import Inputs
from resilient_ai._models.graphs.ops import GraphBuilder

__all__ = ["KEPT", "PREFIX_STATES", "STATES", "PrefixedAttention"]

PREFIX_STATES: Final = "prefix_states"
"""The input for what an earlier run gave as `STATES`; of length 0 for rows that share nothing."""

KEPT: Final = "kept_tokens"
"""The input that says of how many of the first row's tokens this run gives `STATES`; int64 (1,)."""

STATES: Final = "states"
"""The output for later runs: float32 (2 * layers, key heads, tokens, head size), layer by layer the
keys, turned by their positions, and the values."""

_UNSEEN: Final = -6e4
"""So low a score that its share is exactly zero, and still a number in half precision."""


class PrefixedAttention:
    """Every token attends to the common tokens and to those before it in its row. Call it layer by layer.

    No mask is needed for rows padded on the right: padding comes after every token that counts.
    Rows are not packed end to end, because each token's scores would be computed for the tokens of
    all rows: attention to four rows takes twice as long then (docs/decisions.md). The operator is one
    that every device has, also in float32.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        inputs: Inputs,
        *,
        layers: int,
        heads: int,
        key_heads: int,
        head_size: int,
    ) -> None:
        self.heads = heads
        self.key_heads = key_heads
        self.head_size = head_size
        self._builder = builder
        self._layers = layers
        self._kept: list[str] = []
        sizes = (2 * layers, key_heads, "prefix", head_size)
        self._states = builder.input(PREFIX_STATES, "float32", *sizes)
        self._given = builder.narrow(self._states)
        builder.input(KEPT, "int64", 1)
        self.length = builder.node("Shape", self._states, out="prefix/length", start=2, end=3)
        self._bias = _causal_bias(builder, self.length, inputs.longest)
        ones = builder.constant("ones_3", [1, 1, 1], "int64")
        rows = builder.node("Shape", inputs.ids, out="rows", start=0, end=1)
        self._per_row = builder.node("Concat", rows, ones, out="prefix/per_row", axis=0)

    def __call__(self, query: str, key: str, value: str, *, out: str) -> str:
        """Attend; projected inputs are (batch, sequence, heads or key heads * head size)."""
        builder = self._builder
        keys, values = (
            self._joined(each, f"{out}/{name}") for each, name in ((key, "keys"), (value, "values"))
        )
        inputs = (builder.narrow(query), keys, values, "", "", builder.narrow(self._bias))
        return builder.node("MultiHeadAttention", *inputs, out=out, domain=CONTRIB, num_heads=self.heads)

    def declare_states(self) -> None:
        """Declare the output `STATES`, after the last layer."""
        assert len(self._kept) == 2 * self._layers, "a layer is missing, or one too many"
        kept = self._builder.node("Concat", *self._kept, out=f"{STATES}/kept", axis=0)
        wide = self._builder.wide(kept)
        self._builder.node("Identity", wide, out=STATES)
        self._builder.output(STATES, "float32", 2 * self._layers, self.key_heads, "kept", self.head_size)

    def _joined(self, x: str, out: str) -> str:
        """Keys or values of the prefix and of each row, (batch, heads, prefix + sequence, head size)."""
        builder = self._builder
        number = builder.constant(f"state/{len(self._kept)}", len(self._kept), "int64")
        before = builder.node("Gather", self._given, number, out=f"{out}/shared", axis=0)
        before = builder.node("Expand", before, self._per_row, out=f"{out}/before")
        split = builder.constant("heads/apart", [0, 0, self.key_heads, self.head_size], "int64")
        own = builder.node("Reshape", builder.narrow(x), split, out=f"{out}/split")
        own = builder.node("Transpose", own, out=f"{out}/own", perm=[0, 2, 1, 3])
        self._kept.append(self._first_row(own, f"{out}/kept"))
        return self._repeated(builder.node("Concat", before, own, out=f"{out}/all", axis=2), out)

    def _first_row(self, own: str, out: str) -> str:
        builder = self._builder
        if not builder.has("kept/ends"):
            one = builder.constant("one", [1], "int64")
            builder.node("Concat", one, KEPT, out="kept/ends", axis=0)
        starts = builder.constant("kept/starts", [0, 0], "int64")
        axes = builder.constant("kept/axes", [0, 2], "int64")
        return builder.node("Slice", own, starts, "kept/ends", axes, out=out)

    def _repeated(self, x: str, out: str) -> str:
        """The same with every key head repeated for the query heads that share it."""
        if self.heads == self.key_heads:
            return x
        builder = self._builder
        times = builder.constant("heads/times", [1, 1, self.heads // self.key_heads, 1, 1], "int64")
        joined = builder.constant("heads/repeated", [0, self.heads, -1, self.head_size], "int64")
        x = builder.node("Unsqueeze", x, builder.constant("axis_2", [2], "int64"), out=f"{out}/single")
        x = builder.node("Expand", x, times, out=f"{out}/expanded")
        return builder.node("Reshape", x, joined, out=out)


def _causal_bias(builder: GraphBuilder, before: str, longest: str) -> str:
    """What is added to scores, (1, 1, sequence, prefix + sequence): `_UNSEEN` for later tokens, else 0."""
    zero, one = builder.constant("zero_0", 0, "int64"), builder.constant("one_0", 1, "int64")
    first = builder.node("Squeeze", before, out="bias/first")
    all_tokens = builder.node("Add", before, longest, out="bias/total")
    end = builder.node("Squeeze", all_tokens, out="bias/end")
    keys = builder.node("Range", zero, end, one, out="bias/keys")
    queries = builder.node("Range", first, end, one, out="bias/queries")
    column = builder.node("Unsqueeze", queries, builder.constant("axis_1", [1], "int64"), out="bias/column")
    seen = builder.node("LessOrEqual", keys, column, out="bias/seen")
    nothing = builder.constant("bias/nothing", 0.0, "float32")
    unseen = builder.constant("bias/unseen", _UNSEEN, "float32")
    flat = builder.node("Where", seen, nothing, unseen, out="bias/flat")
    return builder.node("Unsqueeze", flat, builder.constant("axes_01", [0, 1], "int64"), out="bias")
