"""BERT: embedders (`BertModel`) and cross-encoders (`BertForSequenceClassification`)."""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Checkpoint, Config
from resilient_ai._models.graphs.encoder import Encoder, declare_inputs, encode
from resilient_ai._models.graphs.heads import dense_head, embedding_head, require_one_label
from resilient_ai._models.graphs.ops import Graph, GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import Weights

__all__ = ["MODEL_TYPES", "build"]

MODEL_TYPES = ("bert",)


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of a BERT.

    An embedder takes no `token_type_ids`: one text is all of type 0, whose vector is folded into
    the position table. A cross-encoder with two types takes them.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    config.choice("position_embedding_type", ("absolute",), default="absolute")
    builder = GraphBuilder("bert")
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "bert."), anchor="embeddings.word_embeddings.weight"
    )
    encoder = Encoder(builder, checkpoint)
    scores = options.head == "score"
    inputs = declare_inputs(builder, types=scores and config.size("type_vocab_size") > 1)
    if not scores:
        embedding_head(encoder, inputs, options)
    else:
        require_one_label(encoder, "classifier")
        x = encode(encoder, inputs, first_only=True, out="first")
        pooler = checkpoint.encoder("pooler.dense.weight", "hidden_size", "hidden_size")
        pooler_bias = checkpoint.encoder("pooler.dense.bias", "hidden_size")
        last = checkpoint.head("classifier.weight", 1, "hidden_size"), checkpoint.head("classifier.bias", 1)
        dense_head(encoder, x, (pooler, pooler_bias), last)
    return builder.finish(max_tokens=config.size("max_position_embeddings"))
