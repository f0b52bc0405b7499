"""Tokenizers cut down to what a few texts need: milliseconds, where the whole takes a quarter second.

Of a byte-level BPE only those pieces can come up in a text that stand in it, and only the merges that
make one of them. Both are looked up in a file that was made of the whole tokenizer once. What is cut out
gives the same ids as the whole, for these texts: `Excerpt.covers` proves it for each.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

__all__ = ["Excerpt", "Excerpts", "index_tokenizer"]

_MAGIC: Final = b"rai-excerpts-1\n"
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_PLAIN: Final[Mapping[str, Any]] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""The one kind of model of which an excerpt is known to do what the whole does."""

_BYTES: Final = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A tokenizer for some texts, and these as its model sees them."""

    tokenizer: Tokenizer
    spelled: str

    def covers(self, words: Iterable[str]) -> bool:
        """Whether the words that a text was split into all lie within what the excerpt was made for.

        Then the text's ids are those of the whole tokenizer, however it came to be split.
        """
        return all(word in self.spelled for word in words)


class Excerpts:
    """Cuts excerpts out of what `index_tokenizer` made. Immutable, so safe to share.

    Raises:
        ValueError: At construction, when `content` is something else, or damaged.
    """

    def __init__(self, content: bytes) -> None:
        head, _, rest = content.removeprefix(_MAGIC).partition(b"\n")
        if not content.startswith(_MAGIC):
            raise ValueError("no index of a tokenizer")
        told = json.loads(head)
        if zlib.crc32(rest) != told["crc"]:
            raise ValueError("the index of a tokenizer is damaged")
        self._frame: dict[str, Any] = told["frame"]
        self._always: dict[str, int] = told["always"]
        self._longest: int = told["longest"]
        arrays, place = [], 0
        for kind, size in told["arrays"]:
            arrays.append(np.frombuffer(rest, kind, size, place))
            place += arrays[-1].nbytes
        self._hashes, self._ids, self._borders, self._pairs, self._ranks = arrays
        self._spellings = rest[place:]
        normalizer = self._frame["normalizer"]
        self._normalizer = None if normalizer is None else _part(self._frame).normalizer
        # Whoever takes a tokenizer over tries its added tokens as texts.
        self._spelled_always = "\n".join(
            self._spell(token["content"]) for token in self._frame["added_tokens"]
        )

    def pieces_of_added_tokens(self) -> dict[str, int]:
        """What of the vocabulary stands in the spellings of the added tokens."""
        return self._find(self._spelled_always)

    def cut(self, texts: Iterable[str]) -> Excerpt:
        """The excerpt for these texts and the tokenizer's own added tokens."""
        spelled = "\n".join(map(self._spell, texts))
        vocabulary = self._always | self._find(spelled)
        model = {**_PLAIN, "vocab": vocabulary, "merges": self._merges(vocabulary)}
        return Excerpt(_part({**self._frame, "model": model}), f"{spelled}\n{self._spelled_always}")

    def _spell(self, text: str) -> str:
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return "".join(piece for piece, _ in _BYTES.pre_tokenize_str(text))

    def _find(self, spelled: str) -> dict[str, int]:
        """Every piece of the vocabulary that stands in a text, with its id."""
        letters = np.frombuffer(spelled.encode("utf-32-le"), np.uint32).astype(np.uint64)
        hashes = np.zeros(len(letters) + 1, np.uint64)
        found: dict[str, int] = {}
        for length in range(1, min(self._longest, len(letters)) + 1):
            hashes = hashes[:-1] * _FACTOR + letters[length - 1 :]
            places = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
            for start in np.flatnonzero(self._hashes[places] == hashes):
                piece, place = spelled[start : start + length], places[start]
                first, last = self._borders[place : place + 2]
                if self._spellings[first:last] == piece.encode():
                    found[piece] = int(self._ids[place])
        return found

    def _merges(self, found: Mapping[str, int]) -> list[tuple[str, str]]:
        """The merges that make one of these pieces, in their order."""
        halves = [
            (piece[:cut], piece[cut:])
            for piece in found
            for cut in range(1, len(piece))
            if piece[:cut] in found and piece[cut:] in found
        ]
        if not halves:
            return []
        keys = np.array([_key(found[first], found[last]) for first, last in halves], np.uint64)
        places = np.searchsorted(self._pairs, keys).clip(max=len(self._pairs) - 1)
        known = np.flatnonzero(self._pairs[places] == keys)
        ranked = sorted((int(self._ranks[places[index]]), halves[index]) for index in known)
        return [pair for _, pair in ranked]


