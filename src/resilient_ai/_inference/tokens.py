"""Texts to token ids, with the `tokenizers` package and the model's own tokenizer.json.

Whatever truncation and padding a shipped tokenizer.json has baked in is reset: cutting happens
here, on token ids, where it can be reported, and padding in `batching`, once rows are sorted.
The special tokens around a text or a pair are learned from the tokenizer itself, so a query is
tokenised once for all the documents it is paired with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from resilient_ai._inference.frames import Frame, learn_frame, pack
from resilient_ai._inference.plaintext import PlainTextTokenizer
from resilient_ai._inference.prompts import PairPrompt, PromptedPairs, SharedTokens
from resilient_ai.errors import ConfigurationError, ModelCorrupt, ModelNotFound
from resilient_ai.values import Tokens

__all__ = ["TextEncoder"]


class TextEncoder:
    """Turns texts, or pairs of texts, into `Tokens`. Thread-safe; holds no per-call state.

    Control tokens that a text spells out are text. Takes `tokenizer` over and changes its settings.

    Args:
        tokenizer: The model's own.
        max_tokens: The longest row, special tokens and prompts included.
        query_share: The largest part of a row that the first text of a pair may take, and then only
            the second is cut; without it the longer of the two is cut first.
        with_types: Whether to add the type ids that tell the two texts of a pair apart.
        vocabulary: How many ids the model has rows for; None: not known.
        end_token: What every single text must end with, for tokenizers that do not see to it.
        pair_prompt: The words around a pair, for models that read a prompt and no special tokens.

    Raises:
        ConfigurationError: at construction, when special tokens or the prompt leave no room for text.
        ModelCorrupt: at construction, when the tokenizer lacks `end_token` or drops text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        query_share: float | None = None,
        with_types: bool = False,
        vocabulary: int | None = None,
        end_token: str | None = None,
        pair_prompt: PairPrompt | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        self._max_tokens = max_tokens
        self._query_share = query_share
        self._with_types = with_types
        self._vocabulary = vocabulary
        single = learn_frame(tokenizer, texts=1)
        self._single = single.ending_with(_id_of(end_token, tokenizer)) if end_token else single
        self._pair = learn_frame(tokenizer, texts=2)
        if max_tokens <= max(self._single.size, self._pair.size):
            raise ConfigurationError(
                f"a limit of {max_tokens} tokens leaves no room for text beside the "
                f"{self._pair.size} special tokens; raise AI_MAX_LENGTH"
            )
        prompt_ends = _ends_of(pair_prompt, tokenizer) if pair_prompt else None
        self._plain = PlainTextTokenizer(tokenizer)  # nothing before this line comes from a user
        self._prompted: PromptedPairs | None = None
        if pair_prompt and prompt_ends:
            self._prompted = PromptedPairs(
                self._plain, pair_prompt, prompt_ends, max_tokens=max_tokens, query_share=query_share
            )

    @classmethod
    def load(cls, path: Path, **options: Any) -> TextEncoder:
        """Read a tokenizer.json; `options` are those of the constructor."""
        try:
            content = path.read_bytes()
        except FileNotFoundError as exc:
            raise ModelNotFound(
                f"{path} is missing: a model folder needs its tokenizer.json; "
                "fetch the model again with `resilient-ai models pull`"
            ) from exc
        except OSError as exc:
            raise ModelCorrupt(f"{path} cannot be read: {exc}") from exc
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as exc:  # the bindings turn every error of theirs into a bare Exception
            raise ModelCorrupt(f"{path} is not a usable tokenizer.json: {exc}") from exc
        return cls(tokenizer, **options)

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """How the tokenizer's control tokens are spelled, and their ids. No text can bring one about."""
        return self._plain.control_tokens

    def words(self, text: str) -> list[str]:
        """What the tokenizer's model is given of a whole text, in the model's own letters."""
        return self._plain.words(text)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode each text as `<specials> text <specials>`, cut to `max_tokens`.

        Raises `InvalidInput` for text that is not valid Unicode (lone surrogates).
        """
        room = self._max_tokens - self._single.size
        bodies, unread = self._plain.read(texts, room)
        truncated = [cut or len(body) > room for body, cut in zip(bodies, unread, strict=True)]
        return self._pack(self._single, [(body[:room],) for body in bodies], truncated)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """Encode (query, document) pairs the way the model was trained on them.

        Each distinct text is tokenised once. Raises `InvalidInput` as `encode` does.
        """
        if self._prompted is not None:
            return self._checked(self._prompted.encode(pairs))
        room = self._max_tokens - self._pair.size
        distinct = list(dict.fromkeys(chain.from_iterable(pairs)))
        found = zip(distinct, *self._plain.read(distinct, room), strict=True)
        bodies = {text: (body, unread) for text, body, unread in found}
        kept, truncated = [], []
        for query, document in pairs:
            (first, first_cut), (second, second_cut) = bodies[query], bodies[document]
            keep_first, keep_second = self._share_room(len(first), len(second), room)
            kept.append((first[:keep_first], second[:keep_second]))
            lost = keep_first < len(first) or keep_second < len(second)
            truncated.append(lost or first_cut or second_cut)
        return self._pack(self._pair, kept, truncated)

    def encode_shared(self, query: str, documents: Sequence[str]) -> SharedTokens | None:
        """The rows of `encode_pairs` for one query, with the ids that all of them begin with told apart.

        None for models without a prompt: they read both texts at once, so nothing can be shared.
        Raises `InvalidInput` as `encode` does.
        """
        if self._prompted is None:
            return None
        shared = self._prompted.encode_shared(query, documents)
        self._check_vocabulary(int(shared.prefix.max(initial=0)))
        self._checked(shared.own)
        return shared

    def _share_room(self, first: int, second: int, room: int) -> tuple[int, int]:
        if self._query_share is None:
            return _cut_longest_first(first, second, room)
        first = min(first, int(self._max_tokens * self._query_share), room)
        return first, min(second, room - first)

    def _pack(self, frame: Frame, bodies: Sequence[tuple[list[int], ...]], truncated: list[bool]) -> Tokens:
        rows = [frame.weave(*row) for row in bodies]
        types = [frame.weave_types(*row) for row in bodies] if self._with_types else None
        return self._checked(pack(rows, truncated, types))

    def _checked(self, tokens: Tokens) -> Tokens:
        self._check_vocabulary(int(tokens.ids.max(initial=0)))
        return tokens

    def _check_vocabulary(self, largest: int) -> None:
        """Keep ids the model has no row for away from every device: on a GPU they poison the context."""
        if self._vocabulary is not None and largest >= self._vocabulary:
            raise ModelCorrupt(
                f"the tokenizer gave token id {largest}, but the model knows only {self._vocabulary}: "
                "tokenizer.json and weights belong to different models; fetch them again"
            )


def _cut_longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Take tokens from the longer text until both fit; both over half the room: split it evenly.

    The rule of the `tokenizers` package's "longest_first" strategy, so that scores equal those of
    the libraries the models were published with.
    """
    if first + second <= room:
        return first, second
    shorter, swapped = min(first, second), first > second
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if swapped else (shorter, longer)


def _ends_of(prompt: PairPrompt, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of a prompt's beginning and end, in which control tokens are control tokens."""
    prefix, suffix = (
        tokenizer.encode(end, add_special_tokens=False) for end in (prompt.prefix, prompt.suffix)
    )
    return prefix.ids, suffix.ids


def _id_of(token: str, tokenizer: Tokenizer) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ModelCorrupt(
            f"tokenizer.json does not know {token}, which the model's texts must end with: "
            "it belongs to another model; fetch the model again"
        )
    return found
