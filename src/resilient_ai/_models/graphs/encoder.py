"""The encoder that BERT, XLM-RoBERTa and MPNet share: embeddings, then layers normalised at their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from resilient_ai._models.graphs.attention import cross_attention, self_attention
from resilient_ai._models.graphs.checkpoint import Checkpoint
from resilient_ai._models.graphs.inputs import Inputs
from resilient_ai._models.graphs.ops import Activation, GraphBuilder
from resilient_ai._models.graphs.tensors import Tensor
from resilient_ai.errors import ModelCorrupt
from resilient_ai.values import FloatArray

__all__ = ["ACTIVATIONS", "Encoder", "LayerNames", "encode"]

ACTIVATIONS: Final[dict[str, Activation]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""The configuration's names for activations, and ours."""


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Where a layer keeps the parts of its attention."""

    qkv: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")
    output: str = "attention.output.dense"
    norm: str = "attention.output.LayerNorm"


@dataclass(frozen=True, slots=True)
class Encoder:
    """What the layers need to know; sizes come from the checkpoint's configuration.

    `first_position` is the row of the position table that the first token takes. `typed` says
    that there is a table of token types. `scores` is a value added to every layer's attention,
    (1, heads, sequence, sequence); "" is nothing.
    """

    builder: GraphBuilder
    checkpoint: Checkpoint
    names: LayerNames = LayerNames()
    first_position: int = 0
    typed: bool = True
    scores: str = ""

    # -- weights -----------------------------------------------------------------------------

    def vector(self, name: str, field: str = "hidden_size") -> str:
        """A one-dimensional weight of the encoder, under its own name."""
        tensor = self.checkpoint.encoder(name, field)
        return self.builder.weight(name, tensor.shape, tensor.load)

    def matrix(self, name: str, out_field: str, in_field: str) -> str:
        """A projection, turned from the checkpoint's (out, in) to (in, out)."""
        tensor = self.checkpoint.encoder(name, out_field, in_field)
        return self.builder.matrix(name, tensor.shape[::-1], lambda: tensor.load().T)

    def norm(self, x: str, name: str, *, out: str) -> str:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        epsilon = self.checkpoint.config.number("layer_norm_eps")
        return self.builder.layer_norm(x, weight, bias, epsilon=epsilon, out=out)

    def qkv(self, place: str, parts: tuple[str, ...], name: str) -> str:
        """The projections named in `parts`, side by side: (hidden, len(parts) * hidden)."""
        tensors = [
            self.checkpoint.encoder(f"{place}.{part}.weight", "hidden_size", "hidden_size") for part in parts
        ]
        hidden = tensors[0].shape[0]
        return self.builder.matrix(
            f"{place}.{name}.weight", (hidden, len(parts) * hidden), lambda: _side_by_side(tensors)
        )

    def qkv_bias(self, place: str) -> str:
        tensors = [self.checkpoint.encoder(f"{place}.{part}.bias", "hidden_size") for part in self.names.qkv]
        shape = (3 * tensors[0].shape[0],)
        return self.builder.weight(
            f"{place}.qkv.bias", shape, lambda: np.concatenate([t.load() for t in tensors])
        )


