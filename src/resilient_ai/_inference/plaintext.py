"""Users' texts to token ids: as text alone, and no further than their tokens can matter.

Tokenizers know control tokens (`<|im_end|>`, `[SEP]`, `</s>`) and by default find them in any text,
so that a document could end its own part of a prompt and begin another. Here they are text like any other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType

from tokenizers import AddedToken, Regex, Tokenizer, normalizers

from resilient_ai.errors import InvalidInput

__all__ = ["PlainTextTokenizer"]

_CHARS_PER_TOKEN = (32, 512)
"""How much of a long text is read, in characters per token it may keep: at first, and at most.

The first look is enough for any prose. What a second one leaves out stands behind hundreds of
blanks or inside one endless word; a 10 MB text then costs no more than its first part.
"""

_MARGIN_TOKENS = 16
"""How many tokens past the cut must be there to know that the cut changed nothing before it."""

_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
"""How control tokens look that a tokenizer.json does not call special, `<think>` for one.

Others that it does not call special are words that somebody taught the model.
"""

_UNKNOWN_CHARACTER = "\U00012000"
"""A letter of cuneiform: no vocabulary has it, and no normalisation drops it."""


class PlainTextTokenizer:
    """Tokenises texts without special tokens, in which control tokens are text. Thread-safe.

    Takes `tokenizer` over and changes its settings for good.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.control_tokens: Mapping[str, int] = MappingProxyType(_take_as_text(tokenizer))
        self._tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """The token ids of a whole text. Raises `InvalidInput` as `read` does."""
        return self._tokenize([text])[0]

    def words(self, text: str) -> list[str]:
        """What the tokenizer's model is given of a whole text, piece by piece, in the model's letters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        named = zip(encoding.word_ids, encoding.tokens, strict=True)
        return ["".join(token for _, token in word) for _, word in groupby(named, key=itemgetter(0))]

    def read(self, texts: Sequence[str], room: int) -> tuple[list[list[int]], list[bool]]:
        """The token ids of as much of each text as matters to one who keeps the first `room`.

        The second list says which texts were not read to their end. Raises `InvalidInput` for what
        was read and is not valid Unicode (lone surrogates).
        """
        first_look, last_look = (room * chars for chars in _CHARS_PER_TOKEN)
        heads = [_head(text, first_look) for text in texts]
        found = self._tokenize(heads)
        for index, text in enumerate(texts):
            if len(heads[index]) < len(text) and len(found[index]) < room + _MARGIN_TOKENS:
                heads[index] = _head(text, last_look)
                found[index] = self.ids(heads[index])
        return found, [len(head) < len(text) for head, text in zip(heads, texts, strict=True)]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        try:
            if len(texts) == 1:
                return [self._tokenizer.encode(texts[0], add_special_tokens=False).ids]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as exc:  # the bindings turn every error of theirs into a bare Exception
            raise _blame(texts, exc) from exc
        return [encoding.ids for encoding in encodings]


def _take_as_text(tokenizer: Tokenizer) -> dict[str, int]:
    """Make the tokenizer find no control tokens in texts. Returns how they are spelled, and their ids."""
    added = tokenizer.get_added_tokens_decoder()
    control = {id_: token for id_, token in added.items() if _is_control(token)}
    # The switch beneath works for tokens that are called special; this call changes what a token is
    # called and leaves its id alone.
    tokenizer.add_special_tokens(
        [AddedToken(token.content, special=True) for token in control.values() if not token.special]
    )
    tokenizer.encode_special_tokens = True
    unknown = tokenizer.encode(_UNKNOWN_CHARACTER, add_special_tokens=False).ids
    _break_up(
        tokenizer,
        [
            token.content
            for id_, token in control.items()
            if id_ not in unknown and id_ in tokenizer.encode(token.content, add_special_tokens=False).ids
        ],
    )
    return {token.content: id_ for id_, token in control.items()}


def _is_control(token: AddedToken) -> bool:
    return token.special or _BRACKETED.fullmatch(token.content) is not None


def _break_up(tokenizer: Tokenizer, spellings: Iterable[str]) -> None:
    """Put a blank behind the first character of what the vocabulary itself would take for a control token.

    Unigram vocabularies hold theirs as pieces, best of all by score. The blank comes after the
    tokenizer's own normalisation, which can make `</s>` of full-width characters.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for spelling in spellings:
        if len(spelling) > 1:
            rests[spelling[0]].append(re.escape(spelling[1:]))
    if not rests:
        return
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence(
        [
            *own,
            *(
                normalizers.Replace(Regex(f"{re.escape(first)}(?={'|'.join(rest)})"), f"{first} ")
                for first, rest in rests.items()
            ),
        ]
    )


def _head(text: str, limit: int) -> str:
    """At most the first `limit` characters, cut at a space where there is one to cut at."""
    if len(text) <= limit:
        return text
    for place in range(limit - 1, limit // 2, -1):
        if text[place].isspace():
            return text[:place]
    return text[:limit]


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
