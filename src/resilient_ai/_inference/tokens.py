"""Texts to token ids, with the `tokenizers` package and the model's own tokenizer.json.

Whatever truncation and padding a shipped tokenizer.json has baked in is reset: cutting happens
here, on token ids, where it can be reported, and padding in `batching`, once rows are sorted.
The special tokens around a text or a pair are learned from the tokenizer itself, so a query is
tokenised once for all the documents it is paired with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from resilient_ai.errors import ConfigurationError, InvalidInput, ModelCorrupt, ModelNotFound
from resilient_ai.values import IntArray, Tokens

__all__ = ["TextEncoder"]

_CHARS_PER_TOKEN = (32, 512)
"""How much of a long text is read, in characters per token it may keep: at first, and at most.

The first look is enough for any prose. What a second one leaves out stands behind hundreds of
blanks or inside one endless word; a 10 MB text then costs no more than its first part.
"""

_MARGIN_TOKENS = 16
"""How many tokens past the cut must be there to know that the cut changed nothing before it."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens a tokenizer puts around its text(s), and the type id of each segment.

    `parts` has one more element than there are texts: what stands before, between and after.
    """

    parts: tuple[tuple[int, ...], ...]
    part_types: tuple[tuple[int, ...], ...]
    body_types: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def weave(self, bodies: tuple[list[int], ...]) -> Iterator[int]:
        """The ids of one row: part, text, part (, text, part)."""
        yield from self.parts[0]
        for body, after in zip(bodies, self.parts[1:], strict=True):
            yield from body
            yield from after

    def weave_types(self, bodies: tuple[list[int], ...]) -> Iterator[int]:
        """The type ids of the same row."""
        yield from self.part_types[0]
        for body, kind, after in zip(bodies, self.body_types, self.part_types[1:], strict=True):
            yield from repeat(kind, len(body))
            yield from after


class TextEncoder:
    """Turns texts, or pairs of texts, into `Tokens`. Thread-safe; holds no per-call state.

    `max_tokens` counts special tokens. `query_share` caps the first text of a pair to that share of
    `max_tokens` and then cuts only the second; without it the longer of the two is cut first.
    `with_types` adds the type ids that tell the two texts of a pair apart.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        query_share: float | None = None,
        with_types: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._query_share = query_share
        self._with_types = with_types
        self._vocabulary = vocabulary
        self._single = _learn_frame(tokenizer, texts=1)
        self._pair = _learn_frame(tokenizer, texts=2)
        if max_tokens <= max(self._single.size, self._pair.size):
            raise ConfigurationError(
                f"a limit of {max_tokens} tokens leaves no room for text beside the "
                f"{self._pair.size} special tokens; raise AI_MAX_LENGTH"
            )

    @classmethod
    def load(cls, path: Path, **options: Any) -> TextEncoder:
        """Read a tokenizer.json; `options` are those of the constructor."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as exc:
            raise ModelNotFound(
                f"{path} is missing: a model folder needs its tokenizer.json; "
                "fetch the model again with `resilient-ai models pull`"
            ) from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise ModelCorrupt(f"{path} cannot be read: {exc}") from exc
        try:
            json.loads(text)
            tokenizer = Tokenizer.from_str(text)
        except Exception as exc:  # the bindings turn every error of theirs into a bare Exception
            raise ModelCorrupt(f"{path} is not a usable tokenizer.json: {exc}") from exc
        return cls(tokenizer, **options)

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode each text as `<specials> text <specials>`, cut to `max_tokens`.

        Raises `InvalidInput` for text that is not valid Unicode (lone surrogates).
        """
        room = self._max_tokens - self._single.size
        bodies, shortened = self._bodies(texts, room)
        kept = [body[:room] for body in bodies]
        truncated = [cut or len(body) > room for body, cut in zip(bodies, shortened, strict=True)]
        return self._pack(self._single, [(body,) for body in kept], truncated)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """Encode (query, document) pairs the way the model was trained on them.

        Each distinct text is tokenised once. Raises `InvalidInput` as `encode` does.
        """
        room = self._max_tokens - self._pair.size
        distinct = list(dict.fromkeys(chain.from_iterable(pairs)))
        found = zip(distinct, *self._bodies(distinct, room), strict=True)
        bodies = {text: (body, shortened) for text, body, shortened in found}
        kept, truncated = [], []
        for query, document in pairs:
            (first, first_cut), (second, second_cut) = bodies[query], bodies[document]
            keep_first, keep_second = self._share_room(len(first), len(second), room)
            kept.append((first[:keep_first], second[:keep_second]))
            lost = keep_first < len(first) or keep_second < len(second)
            truncated.append(lost or first_cut or second_cut)
        return self._pack(self._pair, kept, truncated)

    def _share_room(self, first: int, second: int, room: int) -> tuple[int, int]:
        if self._query_share is None:
            return _cut_longest_first(first, second, room)
        first = min(first, int(self._max_tokens * self._query_share), room)
        return first, min(second, room - first)

    def _bodies(self, texts: Sequence[str], room: int) -> tuple[list[list[int]], list[bool]]:
        """Token ids without special tokens, of as much of each text as can matter.

        The second list says which texts were not read to their end.
        """
        first_look, last_look = (room * chars for chars in _CHARS_PER_TOKEN)
        heads = [_head(text, first_look) for text in texts]
        bodies = self._tokenize(heads)
        for index, text in enumerate(texts):
            if len(heads[index]) < len(text) and len(bodies[index]) < room + _MARGIN_TOKENS:
                heads[index] = _head(text, last_look)
                bodies[index] = self._tokenize([heads[index]])[0]
        return bodies, [len(head) < len(text) for head, text in zip(heads, texts, strict=True)]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        try:
            if len(texts) == 1:
                return [self._tokenizer.encode(texts[0], add_special_tokens=False).ids]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as exc:  # the bindings turn every error of theirs into a bare Exception
            raise _blame(texts, exc) from exc
        return [encoding.ids for encoding in encodings]

    def _pack(self, frame: _Frame, bodies: Sequence[tuple[list[int], ...]], truncated: list[bool]) -> Tokens:
        offsets = np.zeros(len(bodies) + 1, np.int64)
        np.cumsum([frame.size + sum(map(len, row)) for row in bodies], out=offsets[1:])
        total = int(offsets[-1])
        ids = np.fromiter(chain.from_iterable(frame.weave(row) for row in bodies), np.int64, total)
        self._check_vocabulary(ids)
        types = None
        if self._with_types:
            types = np.fromiter(chain.from_iterable(map(frame.weave_types, bodies)), np.int64, total)
        return Tokens(ids, offsets, np.array(truncated, np.bool_), types)

    def _check_vocabulary(self, ids: IntArray) -> None:
        """Keep ids the model has no row for away from every device: on a GPU they poison the context."""
        if self._vocabulary is not None and ids.size and ids.max() >= self._vocabulary:
            raise ModelCorrupt(
                f"the tokenizer gave token id {ids.max()}, but the model knows only {self._vocabulary}: "
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


def _head(text: str, limit: int) -> str:
    """At most the first `limit` characters, cut at a space where there is one to cut at."""
    if len(text) <= limit:
        return text
    for place in range(limit - 1, limit // 2, -1):
        if text[place].isspace():
            return text[:place]
    return text[:limit]


def _learn_frame(tokenizer: Tokenizer, *, texts: int) -> _Frame:
    """See which tokens the tokenizer itself puts before, between and after its text(s)."""
    encoding = tokenizer.encode("a") if texts == 1 else tokenizer.encode("a", "a")
    places = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    runs = _split_runs(places, encoding.sequence_ids, texts)
    ids, types = encoding.ids, encoding.type_ids
    edges = [0, *chain.from_iterable((run[0], run[-1] + 1) for run in runs), len(ids)]
    spans = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
    return _Frame(
        parts=tuple(tuple(ids[start:end]) for start, end in spans),
        part_types=tuple(tuple(types[start:end]) for start, end in spans),
        body_types=tuple(types[run[0]] for run in runs),
    )


def _split_runs(places: list[int], sequence_ids: list[int | None], texts: int) -> list[list[int]]:
    runs = [[place for place in places if sequence_ids[place] == text] for text in range(texts)]
    if not all(runs):
        raise ModelCorrupt("tokenizer.json drops plain text: it gave no token for the letter 'a'")
    return runs


def _blame(texts: list[str], error: Exception) -> InvalidInput:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            return InvalidInput(
                f"a text holds a lone surrogate at character {exc.start}, which is not valid Unicode; "
                "clean it first, e.g. text.encode('utf-8', 'replace').decode()"
            )
    return InvalidInput(f"the tokenizer refused a text: {error}")
