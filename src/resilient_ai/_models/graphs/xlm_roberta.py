"""XLM-RoBERTa and RoBERTa: embedders, BGE-M3 with its three heads among them, and cross-encoders.

BERT's encoder with three differences: the first real position stands after the padding's own
(`pad_token_id + 1`), there is one token type, and the classifier has its dense layer inside.
"""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Checkpoint, Config
from resilient_ai._models.graphs.classified import add_outputs, position_range
from resilient_ai._models.graphs.encoder import Encoder
from resilient_ai._models.graphs.graph import Graph
from resilient_ai._models.graphs.inputs import declare_inputs
from resilient_ai._models.graphs.m3_heads import add_m3_outputs
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import Weights

__all__ = ["build"]


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of an XLM-RoBERTa; it never takes `token_type_ids`.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ModelNotFound: when the further heads are asked for and their files are missing.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    config.choice("position_embedding_type", ("absolute",), default="absolute")
    builder = GraphBuilder("xlm-roberta", half=options.precision == "fp16")
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "roberta."), anchor="embeddings.word_embeddings.weight"
    )
    first, longest = position_range(config)
    inputs = declare_inputs(builder)
    add_outputs(Encoder(builder, checkpoint, first_position=first), inputs, options)
    if options.multi:
        add_m3_outputs(builder, config, weights.folder, inputs)
    return builder.finish(max_tokens=longest)
