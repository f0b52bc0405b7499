"""fastembed, with the exported graph as a model of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

__all__ = ["FastEmbed"]

_NAME = "benchmark/minilm"


class FastEmbed:
    """`folder` has `model.onnx` and the tokenizer, with the length that the others cut at."""

    def __init__(self, *, folder: str, dimension: int, threads: int, batch: int = 32) -> None:
        TextEmbedding.add_custom_model(
            _NAME,
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf=_NAME),
            dim=dimension,
            model_file="model.onnx",
        )
        self._batch = batch
        self._model = TextEmbedding(_NAME, specific_model_path=folder, threads=threads)

    def embed(self, texts: list[str]) -> Any:
        return np.stack(list(self._model.embed(texts, batch_size=self._batch))).astype(np.float32)
