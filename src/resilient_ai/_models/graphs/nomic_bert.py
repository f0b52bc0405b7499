"""NomicBERT: an encoder with rotary positions and gated layers, normalised at their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from resilient_ai._models.graphs.attention import cross_attention
from resilient_ai._models.graphs.checkpoint import Checkpoint, Config, Dim
from resilient_ai._models.graphs.graph import Graph
from resilient_ai._models.graphs.heads import embedding_outputs
from resilient_ai._models.graphs.inputs import Inputs, declare_inputs
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.rotary import Angles, Rotary, rotary_base, scaled_angles, stored_angles
from resilient_ai._models.graphs.weights import Weights
from resilient_ai.errors import ConfigurationError, ModelCorrupt
from resilient_ai.values import FloatArray

__all__ = ["build"]

_WITHOUT: Final = (
    "prenorm",
    "parallel_block",
    "causal",
    "use_rms_norm",
    "norm_mlp",
    "qkv_proj_bias",
    "mlp_fc1_bias",
    "mlp_fc2_bias",
    "rotary_head_dim",
)
"""Variants of the architecture that no supported model uses."""


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of a NomicBERT; one text is all of token type 0, so it takes no types.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration or the options ask for what is not supported.
    """
    if options.head != "embedding":
        raise ConfigurationError("There is no score graph for family 'nomic-bert': its models are embedders.")
    sizes = _Sizes.of(config)
    builder = GraphBuilder("nomic-bert", half=options.precision == "fp16")
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "bert.", "nomic_bert."), anchor="embeddings.word_embeddings.weight"
    )
    checkpoint.require_no(f"encoder.layers.{config.size(sizes.layers)}.", sizes.layers)
    checkpoint.require_no("embeddings.position_embeddings.", "rotary_emb_fraction")
    inputs = declare_inputs(builder)
    _Body(builder, checkpoint, sizes, inputs).encode(out="token_embeddings")
    embedding_outputs(builder, inputs, options, config.size(sizes.hidden))
    return builder.finish(max_tokens=config.size(sizes.longest))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The names of the sizes: published configurations use those of GPT-2, later ones those of BERT."""

    hidden: str
    layers: str
    heads: str
    wide: str
    epsilon: str
    longest: str

    @classmethod
    def of(cls, config: Config) -> _Sizes:
        """Read the names, and refuse what the graph would get wrong."""
        for name in _WITHOUT:
            config.only(name, None, False)
        config.only("rotary_emb_scale_base", None)
        if config.get("activation_function") is None:
            config.choice("hidden_act", ("silu",))
        else:
            config.choice("activation_function", ("swiglu",))
        return cls(
            config.named("n_embd", "hidden_size"),
            config.named("n_layer", "num_hidden_layers"),
            config.named("n_head", "num_attention_heads"),
            config.named("n_inner", "intermediate_size"),
            config.named("layer_norm_epsilon", "layer_norm_eps"),
            config.named("n_positions", "max_position_embeddings"),
        )


@dataclass(frozen=True, slots=True)
class _Body:
    builder: GraphBuilder
    checkpoint: Checkpoint
    sizes: _Sizes
    inputs: Inputs

    def encode(self, *, out: str) -> str:
        """The last hidden state, float32 (batch, sequence, hidden)."""
        layers, rotary = self.checkpoint.config.size(self.sizes.layers), self._rotary()
        x = self._embed()
        for number in range(layers):
            x = self._layer(number, x, rotary, out=out if number == layers - 1 else f"layer.{number}")
        return x

    def _rotary(self) -> Rotary:
        config, sizes = self.checkpoint.config, self.sizes
        hidden, heads = config.size(sizes.hidden), config.size(sizes.heads)
        fraction = config.with_defaults(rotary_emb_fraction=1.0).number("rotary_emb_fraction")
        head_size = hidden // heads
        size = int(head_size * fraction)
        if hidden % heads or size % 2 or not 0 < size <= head_size:
            raise ModelCorrupt(
                f"{config.path}: '{sizes.heads}' and 'rotary_emb_fraction' give no whole size."
            )
        interleaved = config.get("rotary_emb_interleaved") is True
        return Rotary(self.builder, self._angles(size), head_size, size, interleaved)

    def _angles(self, size: int) -> Angles:
        config = self.checkpoint.config
        base = rotary_base(config, "rotary_emb_base")
        if not config.get("rotary_scaling_factor"):
            longest = config.size(self.sizes.longest)
            return stored_angles(self.builder, self.inputs, base=base, size=size, longest=longest)
        factor, trained = config.number("rotary_scaling_factor"), config.size("max_trained_positions")
        return scaled_angles(self.builder, self.inputs, base=base, size=size, factor=factor, trained=trained)

    def _embed(self) -> str:
        builder, hidden = self.builder, self.sizes.hidden
        words = self.checkpoint.encoder("embeddings.word_embeddings.weight", "vocab_size", hidden)
        types = self.checkpoint.encoder("embeddings.token_type_embeddings.weight", "type_vocab_size", hidden)

        def typed() -> Iterator[FloatArray]:
            only = types.load()[0]
            yield from (block + only for block in words.blocks())

        table = builder.table("embeddings.words", words.shape, typed)
        x = builder.wide(builder.node("Gather", table, self.inputs.ids, out="embeddings/words"))
        return self._norm(x, "emb_ln", out="embeddings")

    def _layer(self, number: int, x: str, rotary: Rotary, *, out: str) -> str:
        builder, place, sizes = self.builder, f"encoder.layers.{number}", self.sizes
        attended = self._attend(f"{place}.attn", x, rotary)
        projection = self._matrix(f"{place}.attn.out_proj.weight", sizes.hidden, sizes.hidden)
        x = self._residual(attended, projection, x, f"{place}.norm1", out=f"{place}/normed")
        gate = self._matrix(f"{place}.mlp.fc12.weight", sizes.wide, sizes.hidden)
        up = self._matrix(f"{place}.mlp.fc11.weight", sizes.wide, sizes.hidden)
        down = self._matrix(f"{place}.mlp.fc2.weight", sizes.hidden, sizes.wide)
        wide = builder.gated(x, gate, up, out=f"{place}/wide")
        return self._residual(wide, down, x, f"{place}.norm2", out=out)

    def _residual(self, x: str, weight: str, skip: str, norm: str, *, out: str) -> str:
        projected = self.builder.wide(self.builder.matmul(x, weight, out=f"{norm}/projected"))
        return self._norm(self.builder.add(projected, skip, out=f"{norm}/summed"), norm, out=out)

    def _attend(self, place: str, x: str, rotary: Rotary) -> str:
        heads = self.checkpoint.config.size(self.sizes.heads)
        query, key, value = (
            self.builder.matmul(x, self._part(place, number), out=f"{place}/{name}")
            for number, name in enumerate(("query", "key", "value"))
        )
        query, key = (rotary(each, heads=heads, out=f"{each}/turned") for each in (query, key))
        lengths = self.inputs.lengths
        return cross_attention(
            self.builder, (query, key, value), "", lengths, heads=heads, out=f"{place}/attended"
        )

    def _part(self, place: str, number: int) -> str:
        """One of query, key and value of a projection that keeps them one below the other."""
        hidden = self.checkpoint.config.size(self.sizes.hidden)
        tensor = self.checkpoint.encoder(f"{place}.Wqkv.weight", 3 * hidden, self.sizes.hidden)
        rows = slice(number * hidden, (number + 1) * hidden)
        return self.builder.matrix(f"{place}.Wqkv.{number}", (hidden, hidden), lambda: tensor.load()[rows].T)

    def _matrix(self, name: str, outs: Dim, ins: Dim) -> str:
        tensor = self.checkpoint.encoder(name, outs, ins)
        return self.builder.matrix(name, tensor.shape[::-1], lambda: tensor.load().T)

    def _norm(self, x: str, name: str, *, out: str) -> str:
        weight, bias = (self._vector(f"{name}.{part}") for part in ("weight", "bias"))
        epsilon = self.checkpoint.config.number(self.sizes.epsilon)
        return self.builder.layer_norm(x, weight, bias, epsilon=epsilon, out=out)

    def _vector(self, name: str) -> str:
        tensor = self.checkpoint.encoder(name, self.sizes.hidden)
        return self.builder.weight(name, tensor.shape, tensor.load)
