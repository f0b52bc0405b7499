"""XLM-RoBERTa and RoBERTa: embedders and cross-encoders.

BERT's encoder with three differences: the first real position stands after the padding's own
(`pad_token_id + 1`), there is one token type, and the classifier has its dense layer inside.
"""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Checkpoint, Config
from resilient_ai._models.graphs.encoder import Encoder, declare_inputs, encode
from resilient_ai._models.graphs.heads import dense_head, embedding_head, require_one_label
from resilient_ai._models.graphs.ops import Graph, GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import Weights
from resilient_ai.errors import ModelCorrupt

__all__ = ["MODEL_TYPES", "build"]

MODEL_TYPES = ("roberta", "xlm-roberta")


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of an XLM-RoBERTa; it never takes `token_type_ids`.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    config.choice("position_embedding_type", ("absolute",), default="absolute")
    builder = GraphBuilder("xlm-roberta")
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "roberta."), anchor="embeddings.word_embeddings.weight"
    )
    first = config.size("pad_token_id", 0) + 1
    longest = config.size("max_position_embeddings") - first
    if longest < 1:
        raise ModelCorrupt(f"{config.path}: 'max_position_embeddings' leaves no room after 'pad_token_id'.")
    encoder = Encoder(builder, checkpoint, first_position=first)
    inputs = declare_inputs(builder, types=False)
    if options.head == "embedding":
        embedding_head(encoder, inputs, options)
    else:
        require_one_label(encoder, "classifier.out_proj")
        x = encode(encoder, inputs, first_only=True, out="first")
        dense = (
            checkpoint.head("classifier.dense.weight", "hidden_size", "hidden_size"),
            checkpoint.head("classifier.dense.bias", "hidden_size"),
        )
        last = (
            checkpoint.head("classifier.out_proj.weight", 1, "hidden_size"),
            checkpoint.head("classifier.out_proj.bias", 1),
        )
        dense_head(encoder, x, dense, last)
    return builder.finish(max_tokens=longest)
