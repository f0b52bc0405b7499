"""Qwen3: a decoder as an embedder (its last token) and as a reranker (whether "yes" or "no" comes next)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from resilient_ai._models.graphs.attention import CausalAttention
from resilient_ai._models.graphs.checkpoint import Checkpoint, Config, read_object
from resilient_ai._models.graphs.decoder import Decoder
from resilient_ai._models.graphs.graph import Graph
from resilient_ai._models.graphs.heads import embedding_outputs, require_one_label, score_output
from resilient_ai._models.graphs.inputs import Inputs, declare_inputs
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.prefix import PrefixedAttention
from resilient_ai._models.graphs.rotary import Rotary, rotary_base, stored_angles
from resilient_ai._models.graphs.tensors import Tensor
from resilient_ai._models.graphs.weights import TOKENIZER, Weights
from resilient_ai.errors import ConfigurationError, ModelCorrupt
from resilient_ai.values import FloatArray

__all__ = ["build"]

_EMBEDDINGS: Final = "embed_tokens.weight"


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of a Qwen3.

    A reranker's logit is that of the first of `options.answers` less that of the second, after
    the last token; weights that hold a `score` of one label (`Qwen3ForSequenceClassification`)
    give that instead.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ModelNotFound: when the tokenizer, which knows the answers' ids, is missing.
        ConfigurationError: when the configuration or the options ask for what is not supported.
    """
    config = _checked(config)
    builder = GraphBuilder("qwen3", half=options.precision == "fp16")
    checkpoint = Checkpoint(config, weights, prefixes=("", "model."), anchor=_EMBEDDINGS)
    inputs = declare_inputs(builder)
    decoder = _decoder(builder, checkpoint, inputs, options)
    last_only, hidden = options.needs_only("last_token"), config.size("hidden_size")
    if options.head == "embedding":
        decoder.decode(last_only=last_only, out="pooled" if last_only else "token_embeddings")
        embedding_outputs(builder, inputs, options, hidden)
    else:
        x = decoder.decode(last_only=True, out="last_state")
        builder.node("MatMul", x, _score(builder, checkpoint, options.answers), out="logits")
        score_output(builder)
    if isinstance(decoder.attention, PrefixedAttention):
        decoder.attention.declare_states()
    return builder.finish(max_tokens=config.size("max_position_embeddings"))


def _checked(config: Config) -> Config:
    """Refuse what the graph would get wrong; fill in what follows from other fields."""
    config.choice("hidden_act", ("silu",))
    config.only("attention_bias", None, False)
    config.only("use_sliding_window", None, False)
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or set(kinds) != {"full_attention"}):
        config.only("layer_types", None, ["full_attention"])
    heads = config.size("num_attention_heads")
    config = config.with_defaults(head_dim=config.size("hidden_size") // heads, num_key_value_heads=heads)
    if heads % config.size("num_key_value_heads") or config.size("head_dim") % 2:
        raise ModelCorrupt(
            f"{config.path}: 'num_attention_heads' is not a multiple of 'num_key_value_heads', or 'head_dim' "
            "is odd."
        )
    return config


def _decoder(builder: GraphBuilder, checkpoint: Checkpoint, inputs: Inputs, options: GraphOptions) -> Decoder:
    config = checkpoint.config
    head_size, longest = config.size("head_dim"), config.size("max_position_embeddings")
    attention = _attention(builder, config, inputs, options)
    angles = stored_angles(
        builder,
        inputs,
        base=rotary_base(config, "rope_theta"),
        size=head_size,
        longest=longest,
        before=attention.length if isinstance(attention, PrefixedAttention) else "",
    )
    return Decoder(builder, checkpoint, inputs, Rotary(builder, angles, head_size, head_size), attention)


def _attention(
    builder: GraphBuilder, config: Config, inputs: Inputs, options: GraphOptions
) -> CausalAttention | PrefixedAttention:
    sizes = {
        "heads": config.size("num_attention_heads"),
        "key_heads": config.size("num_key_value_heads"),
        "head_size": config.size("head_dim"),
    }
    if options.shared_prefix:
        return PrefixedAttention(builder, inputs, layers=config.size("num_hidden_layers"), **sizes)
    grouped = options.precision == "fp16" or options.device == "cpu"
    return CausalAttention(builder, inputs, grouped=grouped, **sizes)


def _score(builder: GraphBuilder, checkpoint: Checkpoint, answers: tuple[str, str]) -> str:
    """The one column that the last state is multiplied with, (hidden, 1)."""
    hidden = checkpoint.config.size("hidden_size")
    if "score.weight" in checkpoint.weights.tensors:
        require_one_label(checkpoint, "score")
        label = checkpoint.head("score.weight", 1, "hidden_size")
        return builder.weight("score", (hidden, 1), lambda: label.load().T)
    words = _word_rows(checkpoint)
    ids = _answer_ids(checkpoint.weights.folder / TOKENIZER, answers, words.shape[0])

    def load() -> FloatArray:
        relevant, irrelevant = words.rows(ids)
        column: FloatArray = (relevant - irrelevant)[:, None]
        return column

    return builder.weight("score", (hidden, 1), load)


def _word_rows(checkpoint: Checkpoint) -> Tensor:
    """The rows that make logits of states: those of the embeddings where the two are tied."""
    dims = ("vocab_size", "hidden_size")
    if checkpoint.config.get("tie_word_embeddings") is True:
        return checkpoint.encoder(_EMBEDDINGS, *dims)
    return checkpoint.head("lm_head.weight", *dims)


def _answer_ids(file: Path, answers: tuple[str, str], words: int) -> list[int]:
    model = read_object(file).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        raise ModelCorrupt(f"{file} has no vocabulary of words and ids. Fetch the file again.")
    ids = []
    for word in answers:
        number = vocabulary.get(word)
        if not isinstance(number, int) or not 0 <= number < words:
            raise ConfigurationError(f"{file} has no one token {word!r} for the reranker to answer with.")
        ids.append(number)
    return ids
