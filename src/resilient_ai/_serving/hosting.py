"""A model that is ready to serve: its card, and the lanes its rows can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Protocol

import numpy as np

from resilient_ai._inference.batching import collate
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.prompts import SharedTokens
from resilient_ai._models.cards import InputType, ModelCard, Prompt
from resilient_ai._serving.canary import CANARY_TEXTS
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.gradual import GradualEncoder
from resilient_ai._serving.heap import trim_heap
from resilient_ai._serving.jobs import Lane
from resilient_ai._serving.validation import CorruptAnswer, check_answer
from resilient_ai.errors import ConfigurationError, InvalidInput, ModelCorrupt
from resilient_ai.values import IntArray, Task, Tokens

__all__ = ["BatchLimits", "Closable", "Encoder", "HostedModel", "close_encoder", "has_room"]


class Encoder(Protocol):
    """What a hosted model needs of a tokenizer; `TextEncoder` is one. Thread-safe."""

    @property
    def control_tokens(self) -> Mapping[str, int]: ...

    def encode(self, texts: Sequence[str]) -> Tokens: ...

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Tokens: ...

    def encode_shared(self, query: str, documents: Sequence[str]) -> SharedTokens | None: ...


class Closable(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may be on any device: rows x longest in tokens, and rows."""

    token_budget: int
    max_rows: int


class HostedModel:
    """One loaded model. Calls on the same lane share batches; lanes live as long as the model.

    `nbytes` is what its weights take in memory, where that is known. `number` is another one each time
    that a model is loaded: vectors of two numbers need not be comparable, whatever the name.
    `shares_prefix` says that the prompts of one query need their common beginning computed only once.
    """

    def __init__(
        self,
        card: ModelCard,
        encoder: Encoder,
        backend: FallbackManager,
        limits: BatchLimits,
        prober: Closable | None = None,
        *,
        nbytes: int | None = None,
        shares_prefix: bool = False,
    ) -> None:
        self.card = card
        self.nbytes = nbytes
        self.shares_prefix = shares_prefix
        self.number = next(_numbers)
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

    def prompt_for(self, input_type: InputType, instruction: str | None) -> Prompt:
        """The card's prompt around one text.

        Raises:
            InvalidInput: an instruction for a model that reads none, or one so long that it leaves
                no room for a text.
        """
        prompt = self.card.prompt_for(input_type, instruction)
        if instruction is not None and not has_room(self.card, self._encoder, prompt):
            raise InvalidInput(
                f"the instruction ({len(instruction):,} characters) leaves no room for a text within the "
                "model's limit of tokens; shorten it, or raise AI_MAX_LENGTH"
            )
        return prompt

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

    def multi_lane(self) -> Lane:
        """The lane for texts of which everything is asked that the model says of them and their tokens."""
        if not self.card.multi:
            raise ConfigurationError(
                f"{self.card.name!r} gives dense vectors alone; name a model with sparse and token vectors "
                "in AI_MODEL_NAME, like bge-m3"
            )
        return self._lane("multi", self._encoder.encode)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of control tokens, which stand for no word."""
        return frozenset(self._encoder.control_tokens.values())

    def interaction_lane(self, query: str) -> Lane:
        """A lane for documents that are scored token by token against one query."""
        encode = self._encoder.encode
        return self._lane("maxsim", encode, shared=lambda: encode([query]).ids)

    def shares_query(self, documents: int) -> bool:
        """Whether so many documents of one query do better on `query_lane` than among other calls' pairs."""
        return self.shares_prefix and documents >= (_WORTH_A_BATCH if self.backend.guarded else 1)

    def query_lane(self, query: str) -> Lane:
        """A lane for documents that are scored after one query, for a model that `shares_prefix`.

        Their scores are those of the pairs on `pair_lane`.
        """
        return self._lane(
            "score",
            lambda documents: self._shared(query, documents).own,
            shared=lambda: self._shared(query, ()).prefix,
        )

    def prove(self) -> None:
        """Run the canary texts on the last device, which has nobody to check it.

        Raises `ModelCorrupt` for an answer that cannot be right, and what the device raises.
        """
        score = self.card.kind == "reranker"
        encoder = self._encoder
        tokens = encoder.encode_pairs(list(pairwise(CANARY_TEXTS))) if score else encoder.encode(CANARY_TEXTS)
        last = self.backend.last
        task: Task = "score" if score else "embed"
        rows = np.arange(len(tokens))
        with collate(tokens, rows, BufferPool(_PROOF_BYTES), model=self.card.name, task=task) as batch:
            try:
                check_answer(batch, last.run(batch), last.name, self.card.dimension)
            except CorruptAnswer as exc:
                raise ModelCorrupt(f"model {self.card.name!r} does not answer rightly: {exc}") from exc

    def close(self) -> None:
        if self._prober is not None:
            self._prober.close()
        close_encoder(self._encoder)
        self.backend.close()
        trim_heap()

    def _shared(self, query: str, documents: Sequence[str]) -> SharedTokens:
        shared = self._encoder.encode_shared(query, documents)
        assert shared is not None, "only models with a prompt around their pairs share it"
        return shared

    def _lane(self, task: Task, encode: Any, shared: Callable[[], IntArray] | None = None) -> Lane:
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


def close_encoder(encoder: Encoder) -> None:
    """End what an encoder may still do in the background."""
    if isinstance(encoder, GradualEncoder):
        encoder.close()


def has_room(card: ModelCard, encoder: Encoder, prompt: Prompt) -> bool:
    """Whether a text of one letter fits beside the prompt."""
    text = prompt.apply("a")
    tokens = encoder.encode_pairs([(text, "")]) if card.kind == "reranker" else encoder.encode([text])
    return not tokens.truncated[0]


_TEXT_TASKS: tuple[Task, ...] = ("embed", "pool")

_WORTH_A_BATCH = 4
"""Documents that are worth a batch of their own on a device before the CPU.

There a batch has its price however small it is, and few documents do better merged with other calls'.
On a CPU already one document takes 0.75 times as long when the instruction is known.
"""

_PROOF_BYTES = 1 << 20
_numbers = count(1)
