"""BERT: embedders (`BertModel`) and cross-encoders (`BertForSequenceClassification`)."""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Checkpoint, Config
from resilient_ai._models.graphs.encoder import Encoder, encode
from resilient_ai._models.graphs.graph import Graph
from resilient_ai._models.graphs.heads import classifier_head, embedding_outputs
from resilient_ai._models.graphs.inputs import declare_inputs
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import Weights

__all__ = ["build"]


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of a BERT.

    An embedder takes no `token_type_ids`: one text is all of type 0, whose vector is folded into
    the position table. A cross-encoder with two types takes them.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    config.choice("position_embedding_type", ("absolute",), default="absolute")
    builder = GraphBuilder("bert", half=options.precision == "fp16")
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "bert."), anchor="embeddings.word_embeddings.weight"
    )
    encoder = Encoder(builder, checkpoint)
    scores = options.head == "score"
    inputs = declare_inputs(builder, types=scores and config.size("type_vocab_size") > 1)
    first_only = options.needs_only("cls")
    if scores:
        x = encode(encoder, inputs, first_only=first_only, out="first")
        dense = (
            checkpoint.encoder("pooler.dense.weight", "hidden_size", "hidden_size"),
            checkpoint.encoder("pooler.dense.bias", "hidden_size"),
        )
        classifier_head(builder, checkpoint, x, dense, "classifier")
    else:
        encode(encoder, inputs, first_only=first_only, out="pooled" if first_only else "token_embeddings")
        embedding_outputs(builder, inputs, options, config.size("hidden_size"))
    return builder.finish(max_tokens=config.size("max_position_embeddings"))
