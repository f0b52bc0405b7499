"""MPNet: BERT's encoder without token types, with a score for how far two tokens stand apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from resilient_ai._models.graphs.checkpoint import Checkpoint, Config
from resilient_ai._models.graphs.classified import add_outputs, position_range
from resilient_ai._models.graphs.encoder import Encoder, LayerNames
from resilient_ai._models.graphs.graph import Graph
from resilient_ai._models.graphs.inputs import Inputs, declare_inputs
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai._models.graphs.weights import Weights

__all__ = ["build"]

_NAMES = LayerNames(
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    output="attention.attn.o",
    norm="attention.LayerNorm",
)
# Distances from here on all have the same score; no configuration says another number.
_FARTHEST = 128


def build(config: Config, weights: Weights, options: GraphOptions) -> Graph:
    """The graph of an MPNet; it never takes `token_type_ids`.

    Raises:
        ModelCorrupt: when weights and configuration contradict each other.
        ConfigurationError: when the configuration asks for what is not supported.
    """
    builder = GraphBuilder("mpnet", half=options.precision == "fp16")
    config = config.with_defaults(relative_attention_num_buckets=32, pad_token_id=1)
    checkpoint = Checkpoint(
        config, weights, prefixes=("", "mpnet."), anchor="embeddings.word_embeddings.weight"
    )
    first, longest = position_range(config)
    inputs = declare_inputs(builder)
    encoder = Encoder(
        builder,
        checkpoint,
        names=_NAMES,
        first_position=first,
        typed=False,
        scores=_distance_scores(builder, checkpoint, inputs, longest),
    )
    add_outputs(encoder, inputs, options)
    return builder.finish(max_tokens=longest)


def _distance_scores(builder: GraphBuilder, checkpoint: Checkpoint, inputs: Inputs, longest: int) -> str:
    """What every layer adds to the scores of a pair of tokens, (1, heads, sequence, sequence)."""
    buckets = checkpoint.config.size("relative_attention_num_buckets", 4)
    table = checkpoint.encoder(
        "encoder.relative_attention_bias.weight", "relative_attention_num_buckets", "num_attention_heads"
    )
    distances = np.arange(1 - longest, longest)
    by_distance = builder.weight(
        "distances", (table.shape[1], len(distances)), lambda: table.load()[_bucket(distances, buckets)].T
    )
    zero, one = builder.constant("zero_0", 0, "int64"), builder.constant("one_0", 1, "int64")
    end = builder.node("Squeeze", inputs.longest, out="distances/end")
    row = builder.node("Range", zero, end, one, out="distances/places")
    axis = builder.constant("axis_1", [1], "int64")
    column = builder.node("Unsqueeze", row, axis, out="distances/column")
    apart = builder.node("Sub", row, column, out="distances/apart")
    shift = builder.constant("distances/shift", longest - 1, "int64")
    apart = builder.add(apart, shift, out="distances/index")
    scores = builder.node("Gather", by_distance, apart, out="distances/scores", axis=1)
    return builder.node("Unsqueeze", scores, builder.constant("zero", [0], "int64"), out="scores")


def _bucket(distances: np.ndarray[Any, Any], buckets: int) -> np.ndarray[Any, Any]:
    """The row of the table for each distance (key less query).

    The first half of the rows is for keys before the query. Of each half the first half is for one
    distance each, the rest for ranges that widen as the distance grows.
    """
    half = buckets // 2
    exact = half // 2
    far = abs(distances)
    # In float32 and in this order, as the model was trained: ranges end on whole numbers.
    share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(_FARTHEST / exact)) * np.float32(half - exact)
    wide = np.minimum(exact + share.astype(np.int64), half - 1)
    return np.where(far < exact, far, wide) + np.where(distances > 0, half, 0)
