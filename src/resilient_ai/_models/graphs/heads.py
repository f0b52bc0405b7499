"""What stands on top of an encoder: pooling with normalisation, or a score."""

from __future__ import annotations

from resilient_ai._models.graphs.encoder import Encoder, Inputs, encode
from resilient_ai._models.graphs.ops import GraphBuilder
from resilient_ai._models.graphs.options import GraphOptions, Pooling
from resilient_ai._models.graphs.weights import Tensor
from resilient_ai.errors import ConfigurationError

__all__ = ["dense_head", "embedding_head", "require_one_label"]

_FLOAT, _BOOL = 1, 9  # TensorProto.FLOAT, TensorProto.BOOL


def embedding_head(encoder: Encoder, inputs: Inputs, options: GraphOptions) -> None:
    """Pool, normalise, and declare the outputs of an embedder.

    A row of padding alone gives the zero vector under mean pooling, never NaN.
    """
    builder, hidden = encoder.builder, encoder.checkpoint.config.size("hidden_size")
    assert options.pooling is not None
    if options.first_only:
        encode(encoder, inputs, first_only=True, out="pooled")
    else:
        tokens = encode(encoder, inputs, first_only=False, out="token_embeddings")
        _pool(builder, tokens, inputs.mask, options.pooling)
    builder.unit_rows("pooled", out="sentence_embedding")
    builder.output("sentence_embedding", "float32", "batch", hidden)
    builder.output("pooled", "float32", "batch", hidden)
    if options.token_outputs:
        builder.output("token_embeddings", "float32", "batch", "sequence", hidden)


def _pool(builder: GraphBuilder, tokens: str, mask: str, pooling: Pooling) -> None:
    if pooling == "cls":
        first = builder.constant("first", 0, "int64")
        builder.node("Gather", tokens, first, out="pooled", axis=1)
    elif pooling == "mean":
        _mean(builder, tokens, mask)
    else:
        _max(builder, tokens, mask)


def _mean(builder: GraphBuilder, tokens: str, mask: str) -> None:
    weights = builder.node("Cast", mask, out="pooling/weights", to=_FLOAT)
    # A product of matrices adds up the real tokens without a masked copy of them all.
    rows = builder.node("Unsqueeze", weights, "axis_1", out="pooling/rows")
    total = builder.node("MatMul", rows, tokens, out="pooling/totals")
    total = builder.node("Squeeze", total, "axis_1", out="pooling/total")
    count = builder.node("ReduceSum", weights, "axis_1", out="pooling/count", keepdims=1)
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


def require_one_label(encoder: Encoder, classifier: str) -> None:
    """Refuse a classifier with other than one logit: it is no reranker.

    Raises:
        ConfigurationError: when the weights have another number of labels.
    """
    weights = encoder.checkpoint.weights
    tensor = weights.tensors.get(f"{classifier}.weight")
    if tensor is not None and tensor.shape[:1] != (1,):
        msg = f"{tensor.file}: tensor '{tensor.name}' has shape {tensor.shape}: a reranker has one label."
        raise ConfigurationError(f"{msg} Use another model.")


def dense_head(encoder: Encoder, x: str, dense: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor]) -> None:
    """`last(tanh(dense(x)))`, declared as output `logits`, float32 (batch, 1)."""
    builder = encoder.builder
    hidden = builder.linear(x, *_projection(builder, "dense", dense), out="head/dense")
    hidden = builder.node("Tanh", hidden, out="head/tanh")
    builder.linear(hidden, *_projection(builder, "classifier", last), out="logits")
    builder.output("logits", "float32", "batch", 1)


def _projection(builder: GraphBuilder, name: str, tensors: tuple[Tensor, Tensor]) -> tuple[str, str]:
    matrix, bias = tensors
    weight = builder.weight(f"head.{name}.weight", matrix.shape[::-1], lambda: matrix.load().T)
    return weight, builder.weight(f"head.{name}.bias", bias.shape, bias.load)
