"""Attention in the operators that run it fastest, each exact for rows padded on the right."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_ai._models.graphs.graph import CONTRIB
from resilient_ai._models.graphs.inputs import Inputs, last_positions
from resilient_ai._models.graphs.ops import INT32, GraphBuilder

__all__ = ["CausalAttention", "cross_attention", "self_attention"]


def self_attention(
    builder: GraphBuilder, x: str, weight: str, bias: str, lengths: str, *, heads: int, scores: str, out: str
) -> str:
    """Every token attends to the real tokens of its row: projections and attention in one.

    `weight` is (hidden, 3 * hidden) and `bias` (3 * hidden,), in the order query, key, value.
    `lengths` is int32 (batch,): keys at and after it get a score so low that their share is
    exactly zero. `scores` is added to what queries and keys give, (1, heads, sequence, sequence);
    "" is nothing.
    """
    added = ("", builder.narrow(scores)) if scores else ()
    inputs = (builder.narrow(x), weight, builder.narrow(bias), lengths, *added)
    return builder.node("Attention", *inputs, out=out, domain=CONTRIB, num_heads=heads)


def cross_attention(
    builder: GraphBuilder,
    qkv: tuple[str, str, str],
    bias: str,
    lengths: str,
    *,
    heads: int,
    scores: str = "",
    out: str,
) -> str:
    """Projected queries attend to the real keys of their row.

    `bias` is still to be added to query, key and value; "" is nothing. `lengths` and `scores`
    are as in `self_attention`, but for the queries that are there.
    """
    added = (builder.narrow(scores),) if scores else ()
    narrow = (builder.narrow(each) for each in (*qkv, bias))
    return builder.node(
        "MultiHeadAttention", *narrow, lengths, *added, out=out, domain=CONTRIB, num_heads=heads
    )


@dataclass(frozen=True, slots=True)
class CausalAttention:
    """Attention to the tokens before, where several query heads share a key head.

    `grouped` takes the operator that knows shared heads. On the CPU it is the fastest one for long
    rows; on CUDA it exists in half precision alone, and in float32 its work would go back and
    forth between the devices. Otherwise the key heads are repeated, for an operator that both
    have. Neither needs a mask: padding comes after every token that counts.
    """

    builder: GraphBuilder
    inputs: Inputs
    heads: int
    key_heads: int
    head_size: int
    grouped: bool

    def __call__(self, query: str, key: str, value: str, *, out: str) -> str:
        """Attend; projected inputs are (batch, sequence, heads or key heads * head size)."""
        builder = self.builder
        query, key, value = (builder.narrow(each) for each in (query, key, value))
        if self.grouped:
            return self._grouped(query, key, value, out)
        repeated = (self._repeat(key, f"{out}/keys"), self._repeat(value, f"{out}/values"))
        attributes = {"num_heads": self.heads, "unidirectional": 1}
        return builder.node("MultiHeadAttention", query, *repeated, out=out, domain=CONTRIB, **attributes)

    def _grouped(self, query: str, key: str, value: str, out: str) -> str:
        last = last_positions(self.builder, self.inputs)
        inputs = (query, key, value, "", "", self._small(last), self._small(self.inputs.longest))
        # What it keeps for a next token must be named; nobody reads it.
        outs = (out, f"{out}/past_key", f"{out}/past_value")
        attributes = {"num_heads": self.heads, "kv_num_heads": self.key_heads}
        return self.builder.nodes("GroupQueryAttention", *inputs, outs=outs, domain=CONTRIB, **attributes)[0]

    def _small(self, x: str) -> str:
        """A whole number or a column of them, as the operator wants it."""
        builder = self.builder
        if builder.has(f"{x}/int32"):
            return f"{x}/int32"
        axis = builder.constant("axis_last", [-1], "int64")
        return builder.node(
            "Cast", builder.node("Squeeze", x, axis, out=f"{x}/flat"), out=f"{x}/int32", to=INT32
        )

    def _repeat(self, x: str, out: str) -> str:
        if self.heads == self.key_heads:
            return x
        builder, times = self.builder, self.heads // self.key_heads
        split = builder.constant("heads/split", [0, 0, self.key_heads, 1, self.head_size], "int64")
        joined = builder.constant("heads/joined", [0, 0, self.heads * self.head_size], "int64")
        repeats = builder.constant("heads/repeats", [1, 1, 1, times, 1], "int64")
        x = builder.node("Reshape", x, split, out=f"{out}/split")
        x = builder.node("Expand", x, repeats, out=f"{out}/repeated")
        return builder.node("Reshape", x, joined, out=out)
