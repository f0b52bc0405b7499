"""A model that is ready to serve: its card, and the lanes its rows can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from resilient_ai._models.cards import ModelCard
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.jobs import Lane
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Task, Tokens

__all__ = ["Closable", "Encoder", "HostedModel"]


class Encoder(Protocol):
    """What a hosted model needs of a tokenizer; `TextEncoder` is one. Thread-safe."""

    def encode(self, texts: Sequence[str]) -> Tokens: ...

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Tokens: ...


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be on any device: rows x longest in tokens, and rows."""

    token_budget: int
    max_rows: int


class HostedModel:
    """One loaded model. Calls on the same lane share batches; lanes live as long as the model."""

    def __init__(
        self,
        card: ModelCard,
        encoder: Encoder,
        backend: FallbackManager,
        limits: BatchLimits,
        prober: Closable | None = None,
    ) -> None:
        self.card = card
        self.backend = backend
        self._prober = prober
        self._encoder = encoder
        self._limits = limits
        self._pairs = self._lane("score", encoder.encode_pairs)
        self._texts = {task: self._lane(task, encoder.encode) for task in _TEXT_TASKS}

    @property
    def dimension(self) -> int:
        if self.card.dimension is None:
            raise ConfigurationError(
                f"{self.card.name!r} is a reranker and gives no vectors; "
                "name an embedding model in AI_MODEL_NAME"
            )
        return self.card.dimension

    def embedding_lane(self, *, normalize: bool) -> Lane:
        """The lane for texts that become vectors, L2-normalised or as pooled."""
        return self._texts["embed" if normalize else "pool"]

    def pair_lane(self) -> Lane:
        """The lane for (query, document) pairs that become one logit each."""
        if self.card.kind != "reranker":
            raise ConfigurationError(
                f"{self.card.name!r} gives vectors, not scores of pairs; name a reranker in "
                "AI_RERANKER_NAME, or 'late-interaction' to rank with the embedding model's token vectors"
            )
        return self._pairs

    def interaction_lane(self, query: str) -> Lane:
        """A lane for documents that are scored token by token against one query."""
        return self._lane("maxsim", self._encoder.encode, shared=query)

    def close(self) -> None:
        if self._prober is not None:
            self._prober.close()
        self.backend.close()

    def _lane(self, task: Task, encode: Any, shared: str | None = None) -> Lane:
        return Lane(
            model=self.card.name,
            task=task,
            backend=self.backend,
            encode=encode,
            token_budget=self._limits.token_budget,
            max_rows=self._limits.max_rows,
            shared=shared,
            outlook=self.backend.outlook,
        )


_TEXT_TASKS: tuple[Task, ...] = ("embed", "pool")