def index_tokenizer(content: bytes) -> bytes | None:
    """What `Excerpts` are cut out of, made of a tokenizer.json; None for one that cannot be cut.

    Raises:
        ValueError: It is no JSON.
    """
    told = json.loads(content)
    model = told.pop("model")
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    added = {token["content"]: token["id"] for token in told["added_tokens"]}
    if not vocabulary or not merges or not _is_plain(model, told) or added.keys() & vocabulary.keys():
        return None
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if not all(letter in vocabulary for letter in alphabet):
        return None
    always = added | {letter: vocabulary[letter] for letter in alphabet}
    pieces = list(vocabulary)
    hashes = _hashes(pieces)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) < len(hashes):
        return None
    spelled = [pieces[place].encode() for place in order]
    pairs = np.array([_key(*(vocabulary[half] for half in _halves(merge))) for merge in merges], np.uint64)
    ranks = np.argsort(pairs).astype(np.int32)
    arrays: list[NDArray[Any]] = [
        hashes[order],
        np.array([vocabulary[pieces[place]] for place in order], np.int32),
        np.cumsum([0, *map(len, spelled)]).astype(np.int32),
        pairs[ranks],
        ranks,
    ]
    rest = b"".join([*(array.tobytes() for array in arrays), *spelled])
    head = {
        "crc": zlib.crc32(rest),
        "frame": told,
        "always": always,
        "longest": max(map(len, pieces)),
        "arrays": [(array.dtype.str, array.size) for array in arrays],
    }
    head["always"] = always | Excerpts(_packed(head, rest)).pieces_of_added_tokens()
    return _packed(head, rest)


def _packed(head: Mapping[str, Any], rest: bytes) -> bytes:
    return _MAGIC + json.dumps(head).encode() + b"\n" + rest


def _is_plain(model: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    own = {key: value or _PLAIN.get(key) for key, value in model.items()}
    if any(value != _PLAIN.get(key, value) for key, value in own.items()) or own.keys() - _PLAIN.keys():
        return False
    steps = told["pre_tokenizer"] or {}
    last = steps["pretokenizers"][-1] if steps.get("type") == "Sequence" else steps
    return last.get("type") == "ByteLevel" and not last.get("add_prefix_space")


def _halves(merge: str | Sequence[str]) -> tuple[str, str]:
    first, last = merge.split(" ") if isinstance(merge, str) else merge
    return first, last


def _key(first: int, last: int) -> int:
    return first << 32 | last


def _hashes(pieces: Sequence[str]) -> NDArray[np.uint64]:
    """A number for each piece, which `Excerpts._find` finds for the same letters."""
    hashes = np.zeros(len(pieces), np.uint64)
    lengths = np.array([len(piece) for piece in pieces])
    letters = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32).astype(np.uint64)
    starts = np.cumsum(lengths) - lengths
    for place in range(int(lengths.max())):
        long = np.flatnonzero(lengths > place)
        hashes[long] = hashes[long] * _FACTOR + letters[starts[long] + place]
    return hashes


def _part(frame: Mapping[str, Any]) -> Tokenizer:
    told = {"model": {**_PLAIN, "vocab": {}, "merges": []}, **frame}
    return Tokenizer.from_buffer(json.dumps(told).encode())
