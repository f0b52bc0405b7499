"""A decoder's layers: normalised at their beginning, causal, rotary, with gated matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from resilient_ai._models.graphs.attention import CausalAttention
from resilient_ai._models.graphs.checkpoint import Checkpoint, Dim
from resilient_ai._models.graphs.heads import row_at
from resilient_ai._models.graphs.inputs import Inputs, last_positions
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.prefix import PrefixedAttention
from resilient_ai._models.graphs.rotary import Rotary

__all__ = ["Decoder"]

_QUERIES: Final = ("num_attention_heads", "head_dim")
_KEYS: Final = ("num_key_value_heads", "head_dim")


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the layers need to know; sizes come from the checkpoint's configuration."""

    builder: GraphBuilder
    checkpoint: Checkpoint
    inputs: Inputs
    rotary: Rotary
    attention: CausalAttention | PrefixedAttention

    def decode(self, *, last_only: bool, out: str) -> str:
        """Run ids through all layers and the last norm.

        Returns:
            `out`: the last hidden state, float32 (batch, sequence, hidden), or with `last_only`
            that of each row's last token, (batch, hidden). What follows the last attention is
            then computed for that token alone.

        Raises:
            ModelCorrupt: when weights and configuration contradict each other.
        """
        layers = self.checkpoint.config.size("num_hidden_layers")
        self.checkpoint.require_no(f"layers.{layers}.", "num_hidden_layers")
        words = self.checkpoint.encoder("embed_tokens.weight", "vocab_size", "hidden_size")
        table = self.builder.table("embed_tokens.weight", words.shape, words.blocks)
        x = self.builder.wide(self.builder.node("Gather", table, self.inputs.ids, out="embeddings"))
        for number in range(layers):
            x = self._layer(number, x, last_only=last_only and number == layers - 1)
        return self._norm(x, "norm", "hidden_size", out=out)

    def _layer(self, number: int, x: str, *, last_only: bool) -> str:
        builder, place = self.builder, f"layers.{number}"
        attended = self._attend(place, self._norm(x, f"{place}.input_layernorm", "hidden_size"))
        if last_only:
            last = last_positions(builder, self.inputs)
            x, attended = (row_at(builder, each, last, out=f"{each}/last") for each in (x, attended))
        output = self._matrix(f"{place}.self_attn.o_proj.weight", "hidden_size", _QUERIES)
        x = self._residual(attended, output, x, out=f"{place}/attended")
        normed = self._norm(x, f"{place}.post_attention_layernorm", "hidden_size")
        gate = self._matrix(f"{place}.mlp.gate_proj.weight", "intermediate_size", "hidden_size")
        up = self._matrix(f"{place}.mlp.up_proj.weight", "intermediate_size", "hidden_size")
        down = self._matrix(f"{place}.mlp.down_proj.weight", "hidden_size", "intermediate_size")
        wide = builder.gated(normed, gate, up, out=f"{place}/wide")
        return self._residual(wide, down, x, out=place)

    def _attend(self, place: str, x: str) -> str:
        attention = self.attention
        query = self._turned(f"{place}.self_attn.q", x, _QUERIES, attention.heads)
        key = self._turned(f"{place}.self_attn.k", x, _KEYS, attention.key_heads)
        weight = self._matrix(f"{place}.self_attn.v_proj.weight", _KEYS, "hidden_size")
        value = self.builder.matmul(x, weight, out=f"{place}.self_attn/value")
        return attention(query, key, value, out=f"{place}.self_attn")

    def _turned(self, name: str, x: str, outs: Dim, heads: int) -> str:
        """Project, normalise every head by itself, and turn it by its position."""
        builder, size = self.builder, self.attention.head_size
        x = builder.matmul(
            x, self._matrix(f"{name}_proj.weight", outs, "hidden_size"), out=f"{name}/projected"
        )
        apart = builder.constant(f"heads/{heads}", [0, 0, heads, size], "int64")
        joined = builder.constant(f"heads/{heads}/joined", [0, 0, heads * size], "int64")
        x = builder.node("Reshape", builder.wide(x), apart, out=f"{name}/heads")
        x = self._norm(x, f"{name}_norm", "head_dim")
        x = builder.node("Reshape", x, joined, out=f"{name}/joined")
        return self.rotary(x, heads=heads, out=f"{name}/turned")

    def _residual(self, x: str, weight: str, skip: str, *, out: str) -> str:
        projected = self.builder.wide(self.builder.matmul(x, weight, out=f"{out}/projected"))
        return self.builder.add(projected, skip, out=out)

    def _matrix(self, name: str, outs: Dim, ins: Dim) -> str:
        tensor = self.checkpoint.encoder(name, outs, ins)
        return self.builder.matrix(name, tensor.shape[::-1], lambda: tensor.load().T)

    def _norm(self, x: str, name: str, field: str, *, out: str = "") -> str:
        tensor = self.checkpoint.encoder(f"{name}.weight", field)
        weight = self.builder.weight(f"{name}.weight", tensor.shape, tensor.load)
        epsilon = self.checkpoint.config.number("rms_norm_eps")
        return self.builder.rms_norm(x, weight, epsilon=epsilon, out=out or name)
