"""A backend that runs batches on one ONNX Runtime session."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from resilient_ai._inference.pooling import l2_normalize, maxsim, pool
from resilient_ai._inference.session import Session
from resilient_ai.errors import ModelCorrupt, ResilientAIError
from resilient_ai.values import Batch, FloatArray, IntArray, Vectors

__all__ = ["OrtBackend"]

_TOKEN_OUTPUTS = ("token_embeddings", "last_hidden_state")
_QUERIES_KEPT = 16


class OrtBackend:
    """Runs `Batch`es on a `Session`; pools, normalises and scores where the graph does not.

    Outputs are recognised by their names, those of this library's own graphs and of the published
    exports: `sentence_embedding`, `pooled`, `token_embeddings` or `last_hidden_state`, `logits`.
    `pooling` says how to pool a graph that gives only token vectors. Thread-safe.
    """

    def __init__(self, session: Session, *, device: str, pooling: str | None = None) -> None:
        self._session = session
        self._device = device
        self._pooling = pooling
        self._outputs = tuple(session.outputs)
        self._tokens_output = next((name for name in _TOKEN_OUTPUTS if name in self._outputs), None)
        # Late interaction asks for the same query with each batch of documents.
        self._queries: LRUCache[bytes, FloatArray] = LRUCache(_QUERIES_KEPT)
        self._queries_lock = threading.Lock()

    @property
    def device(self) -> str:
        return self._device

    @property
    def dimension(self) -> int | None:
        """The length of the embeddings, where the graph states it."""
        for name in ("sentence_embedding", "pooled", self._tokens_output):
            size = self._session.outputs.get(name or "", (None,))[-1]
            if isinstance(size, int):
                return size
        return None

    def run(self, batch: Batch) -> Vectors:
        match batch.task:
            case "embed":
                values = self._embed(batch)
            case "pool":
                values = self._pooled(batch)
            case "score":
                values = self._score(batch)
            case "maxsim":
                values = self._maxsim(batch)
        return Vectors(np.ascontiguousarray(values, np.float32), self._device)

    def close(self) -> None:
        self._session.close()

    def _embed(self, batch: Batch) -> FloatArray:
        if "sentence_embedding" in self._outputs:
            # A published graph may or may not normalise; doing it twice changes nothing.
            return l2_normalize(_float32(self._fetch("sentence_embedding", batch)))
        return l2_normalize(self._pooled(batch))

    def _pooled(self, batch: Batch) -> FloatArray:
        if "pooled" in self._outputs:
            return _float32(self._fetch("pooled", batch))
        if self._tokens_output is None or self._pooling is None:
            raise self._lacks("pooled vectors", "pooled, token_embeddings or last_hidden_state")
        return pool(self._token_vectors(batch), batch.attention_mask, self._pooling)

    def _score(self, batch: Batch) -> FloatArray:
        if "logits" not in self._outputs:
            raise self._lacks("scores", "logits")
        logits = _float32(self._fetch("logits", batch))
        if logits.size != batch.rows:
            raise ModelCorrupt(
                f"a reranker gives one score a document; {batch.model!r} gave shape {logits.shape} for "
                f"{batch.rows} documents, so it is another kind of model"
            )
        return logits.reshape(batch.rows, 1)

    def _maxsim(self, batch: Batch) -> FloatArray:
        if batch.shared_ids is None:
            raise self._lacks("late-interaction scores", "token vectors of the query")
        query = self._query_vectors(batch.shared_ids, batch)
        return maxsim(query, self._token_vectors(batch), batch.attention_mask)[:, None]

    def _query_vectors(self, ids: IntArray, batch: Batch) -> FloatArray:
        key = ids.tobytes()
        with self._queries_lock:
            known = self._queries.get(key)
        if known is None:
            row = ids[None, :]
            alone = Batch(batch.model, "maxsim", row, np.ones_like(row), np.array([row.size]))
            known = l2_normalize(self._token_vectors(alone)[0])
            with self._queries_lock:
                self._queries[key] = known
        return known

    def _token_vectors(self, batch: Batch) -> FloatArray:
        if self._tokens_output is None:
            raise self._lacks("token vectors", "token_embeddings or last_hidden_state")
        return _float32(self._fetch(self._tokens_output, batch))

    def _fetch(self, output: str, batch: Batch) -> NDArray[Any]:
        return self._session.run([output], self._feeds(batch))[0]

    def _feeds(self, batch: Batch) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
        }
        if "token_type_ids" in self._session.inputs:
            types = batch.type_ids
            feeds["token_type_ids"] = np.zeros_like(batch.input_ids) if types is None else types
        return {name: array for name, array in feeds.items() if name in self._session.inputs}

    def _lacks(self, what: str, outputs: str) -> ResilientAIError:
        return ModelCorrupt(
            f"this graph cannot give {what}: it has the outputs {', '.join(self._outputs)}, not {outputs}"
        )


def _float32(array: NDArray[Any]) -> FloatArray:
    return array.astype(np.float32, copy=False)