def encode(encoder: Encoder, inputs: Inputs, *, first_only: bool, out: str) -> str:
    """Run ids through all layers.

    Returns:
        `out`: the last hidden state, float32 (batch, sequence, hidden), or with `first_only` that
        of the first position, (batch, hidden).

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    config = encoder.checkpoint.config
    layers = config.size("num_hidden_layers")
    if config.size("hidden_size") % config.size("num_attention_heads"):
        raise ModelCorrupt(f"{config.path}: 'hidden_size' is not a multiple of 'num_attention_heads'.")
    encoder.checkpoint.require_no(f"encoder.layer.{layers}.", "num_hidden_layers")
    x = _embed(encoder, inputs)
    for number in range(layers - 1):
        x = _layer(encoder, number, x, inputs.lengths, out=f"layer.{number}")
    if not first_only:
        return _layer(encoder, layers - 1, x, inputs.lengths, out=out)
    x = _layer(encoder, layers - 1, x, inputs.lengths, out=f"{out}/row", first_only=True)
    axis = encoder.builder.constant("axis_1", [1], "int64")
    return encoder.builder.node("Squeeze", x, axis, out=out)


def _embed(encoder: Encoder, inputs: Inputs) -> str:
    builder = encoder.builder
    words = encoder.checkpoint.encoder("embeddings.word_embeddings.weight", "vocab_size", "hidden_size")
    table = builder.table("embeddings.words", words.shape, words.blocks)
    x = builder.wide(builder.node("Gather", table, inputs.ids, out="embeddings/words"))
    x = builder.add(x, _positions(encoder, inputs), out="embeddings/placed")
    if inputs.types is not None:
        types = _type_table(encoder)
        rows = builder.weight("embeddings.types", types.shape, types.load)
        x = builder.add(
            x, builder.node("Gather", rows, inputs.types, out="embeddings/types"), out="embeddings/typed"
        )
    return encoder.norm(x, "embeddings.LayerNorm", out="embeddings")


def _positions(encoder: Encoder, inputs: Inputs) -> str:
    """Position vectors of a row, (sequence, hidden); type row 0 is folded in where no types come."""
    builder, first = encoder.builder, encoder.first_position
    tensor = encoder.checkpoint.encoder(
        "embeddings.position_embeddings.weight", "max_position_embeddings", "hidden_size"
    )
    types = _type_table(encoder) if encoder.typed and inputs.types is None else None

    def load() -> FloatArray:
        rows = tensor.load()[first:]
        return rows if types is None else rows + types.load()[0]

    shape = (tensor.shape[0] - first, tensor.shape[1])
    table = builder.weight("embeddings.positions", shape, load)
    zero = builder.constant("zero", [0], "int64")
    return builder.node("Slice", table, zero, inputs.longest, zero, out="embeddings/positions")


def _type_table(encoder: Encoder) -> Tensor:
    return encoder.checkpoint.encoder(
        "embeddings.token_type_embeddings.weight", "type_vocab_size", "hidden_size"
    )


def _layer(encoder: Encoder, number: int, x: str, lengths: str, *, out: str, first_only: bool = False) -> str:
    """One layer; with `first_only` its result is (batch, 1, hidden), of the first position."""
    builder, place, names = encoder.builder, f"encoder.layer.{number}", encoder.names
    attention = _attend_first if first_only else _attend
    x, attended = attention(encoder, place, x, lengths)
    after = (f"{place}.{names.output}", f"{place}.{names.norm}")
    x = _residual(encoder, *after, attended, x, "hidden_size", out=f"{place}/normed")
    weight = encoder.matrix(f"{place}.intermediate.dense.weight", "intermediate_size", "hidden_size")
    bias = encoder.vector(f"{place}.intermediate.dense.bias", "intermediate_size")
    wide = builder.matmul(x, weight, out=f"{place}/wide")
    kind = ACTIVATIONS[encoder.checkpoint.config.choice("hidden_act", ACTIVATIONS)]
    wide = builder.activation(wide, bias, kind, out=f"{place}/activated")
    after = (f"{place}.output.dense", f"{place}.output.LayerNorm")
    return _residual(encoder, *after, wide, x, "intermediate_size", out=out)


def _residual(encoder: Encoder, dense: str, norm: str, x: str, skip: str, in_field: str, *, out: str) -> str:
    """Project back to the hidden size, add what came before, normalise."""
    weight = encoder.matrix(f"{dense}.weight", "hidden_size", in_field)
    projected = encoder.builder.linear(x, weight, encoder.vector(f"{dense}.bias"), out=f"{dense}/projected")
    summed = encoder.builder.add(projected, skip, out=f"{dense}/summed")
    return encoder.norm(summed, norm, out=out)


def _attend(encoder: Encoder, place: str, x: str, lengths: str) -> tuple[str, str]:
    heads = encoder.checkpoint.config.size("num_attention_heads")
    out = self_attention(
        encoder.builder,
        x,
        encoder.qkv(place, encoder.names.qkv, "qkv"),
        encoder.qkv_bias(place),
        lengths,
        heads=heads,
        scores=encoder.scores,
        out=f"{place}/attended",
    )
    return x, out


def _attend_first(encoder: Encoder, place: str, x: str, lengths: str) -> tuple[str, str]:
    """Attention of the first position alone: one query a row, keys and values of all tokens."""
    builder, config, parts = encoder.builder, encoder.checkpoint.config, encoder.names.qkv
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    zero, one = builder.constant("zero", [0], "int64"), builder.constant("one", [1], "int64")
    first = builder.node("Slice", x, zero, one, one, out=f"{place}/first")
    query = builder.matmul(first, encoder.qkv(place, parts[:1], "q"), out=f"{place}/query")
    both = builder.matmul(x, encoder.qkv(place, parts[1:], "kv"), out=f"{place}/key_value")
    halves = builder.constant("halves", [hidden, hidden], "int64")
    key, value = builder.nodes("Split", both, halves, outs=(f"{place}/key", f"{place}/value"), axis=2)
    out = cross_attention(
        builder,
        (query, key, value),
        encoder.qkv_bias(place),
        lengths,
        heads=heads,
        scores=_first_scores(encoder),
        out=f"{place}/attended",
    )
    return first, out


def _first_scores(encoder: Encoder) -> str:
    """The part of `scores` that is for the first position."""
    if not encoder.scores:
        return ""
    builder = encoder.builder
    zero, one = builder.constant("zero", [0], "int64"), builder.constant("one", [1], "int64")
    axis = builder.constant("axis_2", [2], "int64")
    return builder.node("Slice", encoder.scores, zero, one, axis, out=f"{encoder.scores}/first")


def _side_by_side(tensors: list[Tensor]) -> FloatArray:
    return np.concatenate([tensor.load().T for tensor in tensors], axis=1)
