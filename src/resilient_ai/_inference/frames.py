"""What a tokenizer itself puts around texts, and rows of token ids packed end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from resilient_ai.errors import ModelCorrupt
from resilient_ai.values import Tokens

__all__ = ["Frame", "learn_frame", "pack"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens a tokenizer puts around its text(s), and the type id of each segment.

    `parts` has one more element than there are texts: what stands before, between and after.
    """

    parts: tuple[tuple[int, ...], ...]
    part_types: tuple[tuple[int, ...], ...]
    body_types: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def weave(self, *bodies: list[int]) -> list[int]:
        """The ids of one row: part, text, part (, text, part)."""
        row = list(self.parts[0])
        for body, after in zip(bodies, self.parts[1:], strict=True):
            row += body
            row += after
        return row

    def weave_types(self, *bodies: list[int]) -> list[int]:
        """The type ids of the same row."""
        row = list(self.part_types[0])
        for body, kind, after in zip(bodies, self.body_types, self.part_types[1:], strict=True):
            row += [kind] * len(body)
            row += after
        return row

    def ending_with(self, token: int) -> Frame:
        """This frame if its last id is `token`, else one that has it there."""
        if self.parts[-1][-1:] == (token,):
            return self
        return replace(
            self,
            parts=(*self.parts[:-1], (*self.parts[-1], token)),
            part_types=(*self.part_types[:-1], (*self.part_types[-1], self.body_types[-1])),
        )


def learn_frame(tokenizer: Tokenizer, *, texts: int) -> Frame:
    """See which tokens the tokenizer itself puts before, between and after one text or two.

    Raises `ModelCorrupt` for a tokenizer that gives no token for a letter.
    """
    encoding = tokenizer.encode("a") if texts == 1 else tokenizer.encode("a", "a")
    places = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    runs = _split_runs(places, encoding.sequence_ids, texts)
    ids, types = encoding.ids, encoding.type_ids
    edges = [0, *chain.from_iterable((run[0], run[-1] + 1) for run in runs), len(ids)]
    spans = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
    return Frame(
        parts=tuple(tuple(ids[start:end]) for start, end in spans),
        part_types=tuple(tuple(types[start:end]) for start, end in spans),
        body_types=tuple(types[run[0]] for run in runs),
    )


def _split_runs(places: list[int], sequence_ids: list[int | None], texts: int) -> list[list[int]]:
    runs = [[place for place in places if sequence_ids[place] == text] for text in range(texts)]
    if not all(runs):
        raise ModelCorrupt("tokenizer.json drops plain text: it gave no token for the letter 'a'")
    return runs


def pack(
    rows: Sequence[Sequence[int]], truncated: Sequence[bool], types: Sequence[Sequence[int]] | None = None
) -> Tokens:
    """Rows of ids (and of type ids, as long as these) as one `Tokens`."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    total = int(offsets[-1])
    return Tokens(
        ids=np.fromiter(chain.from_iterable(rows), np.int64, total),
        offsets=offsets,
        truncated=np.array(truncated, np.bool_),
        type_ids=None if types is None else np.fromiter(chain.from_iterable(types), np.int64, total),
    )
