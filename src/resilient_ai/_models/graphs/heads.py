"""What stands on top of a model's last states: pooling with normalisation, or a score."""

from __future__ import annotations

from resilient_ai._models.graphs.checkpoint import Checkpoint
from resilient_ai._models.graphs.inputs import Inputs, last_positions
from resilient_ai._models.graphs.ops import FLOAT, GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions, Pooling
from resilient_ai._models.graphs.tensors import Tensor
from resilient_ai.errors import ConfigurationError

__all__ = ["classifier_head", "embedding_outputs", "require_one_label", "row_at", "score_output"]

_BOOL = 9  # TensorProto.BOOL


def embedding_outputs(builder: GraphBuilder, inputs: Inputs, options: GraphOptions, hidden: int) -> None:
    """Pool, normalise, and declare the outputs of an embedder.

    The graph has a value `pooled`, (batch, hidden), where the family needed no other, else
    `token_embeddings`, (batch, sequence, hidden). A row of padding alone gives the zero vector
    under mean pooling, never NaN.
    """
    if not builder.has("pooled"):
        assert options.pooling is not None
        _pool(builder, "token_embeddings", inputs, options.pooling)
    builder.unit_rows("pooled", out="sentence_embedding")
    builder.output("sentence_embedding", "float32", "batch", hidden)
    builder.output("pooled", "float32", "batch", hidden)
    if options.token_outputs:
        builder.output("token_embeddings", "float32", "batch", "sequence", hidden)


def row_at(builder: GraphBuilder, x: str, positions: str, *, out: str) -> str:
    """One position of every row: `x` (batch, sequence, width), `positions` int64 (batch, 1)."""
    return builder.node("GatherND", x, positions, out=out, batch_dims=1)


def _pool(builder: GraphBuilder, tokens: str, inputs: Inputs, pooling: Pooling) -> None:
    if pooling == "cls":
        first = builder.constant("first", 0, "int64")
        builder.node("Gather", tokens, first, out="pooled", axis=1)
    elif pooling == "last_token":
        row_at(builder, tokens, last_positions(builder, inputs), out="pooled")
    elif pooling == "mean":
        _mean(builder, tokens, inputs.mask)
    else:
        _max(builder, tokens, inputs.mask)


def _mean(builder: GraphBuilder, tokens: str, mask: str) -> None:
    weights = builder.node("Cast", mask, out="pooling/weights", to=FLOAT)
    axis = builder.constant("axis_1", [1], "int64")
    # A product of matrices adds up the real tokens without a masked copy of them all.
    rows = builder.node("Unsqueeze", weights, axis, out="pooling/rows")
    total = builder.node("MatMul", rows, tokens, out="pooling/totals")
    total = builder.node("Squeeze", total, axis, out="pooling/total")
    count = builder.node("ReduceSum", weights, axis, out="pooling/count", keepdims=1)
    least = builder.constant("pooling/least", 1e-9, "float32")
    builder.node("Div", total, builder.node("Max", count, least, out="pooling/divisor"), out="pooled")


def _max(builder: GraphBuilder, tokens: str, mask: str) -> None:
    last = builder.constant("axis_2", [2], "int64")
    real = builder.node("Cast", mask, out="pooling/real", to=_BOOL)
    real = builder.node("Unsqueeze", real, last, out="pooling/real_tokens")
    # Finite, because the largest of no tokens at all must not become NaN when it is normalised.
    low = builder.constant("pooling/low", -1e9, "float32")
    shown = builder.node("Where", real, tokens, low, out="pooling/shown")
    builder.node("ReduceMax", shown, out="pooled", axes=[1], keepdims=0)


def classifier_head(
    builder: GraphBuilder, checkpoint: Checkpoint, x: str, dense: tuple[Tensor, Tensor], last: str
) -> None:
    """`last(tanh(dense(x)))` as the score; `last` is the name of a layer outside of the encoder.

    Raises:
        ModelCorrupt: when it is missing, or its shape contradicts the configuration.
        ConfigurationError: when it has other than one label: it is no reranker.
    """
    require_one_label(checkpoint, last)
    weight, bias = checkpoint.head(f"{last}.weight", 1, "hidden_size"), checkpoint.head(f"{last}.bias", 1)
    hidden = builder.linear(x, *_projection(builder, "dense", *dense), out="head/dense")
    hidden = builder.node("Tanh", hidden, out="head/tanh")
    builder.linear(hidden, *_projection(builder, "classifier", weight, bias), out="logits")
    score_output(builder)


def score_output(builder: GraphBuilder) -> None:
    """Declare the value `logits`, float32 (batch, 1), to be the output."""
    builder.output("logits", "float32", "batch", 1)


def require_one_label(checkpoint: Checkpoint, classifier: str) -> None:
    """Refuse a classifier of several labels: it is no reranker.

    Raises:
        ConfigurationError: naming the tensor and its shape.
    """
    tensor = checkpoint.weights.tensors.get(f"{classifier}.weight")
    if tensor is not None and tensor.shape[:1] != (1,):
        msg = f"{tensor.file}: tensor '{tensor.name}' has shape {tensor.shape}: a reranker has one label."
        raise ConfigurationError(f"{msg} Use another model.")


def _projection(builder: GraphBuilder, name: str, matrix: Tensor, bias: Tensor) -> tuple[str, str]:
    """Float32 in every graph: one row a text costs nothing, and the score is what counts."""
    weight = builder.weight(f"head.{name}.weight", matrix.shape[::-1], lambda: matrix.load().T)
    return weight, builder.weight(f"head.{name}.bias", bias.shape, bias.load)
