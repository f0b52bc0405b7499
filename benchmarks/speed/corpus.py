"""Texts to be fast on: real prose of all lengths, the same for the same seed.

XQuAD's English paragraphs and questions where they are at hand, docstrings of the standard library, and
the paragraphs of Python's licence.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from texts import XQUAD, docstrings, load_xquad

__all__ = ["licence", "mixed_passages", "questions", "sources", "token_lengths"]

_SHARES = {"paragraphs": 0.24, "questions": 0.10, "licence": 0.03}
"""Of all texts; the others are docstrings, and so is what one of these lacks."""


def mixed_passages(count: int, *, seed: int, most: int | None = None) -> list[str]:
    """So many different texts in random order, each cut after `most` characters."""
    paragraphs, asked = _xquad()
    kinds = {"paragraphs": paragraphs, "questions": asked, "licence": licence()}
    found = [text for kind, texts in kinds.items() for text in texts[: round(_SHARES[kind] * count)]]
    found += docstrings(count - len(found), seed=seed)
    if len(found) < count:
        raise ValueError(f"there are only {len(found):,} texts")
    random.Random(seed).shuffle(found)
    return [text[:most] for text in found]


def questions(count: int, *, seed: int) -> list[str]:
    """Short texts: questions of XQuAD, or beginnings of docstrings where it is not at hand."""
    found = _xquad()[1] or [text[:60] for text in docstrings(count, seed=seed)]
    random.Random(seed).shuffle(found)
    return found[:count]


def licence() -> list[str]:
    """The longer paragraphs of the licence that comes with Python, if it did."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(dict.fromkeys(part.strip() for part in text.split("\n\n") if len(part.strip()) > 80))


def sources() -> str:
    """What the texts are made of here."""
    parts = ["docstrings of the standard library"]
    parts += ["Python's licence"] if licence() else []
    return " and ".join([*parts, "XQuAD en"] if _has_xquad() else parts)


def token_lengths(tokenizer: Path, texts: Sequence[str], most: int) -> list[int]:
    """Real tokens of each text, as far as a model reads it."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(most)
    return [len(encoded.ids) for encoded in encoder.encode_batch(list(texts))]


def _has_xquad() -> bool:
    return (XQUAD / "xquad.en.json").is_file()


def _xquad() -> tuple[list[str], list[str]]:
    """Paragraphs and questions, each once; none where it is not at hand."""
    if not _has_xquad():
        return [], []
    paragraphs, asked = load_xquad("en")
    return paragraphs, list(dict.fromkeys(each.text for each in asked))
