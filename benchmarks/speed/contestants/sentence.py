"""sentence-transformers, by torch and by its onnx backend.

The onnx backend loads its session through optimum, which asks for an older transformers than the one
measured here. So the same is done without it: torch's own exporter writes the graph, ONNX Runtime runs
it with its defaults and the same number of threads, and it stands in the place of the torch model.
Tokenising, sorting, batching, pooling and normalising stay those of sentence-transformers.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from transformers.modeling_outputs import BaseModelOutput

__all__ = ["Exporter", "SentenceOnnx", "SentenceTorch"]

_BATCH = 32


class SentenceTorch:
    """`encode` with a batch of 32, its default."""

    def __init__(self, *, folder: str, threads: int, dtype: str = "float32", batch: int = _BATCH) -> None:
        torch.set_num_threads(threads)
        self._batch = batch
        self._model = SentenceTransformer(
            folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)}, local_files_only=True
        )

    def embed(self, texts: list[str]) -> Any:
        return self._model.encode(
            texts, batch_size=self._batch, normalize_embeddings=True, show_progress_bar=False
        )


class SentenceOnnx(SentenceTorch):
    """The same around a graph that ONNX Runtime runs."""

    def __init__(self, *, folder: str, graph: str, threads: int) -> None:
        super().__init__(folder=folder, threads=threads)
        self._model[0].model = _Graph(graph, threads, self._model[0].model.config)
        gc.collect()


class _Graph(torch.nn.Module):
    """What optimum's `ORTModelForFeatureExtraction` does on a CPU: numpy in, a tensor out."""

    def __init__(self, graph: str, threads: int, config: Any) -> None:
        super().__init__()
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def forward(self, input_ids: Any, attention_mask: Any, **others: Any) -> BaseModelOutput:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **others}
        given.setdefault("token_type_ids", torch.zeros_like(input_ids))
        feeds = {name: given[name].numpy() for name in self._inputs}
        return BaseModelOutput(torch.from_numpy(self._session.run(["last_hidden_state"], feeds)[0]))


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        return self._model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


class Exporter:
    """Writes the graph of an encoder as torch exports it; made for what it does on the way."""

    def __init__(self, *, folder: str, graph: str) -> None:
        from transformers import AutoModel

        if Path(graph).is_file():
            return
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        sizes = dict(enumerate((torch.export.Dim("batch"), torch.export.Dim("length"))))
        example = (
            torch.full((2, 7), 5),
            torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
            torch.zeros(2, 7).long(),
        )
        torch.onnx.export(
            _Encoder(model),
            example,
            graph,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["last_hidden_state"],
            dynamic_shapes=(sizes, sizes, sizes),
            external_data=False,
        )
