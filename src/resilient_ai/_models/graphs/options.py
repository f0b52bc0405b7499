"""What a graph is asked to give, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from resilient_ai.errors import ConfigurationError

__all__ = ["Device", "GraphOptions", "Head", "Pooling", "Precision"]

Head = Literal["embedding", "score"]
Pooling = Literal["cls", "mean", "max", "last_token"]
Precision = Literal["fp32", "fp16"]
Device = Literal["any", "cpu"]

_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """The outputs of a graph and the numbers it computes with.

    Attributes:
        head: An "embedding" graph gives `sentence_embedding` and `pooled`, a "score" graph `logits`.
        pooling: How an embedding graph makes one vector of many; None for scores.
        token_outputs: Also give `token_embeddings`. Without, cls and last-token pooling compute the
            last layer for that one position only.
        multi: Also give BGE-M3's `token_weights` and `colbert`.
        shared_prefix: Let the rows of a batch go on from one common beginning whose states were computed
            before (see `prefix`); without one a row is a whole text as ever. For scores of decoders.
        answers: The two words a generative reranker chooses between, the one that means "relevant"
            first; their ids are those of the model's own tokenizer.
        precision: "fp16" keeps weights, products of matrices and attention in half precision, for
            GPUs; inputs and outputs stay as they are, and so does everything that sums or normalises.
        device: "cpu" allows operators that no other provider runs in this precision.
    """

    head: Head
    pooling: Pooling | None = None
    token_outputs: bool = False
    multi: bool = False
    shared_prefix: bool = False
    answers: tuple[str, str] = ("yes", "no")
    precision: Precision = "fp32"
    device: Device = "any"

    @classmethod
    def of(
        cls, head: str, pooling: str | None, *, token_outputs: bool | None = None, **others: Any
    ) -> GraphOptions:
        """Check plain words from a card; `others` are the further attributes.

        `token_outputs` None means: where they cost nothing, that is with mean and max pooling,
        for which every token goes through the last layer anyway.

        Raises:
            ConfigurationError: when the words are unknown or do not go together.
        """
        others["precision"] = _word("Precision", others.get("precision", "fp32"), get_args(Precision))
        others["device"] = _word("Device", others.get("device", "any"), get_args(Device))
        if _word("Head", head, get_args(Head)) == "score":
            if pooling is not None or token_outputs or others.get("multi"):
                raise ConfigurationError(
                    "A score graph has neither pooling nor token outputs nor further heads."
                )
            return cls(head="score", **others)
        if others.get("shared_prefix"):
            raise ConfigurationError("Only a score graph takes a common beginning of its rows.")
        pooled: Pooling = _word("Pooling", pooling, get_args(Pooling))
        wanted = pooled in {"mean", "max"} if token_outputs is None else token_outputs
        return cls(head="embedding", pooling=pooled, token_outputs=wanted, **others)

    def needs_only(self, position: Literal["cls", "last_token"]) -> bool:
        """Whether of the last layer's states only the one at `position` is needed.

        A score is that of whichever position its family reads.
        """
        if self.head == "score":
            return True
        return self.pooling == position and not self.token_outputs and not self.multi


def _word(what: str, word: object, known: tuple[_Word, ...]) -> _Word:
    for each in known:
        if word == each:
            return each
    raise ConfigurationError(f"{what} {word!r} is not one this graph can have ({', '.join(known)}).")
