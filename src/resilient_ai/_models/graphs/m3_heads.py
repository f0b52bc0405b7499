"""BGE-M3's further heads: a lexical weight and a ColBERT vector for each token."""

from __future__ import annotations

from pathlib import Path

from resilient_ai._models.graphs.checkpoint import Config, require_shape
from resilient_ai._models.graphs.inputs import Inputs
from resilient_ai._models.graphs.ops import FLOAT, GraphBuilder
from resilient_ai._models.graphs.tensors import Tensor
from resilient_ai._models.graphs.torch_files import read_torch_file
from resilient_ai._models.graphs.weights import M3_FILES
from resilient_ai.errors import ModelCorrupt, ModelNotFound

__all__ = ["add_m3_outputs"]

_SPARSE, _COLBERT = M3_FILES


def add_m3_outputs(builder: GraphBuilder, config: Config, folder: Path, inputs: Inputs) -> None:
    """Declare `token_weights` and `colbert`, made of the graph's value `token_embeddings`.

    `token_weights`, float32 (batch, sequence), is never negative. `colbert`, float32 (batch,
    sequence, width), has rows of length 1; its first position is that of the opening token, which
    late interaction leaves out. Both are 0 for padding.

    Raises:
        ModelNotFound: when a file is missing.
        ModelCorrupt: when a file is not what it should be.
    """
    mask = builder.node("Cast", inputs.mask, out="heads/mask", to=FLOAT)
    axis = builder.constant("axis_last", [-1], "int64")
    sparse = _head(config, folder / _SPARSE, rows=1)
    x = _linear(builder, "sparse", *sparse)
    x = builder.node("Squeeze", builder.node("Relu", x, out="heads/positive"), axis, out="heads/weights")
    builder.node("Mul", x, mask, out="token_weights")
    builder.output("token_weights", "float32", "batch", "sequence")
    colbert = _head(config, folder / _COLBERT)
    x = _linear(builder, "colbert", *colbert)
    real = builder.node("Unsqueeze", mask, axis, out="heads/real")
    builder.unit_rows(builder.node("Mul", x, real, out="heads/vectors"), out="colbert")
    builder.output("colbert", "float32", "batch", "sequence", colbert[0].shape[0])


def _head(config: Config, file: Path, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer that stands in a file of its own."""
    if not file.is_file():
        raise ModelNotFound(f"{file} is not there. Fetch the model again, with its further heads.")
    tensors = read_torch_file(file)
    for name in ("weight", "bias"):
        if name not in tensors:
            raise ModelCorrupt(f"{file} has no tensor '{name}'. Fetch the file again.")
    weight, bias = tensors["weight"], tensors["bias"]
    outs = rows or (weight.shape[0] if weight.shape else 0)
    require_shape(weight, config, outs, "hidden_size")
    require_shape(bias, config, outs)
    return weight, bias


def _linear(builder: GraphBuilder, name: str, weight: Tensor, bias: Tensor) -> str:
    matrix = builder.matrix(f"heads.{name}.weight", weight.shape[::-1], lambda: weight.load().T)
    vector = builder.weight(f"heads.{name}.bias", bias.shape, bias.load)
    return builder.linear("token_embeddings", matrix, vector, out=f"heads/{name}")
