"""What a call means: the rows it needs, where they go, and how its answer is made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from resilient_ai._inference.pooling import l2_normalize, sigmoid
from resilient_ai._models.cards import InputType
from resilient_ai._serving.arguments import check_dimensions
from resilient_ai._serving.cache import CachedVector, VectorCache
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._serving.jobs import Lane, Rows
from resilient_ai.values import Embeddings, FloatArray, RankedDocument, Ranking

__all__ = ["Call", "EmbedCall", "RerankCall", "Route"]

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class Route(Generic[Answer]):
    """The rows that must be computed, the lane they take, and the answer made of them."""

    lane: Lane
    items: Sequence[Any]
    finish: Callable[[Rows], Answer]


class Call(Protocol[Answer]):
    """A call whose arguments were checked; `route` refuses what only the loaded model can judge."""

    def route(self, model: HostedModel) -> Route[Answer]: ...


@dataclass(frozen=True, slots=True, eq=False)
class EmbedCall:
    """Texts that become vectors; those the cache knows are not computed again."""

    texts: Sequence[str]
    input_type: InputType
    instruction: str | None
    dimensions: int | None
    normalize: bool
    cache: VectorCache

    def route(self, model: HostedModel) -> Route[Embeddings]:
        dimensions = check_dimensions(self.dimensions, model.dimension)
        prompt = model.prompt_for(self.input_type, self.instruction)
        lane = model.embedding_lane(normalize=self.normalize)
        keys: list[Hashable] = []
        known: list[CachedVector | None] = [None] * len(self.texts)
        if self.cache.admits(len(self.texts)):
            keys = [(model.number, lane.task, prompt, text) for text in self.texts]
            known = self.cache.look_up(keys)
        missing = [index for index, vector in enumerate(known) if vector is None]
        items = [prompt.apply(self.texts[index]) for index in missing]
        return Route(lane, items, partial(self._finish, model, dimensions, keys, known, missing))

    def _finish(
        self,
        model: HostedModel,
        dimensions: int,
        keys: list[Hashable],
        known: list[CachedVector | None],
        missing: list[int],
        rows: Rows,
    ) -> Embeddings:
        if keys:
            self.cache.keep([keys[index] for index in missing], _to_cached(rows))
        if len(missing) < len(known):
            rows = _merge(known, missing, rows, model.dimension)
        return Embeddings(
            vectors=self._cut(rows.values, dimensions),
            model=model.card.name,
            dimensions=dimensions,
            token_counts=rows.token_counts,
            truncated=rows.truncated,
            served_by=rows.served_by,
            degraded=rows.degraded,
            elapsed_ms=rows.elapsed_ms,
        )

    def _cut(self, vectors: FloatArray, dimensions: int) -> FloatArray:
        """Slice, then normalise again: the order Matryoshka models are trained for."""
        if dimensions == vectors.shape[1]:
            return vectors
        sliced = np.ascontiguousarray(vectors[:, :dimensions])
        return l2_normalize(sliced) if self.normalize else sliced


@dataclass(frozen=True, slots=True, eq=False)
class RerankCall:
    """Documents that are scored against a query.

    An embedding model scores by late interaction, a reranker reads query and document together.
    """

    query: str
    documents: Sequence[str]
    top_k: int | None
    instruction: str | None
    raw_scores: bool

    def route(self, model: HostedModel) -> Route[Ranking]:
        finish = partial(self._finish, model)
        query = model.prompt_for("query", self.instruction).apply(self.query)
        prompt = model.card.prompt_for("document")
        documents = [prompt.apply(document) for document in self.documents]
        if model.card.kind == "embedding":
            return Route(model.interaction_lane(query), documents, finish)
        if model.shares_query(len(documents)):
            return Route(model.query_lane(query), documents, finish)
        return Route(model.pair_lane(), [(query, document) for document in documents], finish)

    def _finish(self, model: HostedModel, rows: Rows) -> Ranking:
        scores = rows.values[:, 0]
        if model.card.score == "sigmoid" and not self.raw_scores:
            scores = sigmoid(scores)
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        return Ranking(
            documents=tuple(RankedDocument(int(i), float(scores[i]), self.documents[i]) for i in order),
            model=model.card.name,
            token_counts=rows.token_counts,
            truncated=rows.truncated,
            served_by=rows.served_by,
            degraded=rows.degraded,
            elapsed_ms=rows.elapsed_ms,
        )


def _to_cached(rows: Rows) -> list[CachedVector]:
    """Copies, so that a kept row does not keep its whole batch alive."""
    return [
        CachedVector(vector.copy(), int(tokens), bool(truncated), device)
        for vector, tokens, truncated, device in zip(
            rows.values, rows.token_counts, rows.truncated, rows.served_by, strict=True
        )
    ]


def _merge(known: list[CachedVector | None], missing: list[int], rows: Rows, dimension: int) -> Rows:
    """Put computed and remembered rows together, in the order of the texts."""
    values = np.empty((len(known), dimension), np.float32)
    token_counts = np.empty(len(known), np.int64)
    truncated = np.empty(len(known), np.bool_)
    served_by = [""] * len(known)
    for index, cached in enumerate(known):
        if cached is not None:
            values[index], token_counts[index] = cached.vector, cached.tokens
            truncated[index], served_by[index] = cached.truncated, cached.served_by
    if missing:
        values[missing], token_counts[missing] = rows.values, rows.token_counts
        truncated[missing] = rows.truncated
        for index, device in zip(missing, rows.served_by, strict=True):
            served_by[index] = device
    return Rows(values, token_counts, truncated, tuple(served_by), rows.degraded, rows.elapsed_ms)
