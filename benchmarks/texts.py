"""Texts to measure with: the hard ones, real prose from the standard library, XQuAD."""

from __future__ import annotations

import ast
import json
import random
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

__all__ = ["XQUAD", "Question", "docstrings", "hard_texts", "load_xquad", "short_texts"]

XQUAD = Path(__file__).parents[2] / "shared" / "data" / "xquad"

# fmt: off
_WORDS = (
    "river", "bank", "stone", "window", "market", "signal", "harbour", "winter", "engine", "letter",
    "garden", "copper", "forest", "silent", "broken", "narrow", "early", "golden", "heavy", "distant",
    "modern", "gentle", "public", "honest",
)
_BLOCKS = (
    (0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x52F), (0x5D0, 0x6FF), (0x900, 0xDFF), (0x2000, 0x27BF),
    (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F9FF),
)
"""Ranges of Unicode, unassigned characters included."""
# fmt: on


@dataclass(frozen=True, slots=True)
class Question:
    """One query, and the place of the one paragraph that answers it."""

    text: str
    paragraph: int


def load_xquad(language: str, folder: Path = XQUAD) -> tuple[list[str], list[Question]]:
    """The distinct paragraphs in their order, and the distinct questions about them.

    A paragraph that occurs twice is one document: otherwise a copy of the right answer would
    count as a wrong one. A question that is asked twice is one query, as in the published scores.
    """
    articles = json.loads((folder / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
    places: dict[str, int] = {}
    questions: dict[Question, None] = {}
    for entry in chain.from_iterable(article["paragraphs"] for article in articles):
        place = places.setdefault(entry["context"], len(places))
        questions |= {Question(pair["question"], place): None for pair in entry["qas"]}
    return list(places), list(questions)


def docstrings(count: int, *, seed: int) -> list[str]:
    """English prose that is on every machine: docstrings of the standard library, longer than a line."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py")) + sorted(folder.glob("*/[a-z]*.py"))
    files = [file for file in files if "site-packages" not in file.parts]
    random.Random(seed).shuffle(files)
    return list(islice(_distinct(chain.from_iterable(map(_docstrings_of, files))), count))


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once; no more are asked for than are taken, because each file costs its reading."""
    seen = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore", category=Warning):
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # the standard library's own tests hold broken files on purpose
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text and len(text) > 80:
            yield text


def short_texts(count: int, *, seed: int) -> Iterator[str]:
    """Two or three words each, made as they are asked for."""
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(rng.choices(_WORDS, k=rng.choice((2, 3))))


def hard_texts(*, seed: int) -> dict[str, list[str]]:
    """What breaks tokenizers and poolers, by kind; the same for the same seed."""
    rng = random.Random(seed)
    return {
        "empty and blank": [
            "",
            " ",
            "   ",
            "\t",
            "\n\n",
            "\u00a0",
            "\u3000",
            "\u2028",
            "\ufeff",
            "\r\n " * 50,
        ],
        "one token": [*"aZ7.?!é中", "the", "of"],
        "over-long": [
            " ".join(rng.choices(_WORDS, k=size)) for size in (300, 500, 1_000, 2_000, 5_000, 20_000)
        ],
        "around the limit": [" ".join(["word"] * size) for size in range(250, 260)],
        "very long words": ["a" * size for size in (50, 99, 100, 101, 102, 1_000, 100_000)]
        + [f"before {'x' * 5_000} after", "-".join(["part"] * 500)],
        "far apart": ["left" + " " * gap + "right" for gap in (100, 1_000, 10_000, 50_000)],
        "emoji": ["😀", "👩‍👩‍👧‍👦 family", "🏳️‍🌈🇩🇪🇨🇳", "thumbs 👍🏽 up", "😀" * 600, "a😀b😀c", "♥️ ❤ ☺"],
        "Chinese, Japanese, Korean": [
            "今天天气很好。",
            "東京は日本の首都です。",
            "ひらがなとカタカナ",
            "서울은 대한민국의 수도이다.",
            "中" * 400,
            "中文English混合text",
            "𠀀𠀁 rare ideographs",
            "ﾊﾝｶｸ half width",
        ],
        "right to left": [
            "القاهرة هي عاصمة مصر",
            "اَلْعَرَبِيَّةُ بِالتَّشْكِيلِ",
            "ירושלים היא עיר עתיקה",
            "שָׁלוֹם עֲלֵיכֶם",
            "English then עברית then عربي 123",
            "\u202eright-to-left override\u202c",
            "مرحبا " * 200,
        ],
        "control characters": [
            "nul\x00inside",
            "\x00",
            "bell\x07 escape\x1b[31mred\x1b[0m",
            "".join(map(chr, range(1, 32))),
            "\x7f\x80\x9f",
            "zero\u200bwidth\u200cjoin\u200der",
            "soft\u00adhyphen",
            "\ufffd replacement \ufffe",
            "private \ue000 use",
        ],
        "combining marks": [
            "e\u0301 and é",
            "Z\u0351\u036b\u0343a\u0363\u0308l\u030bg\u0366o\u0310",
            "a" + "\u0301" * 300,
            "\u0301\u0302\u0303",
            "ǅ ﬁ ﬀ Å Ω ℃ ½ ² ①",
            "İstanbul ı ẞ ß",  # noqa: RUF001 - the dotless i is meant
            "ÀÉÎÕÜ çñ Čž",
        ],
        "other scripts": [
            "Москва является столицей России.",
            "กรุงเทพมหานครเป็นเมืองหลวง",
            "नई दिल्ली भारत की राजधानी है",
            "Η Αθήνα είναι πρωτεύουσα",  # noqa: RUF001 - Greek
            "ထမင်းစားပြီးပြီလား",
            "ትግርኛ አማርኛ",
        ],
        "mixed": [_mixed(rng) for _ in range(60)],
        "code": [
            "def f(x: int) -> int:\n    return x ** 2 + 1",
            "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x <> 'it''s' GROUP BY 1;",
            '#include <stdio.h>\nint main(void) { printf("%d\\n", 1 << 4); }',
            '{\'a\': [1, 2.5e-10, null], "b": {"c": true}}',
            "https://example.org/a/b?c=d&e=%20f#g",
            "user.name+tag@example.org",
            "C:\\Program Files\\x\\y.exe /s /q",
            "0x7fff5fbff8c0 1e-12 3.14159 1,000,000",
            '<p class="x">&amp; &lt;br/&gt;</p>',
            "$$\\int_0^1 x^2\\,dx = \\tfrac{1}{3}$$",
            "##ing ##ed un##able",
        ],
    }


def _mixed(rng: random.Random) -> str:
    """Random characters from all over Unicode, among words."""
    pieces = []
    for _ in range(rng.randint(1, 60)):
        low, high = rng.choice(_BLOCKS)
        run = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))
        pieces.append(rng.choice((run, rng.choice(_WORDS), rng.choice(_WORDS) + run)))
    return rng.choice((" ", "", ", ")).join(pieces)
