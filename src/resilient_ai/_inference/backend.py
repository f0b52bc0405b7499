"""A backend that runs batches on one loaded graph, whichever engine has loaded it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai._inference.pooling import l2_normalize, maxsim, pool
from resilient_ai._inference.ports import Ports
from resilient_ai._inference.prefix import PrefixCache
from resilient_ai._inference.session import Session
from resilient_ai.errors import ModelCorrupt, ResilientAIError
from resilient_ai.values import Batch, FloatArray, IntArray, Vectors

__all__ = ["GraphBackend", "GraphSession", "OpenVinoBackend", "OrtBackend"]

_QUERIES_KEPT = 16
_NO_AND_YES = 2

_PREFIX_BYTES = 128 * 2**20
"""For common beginnings: 570 tokens of a decoder of 0.6B parameters, six usual queries."""


Shape = tuple[int | str | None, ...]


class GraphSession(Protocol):
    """A loaded graph. `run` is thread-safe, and what it returns is the caller's own."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """The types of the inputs, in ONNX Runtime's words."""

    @property
    def input_shapes(self) -> Mapping[str, Shape]: ...

    @property
    def outputs(self) -> Mapping[str, Shape]: ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph once; return the named outputs in order."""

    def close(self) -> None: ...


class GraphBackend:
    """Runs `Batch`es on a loaded graph; pools, normalises and scores where the graph does not.

    Outputs are recognised as `Ports` has it: those of this library's own graphs and of the published
    exports. `pooling` says how to pool a graph that gives only token vectors. `engine` and `precision` say
    who computes, and in which numbers, "" where that is not known. Thread-safe.

    Raises:
        ModelCorrupt: At construction, when the graph takes what a batch does not have.
    """

    def __init__(
        self,
        session: GraphSession,
        *,
        device: str,
        pooling: str | None = None,
        engine: str = "",
        precision: str = "",
    ) -> None:
        self.engine = engine
        self.precision = precision
        self._session = session
        self._device = device
        self._pooling = pooling
        self._ports = Ports(session.inputs, session.input_shapes, session.outputs)
        # Late interaction asks for the same query with each batch of documents.
        self._queries: LRUCache[bytes, FloatArray] = LRUCache(_QUERIES_KEPT)
        self._queries_lock = threading.Lock()
        self._prefixes: PrefixCache | None = None
        if self._ports.states is not None:
            empty = self._ports.no_states()
            self._prefixes = PrefixCache(self._continue, empty, max_bytes=_PREFIX_BYTES)

    @property
    def device(self) -> str:
        return self._device

    @property
    def dimension(self) -> int | None:
        """The length of the embeddings, where the graph states it."""
        for name in (self._ports.sentence, self._ports.pooled, self._ports.tokens):
            size = self._session.outputs.get(name or "", (None,))[-1]
            if isinstance(size, int):
                return size
        return None

    def run(self, batch: Batch) -> Vectors:
        tokens = None
        match batch.task:
            case "embed":
                values = self._embed(batch)
            case "pool":
                values = self._pooled(batch)
            case "score":
                values = self._score(batch)
            case "maxsim":
                values = self._maxsim(batch)
            case "multi":
                values, tokens = self._multi(batch)
        return Vectors(np.ascontiguousarray(values, np.float32), self._device, tokens=tokens)

    def close(self) -> None:
        self._session.close()
        if self._prefixes is not None:
            self._prefixes.clear()

    def _embed(self, batch: Batch) -> FloatArray:
        if self._ports.sentence is not None:
            # A published graph may or may not normalise; doing it twice changes nothing.
            return l2_normalize(self._fetch(batch, self._ports.sentence)[0])
        return l2_normalize(self._pooled(batch))

    def _pooled(self, batch: Batch) -> FloatArray:
        if self._ports.pooled is not None:
            return self._fetch(batch, self._ports.pooled)[0]
        if self._ports.tokens is None or self._pooling is None:
            raise self._lacks("pooled vectors", "pooled, token_embeddings or last_hidden_state")
        return pool(self._token_vectors(batch), batch.attention_mask, self._pooling)

    def _score(self, batch: Batch) -> FloatArray:
        if self._ports.logits is None:
            raise self._lacks("scores", "logits")
        logits = self._fetch(batch, self._ports.logits)[0]
        columns = logits.reshape(batch.rows, -1) if logits.size % batch.rows == 0 else logits
        if columns.shape == (batch.rows, _NO_AND_YES):
            # A softmax over "no" and "yes" is the sigmoid of their difference.
            return columns[:, 1:] - columns[:, :1]
        if columns.shape != (batch.rows, 1):
            raise ModelCorrupt(
                f"a reranker gives one score a document, or one for no and one for yes; {batch.model!r} gave "
                f"shape {logits.shape} for {batch.rows} documents, so it is another kind of model"
            )
        return columns

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

    def _multi(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        """One vector a row, and of each real token its lexical weight and its vector, row after row."""
        ports = self._ports
        if ports.sentence is None or ports.token_weights is None or ports.colbert is None:
            raise self._lacks("lexical weights and token vectors", "token_weights and colbert")
        dense, weights, colbert = self._fetch(batch, ports.sentence, ports.token_weights, ports.colbert)
        if colbert.shape[1] < batch.input_ids.shape[1]:  # some exports leave the first token out
            colbert = np.pad(colbert, ((0, 0), (1, 0), (0, 0)))
        # Some leave the last step to whoever runs them; done twice, it changes nothing.
        weights = np.maximum(weights.reshape(batch.input_ids.shape), 0)
        tokens = np.concatenate([weights[:, :, None], l2_normalize(colbert)], axis=2)
        return l2_normalize(dense), tokens[batch.attention_mask.astype(bool)]

    def _token_vectors(self, batch: Batch) -> FloatArray:
        if self._ports.tokens is None:
            raise self._lacks("token vectors", "token_embeddings or last_hidden_state")
        return self._fetch(batch, self._ports.tokens)[0]

    def _fetch(self, batch: Batch, *outputs: str) -> list[FloatArray]:
        if not self._ports.by_row or batch.rows == 1:
            return self._run(batch, outputs)
        rows = [self._run(_row(batch, index), outputs) for index in range(batch.rows)]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def _run(self, batch: Batch, outputs: tuple[str, ...]) -> list[FloatArray]:
        arrays = self._session.run(outputs, self._ports.feeds(batch, before=self._before(batch)))
        return [_float32(array) for array in arrays]

    def _before(self, batch: Batch) -> FloatArray | None:
        """The states of the tokens that a batch's rows go on from, for graphs that take such."""
        if self._prefixes is not None:
            return self._prefixes.states(batch.shared_ids)
        if batch.task == "score" and batch.shared_ids is not None:
            raise self._lacks("scores of rows that begin alike", "states")
        return None

    def _continue(self, before: FloatArray, ids: IntArray) -> FloatArray:
        """The states of tokens that follow those of `before`."""
        assert self._ports.states is not None
        row = ids[None, :]
        alone = Batch("", "score", row, np.ones_like(row), np.array([ids.size]))
        feeds = self._ports.feeds(alone, before=before, keep=ids.size)
        return _float32(self._session.run([self._ports.states], feeds)[0])

    def _lacks(self, what: str, outputs: str) -> ResilientAIError:
        present = ", ".join(self._ports.outputs)
        return ModelCorrupt(f"this graph cannot give {what}: it has the outputs {present}, not {outputs}")


class OrtBackend(GraphBackend):
    """The same on ONNX Runtime."""

    def __init__(
        self, session: Session, *, device: str, pooling: str | None = None, precision: str = ""
    ) -> None:
        super().__init__(session, device=device, pooling=pooling, engine="onnxruntime", precision=precision)


class OpenVinoBackend(GraphBackend):
    """The same on OpenVINO. `precision` is the graph's own where that is lower than the session's."""

    def __init__(
        self, session: OpenVinoSession, *, device: str, pooling: str | None = None, precision: str = ""
    ) -> None:
        own = {"f32": "fp32"}.get(session.precision, session.precision)
        super().__init__(
            session, device=device, pooling=pooling, engine="openvino", precision=precision or own
        )


def _row(batch: Batch, index: int) -> Batch:
    part = slice(index, index + 1)
    return replace(
        batch,
        input_ids=batch.input_ids[part],
        attention_mask=batch.attention_mask[part],
        lengths=batch.lengths[part],
        type_ids=None if batch.type_ids is None else batch.type_ids[part],
    )


def _float32(array: NDArray[Any]) -> FloatArray:
    if array.dtype.kind != "f":
        raise ModelCorrupt(
            f"this graph gives {array.dtype} numbers, made for storage and not for comparing; use an export "
            "with float32 or float16 outputs"
        )
    return array.astype(np.float32, copy=False)
