"""The models a server answers for, and the names they may be asked for by."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_ai._models.cards import ModelCard
from resilient_ai.aio import AsyncAIService
from resilient_ai.errors import ModelNotFound
from resilient_ai.settings import LATE_INTERACTION

__all__ = ["Offer", "embedding_offer", "reranking_offer"]


@dataclass(frozen=True, slots=True)
class Offer:
    """One model and what it is used for; `setting` is where the operator names it."""

    card: ModelCard
    names: frozenset[str]
    setting: str

    def check(self, name: str | None) -> None:
        """Make sure that a client's `model` is this one; None leaves the choice to the server.

        Raises:
            ModelNotFound: It is another one, which this server does not stand in for.
        """
        if name is None or name.casefold() in {known.casefold() for known in self.names}:
            return
        raise ModelNotFound(
            f"This server has {self.card.name!r} for this, not {name!r}; ask for that one "
            f"(GET /v1/models lists it), or start a server with {self.setting} set to yours."
        )


def embedding_offer(service: AsyncAIService) -> Offer:
    """What embeds. Raises `ModelNotFound` when the settings name a model that nobody knows."""
    card = service.registry.get(service.settings.model_name)
    return Offer(card, frozenset((card.name, *card.aliases)), "AI_MODEL_NAME")


def reranking_offer(service: AsyncAIService) -> Offer:
    """What reranks; may be the embedding model. Raises as `embedding_offer` does."""
    settings = service.settings
    card = service.registry.get(settings.reranking_model)
    also = {LATE_INTERACTION} if settings.late_interaction else set[str]()
    return Offer(card, frozenset((card.name, *card.aliases, *also)), "AI_RERANKER_NAME")
