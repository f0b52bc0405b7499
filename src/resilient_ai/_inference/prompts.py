"""Pairs for rerankers that read a prompt: a fixed beginning, the pair as one text, a fixed end.

Beginning and end are tokenised apart from the texts and never cut: the answer is read off the last
token, and without the end of the prompt that is no answer. Query and document are one text to the
tokenizer, as in training. Only its beginning is tokenised apart from the document, at a place where
that changes nothing, so that all documents of a query can share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from resilient_ai._inference.frames import pack
from resilient_ai._inference.plaintext import PlainTextTokenizer
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import IntArray, Tokens

__all__ = ["PairPrompt", "PromptedPairs", "SharedTokens"]

_PROBES = (
    *("", "a", "Ab c", "7", "?", "'s", "<a>", "\u4e2d", "\u0301", "\ufb01", "\U0001f600"),
    *(" a", "  ", "\n", "\r\n\n", "\ta", "\u00a0", "\u3000a", "\u200b"),
)
"""Beginnings of documents that might grow together with what stands before them."""


class PairPrompt(Protocol):
    """The words before a query, between query and document, and after the document.

    Control tokens count as such in `prefix` and `suffix` alone.
    """

    @property
    def prefix(self) -> str: ...

    @property
    def joint(self) -> str: ...

    @property
    def suffix(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class SharedTokens:
    """Rows that all begin alike: row *i* is `prefix`, int64 (n,), followed by `own.row(i)`.

    `own.truncated` speaks of the whole rows, the common query included.
    """

    prefix: IntArray
    own: Tokens


class _Beginning(NamedTuple):
    """All ids of a row that do not depend on its document, and the text that is tokenised with that."""

    ids: list[int]
    cut: bool
    before_document: str


class _Ending(NamedTuple):
    """The ids of a document and what is tokenised with it, and whether it was not read to its end."""

    ids: list[int]
    unread: bool


class PromptedPairs:
    """Encodes pairs within a prompt, in at most `max_tokens`. Thread-safe; holds no per-call state.

    `ends` are the ids of the prompt's prefix and suffix. `query_share` is the largest part of the
    room for texts that a query may take. What does not fit is cut off the query's and the document's
    end.

    Raises:
        ConfigurationError: at construction, when the prompt leaves no room.
    """

    def __init__(
        self,
        plain: PlainTextTokenizer,
        prompt: PairPrompt,
        ends: tuple[list[int], list[int]],
        *,
        max_tokens: int,
        query_share: float | None = None,
    ) -> None:
        self._plain = plain
        self._prefix, self._suffix = ends
        self._joint = prompt.joint
        # Tokenizers of words and of bytes alike take the blank before a word for part of the word.
        self._label = prompt.joint.rstrip()
        self._label_ids = plain.ids(self._label)
        self._max_tokens = max_tokens
        frame = len(self._prefix) + len(self._label_ids) + len(self._suffix)
        room = max_tokens - frame
        if room < 1:
            raise ConfigurationError(
                f"a limit of {max_tokens} tokens leaves no room for texts beside the {frame} tokens of the "
                "prompt; raise AI_MAX_LENGTH"
            )
        self._query_room = room if query_share is None else int(room * query_share)
        self._splits = all(self._may_split_before(document) for document in _PROBES)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """One row a pair. Each distinct query and document is tokenised once.

        Raises `InvalidInput` for text that is not valid Unicode.
        """
        begun = {query: self._begin(query) for query in dict.fromkeys(query for query, _ in pairs)}
        texts = [begun[query].before_document + document for query, document in pairs]
        ended = self._read(texts)
        rows, truncated = [], []
        for (query, _), text in zip(pairs, texts, strict=True):
            own, cut = self._join(begun[query], ended[text])
            rows.append(begun[query].ids + own)
            truncated.append(cut)
        return pack(rows, truncated)

    def encode_shared(self, query: str, documents: Sequence[str]) -> SharedTokens:
        """The rows of `encode` for one query, with what they have in common told apart.

        Raises `InvalidInput` for text that is not valid Unicode.
        """
        begun = self._begin(query)
        texts = [begun.before_document + document for document in documents]
        ended = self._read(texts)
        rows = [self._join(begun, ended[text]) for text in texts]
        own = pack([ids for ids, _ in rows], [cut for _, cut in rows])
        return SharedTokens(np.array(begun.ids, np.int64), own)

    def _begin(self, query: str) -> _Beginning:
        most = self._query_room + len(self._label_ids)
        (ids,), (unread,) = self._plain.read([query + self._label], most)
        gap = self._joint[len(self._label) :]
        if unread or len(ids) > most:
            (ids,), (unread,) = self._plain.read([query], self._query_room)
            cut = unread or len(ids) > self._query_room
            return _Beginning([*self._prefix, *ids[: self._query_room], *self._label_ids], cut, gap)
        if self._splits:
            return _Beginning(self._prefix + ids, cut=False, before_document=gap)
        return _Beginning(self._prefix, cut=False, before_document=query + self._joint)

    def _read(self, texts: Iterable[str]) -> dict[str, _Ending]:
        distinct = list(dict.fromkeys(texts))
        room = self._max_tokens - len(self._prefix) - len(self._suffix)
        endings = map(_Ending, *self._plain.read(distinct, room))
        return dict(zip(distinct, endings, strict=True))

    def _join(self, begun: _Beginning, ending: _Ending) -> tuple[list[int], bool]:
        """The ids of a row after its beginning, and whether anything of the row was cut."""
        room = self._max_tokens - len(begun.ids) - len(self._suffix)
        cut = begun.cut or ending.unread or len(ending.ids) > room
        return ending.ids[:room] + self._suffix, cut

    def _may_split_before(self, document: str) -> bool:
        """Whether the tokens are the same when the text is tokenised in two."""
        gap = self._joint[len(self._label) :]
        parts = self._label_ids + self._plain.ids(gap + document)
        return parts == self._plain.ids(self._joint + document)
