"""What XLM-RoBERTa and MPNet share beyond the encoder: where positions begin, and how pairs are scored."""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Config
from resilient_ai._models.graphs.encoder import Encoder, encode
from resilient_ai._models.graphs.heads import classifier_head, embedding_outputs
from resilient_ai._models.graphs.inputs import Inputs
from resilient_ai._models.graphs.options import GraphOptions
from resilient_ai.errors import ModelCorrupt

__all__ = ["add_outputs", "position_range"]


def position_range(config: Config) -> tuple[int, int]:
    """The first real position, which stands after the padding's own, and how many there are.

    Raises:
        ModelCorrupt: when none is left.
    """
    first = config.size("pad_token_id", 0) + 1
    longest = config.size("max_position_embeddings") - first
    if longest < 1:
        raise ModelCorrupt(f"{config.path}: 'max_position_embeddings' leaves no room after 'pad_token_id'.")
    return first, longest


def add_outputs(encoder: Encoder, inputs: Inputs, options: GraphOptions) -> None:
    """Run the encoder and declare its outputs; the classifier has its dense layer inside."""
    builder, checkpoint = encoder.builder, encoder.checkpoint
    first_only = options.needs_only("cls")
    if options.head == "embedding":
        encode(encoder, inputs, first_only=first_only, out="pooled" if first_only else "token_embeddings")
        embedding_outputs(builder, inputs, options, checkpoint.config.size("hidden_size"))
        return
    x = encode(encoder, inputs, first_only=True, out="first")
    dense = (
        checkpoint.head("classifier.dense.weight", "hidden_size", "hidden_size"),
        checkpoint.head("classifier.dense.bias", "hidden_size"),
    )
    classifier_head(builder, checkpoint, x, dense, "classifier.out_proj")
