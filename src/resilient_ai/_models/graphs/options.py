"""What a graph is asked to give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from resilient_ai.errors import ConfigurationError

__all__ = ["GraphOptions", "Head", "Pooling"]

Head = Literal["embedding", "score"]
Pooling = Literal["cls", "mean", "max"]

_POOLINGS: dict[str, Pooling] = {name: name for name in get_args(Pooling)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """The outputs of a graph.

    An "embedding" graph gives `sentence_embedding` and `pooled`; with `token_outputs` also
    `token_embeddings`. A "score" graph gives `logits` and takes no pooling. Without token
    outputs, cls pooling computes the last layer for the first position only.
    """

    head: Head
    pooling: Pooling | None = None
    token_outputs: bool = False

    @classmethod
    def of(cls, head: str, pooling: str | None, *, token_outputs: bool | None = None) -> GraphOptions:
        """Check plain words from a card.

        `token_outputs` None means: where they cost nothing, that is with mean and max pooling,
        for which every token goes through the last layer anyway.

        Raises:
            ConfigurationError: when the words are unknown or do not go together.
        """
        if head == "score" and (pooling is not None or token_outputs):
            raise ConfigurationError("A score graph has neither pooling nor token outputs.")
        if head == "score":
            return cls(head="score")
        if head != "embedding":
            raise ConfigurationError(f"Unknown head {head!r}; it is one of {', '.join(get_args(Head))}.")
        if pooling is None or pooling not in _POOLINGS:
            known = ", ".join(_POOLINGS)
            raise ConfigurationError(f"Pooling {pooling!r} is not one this graph can do ({known}).")
        wanted = pooling != "cls" if token_outputs is None else token_outputs
        return cls(head="embedding", pooling=_POOLINGS[pooling], token_outputs=wanted)

    @property
    def first_only(self) -> bool:
        """Whether only the first position of the last layer is needed."""
        return self.head == "score" or (self.pooling == "cls" and not self.token_outputs)
