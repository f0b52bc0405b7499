"""Calls for everything that a model says of a text: one vector, weights of words, vectors of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from resilient_ai._models.cards import InputType
from resilient_ai._serving.calls import Route
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._serving.jobs import Rows, TokenRow
from resilient_ai.values import FloatArray, MultiEmbeddings

__all__ = ["MultiCall"]


@dataclass(frozen=True, slots=True, eq=False)
class MultiCall:
    """Texts that become dense, sparse and token vectors in one pass."""

    texts: Sequence[str]
    input_type: InputType
    instruction: str | None

    def route(self, model: HostedModel) -> Route[MultiEmbeddings]:
        prompt = model.prompt_for(self.input_type, self.instruction)
        items = [prompt.apply(text) for text in self.texts]
        return Route(model.multi_lane(), items, partial(self._finish, model))

    @staticmethod
    def _finish(model: HostedModel, rows: Rows) -> MultiEmbeddings:
        special = model.special_ids
        return MultiEmbeddings(
            dense=rows.values if len(rows.values) else np.empty((0, model.dimension), np.float32),
            sparse=tuple(_lexical_weights(row, special) for row in rows.tokens),
            colbert=tuple(_token_vectors(row) for row in rows.tokens),
            model=model.card.name,
            token_counts=rows.token_counts,
            truncated=rows.truncated,
            served_by=rows.served_by,
            degraded=rows.degraded,
            elapsed_ms=rows.elapsed_ms,
        )


def _lexical_weights(row: TokenRow, special: frozenset[int]) -> dict[int, float]:
    """The greatest weight of each token id; special tokens and weights of 0 and less do not count.

    As BGE-M3's authors have it (FlagEmbedding, `M3Embedder._process_token_weights`).
    """
    weights: dict[int, float] = {}
    for token, weight in zip(row.ids.tolist(), row.values[:, 0].tolist(), strict=True):
        if weight > 0 and token not in special and weight > weights.get(token, 0.0):
            weights[token] = weight
    return weights


def _token_vectors(row: TokenRow) -> FloatArray:
    """All but the first token's: that one stands for the text, and has the dense vector."""
    return np.ascontiguousarray(row.values[1:, 1:])
