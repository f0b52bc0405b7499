"""Excerpts of tokenizers: the ids of the whole, at the price of a few look-ups."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from resilient_ai._inference.excerpts import Excerpts, index_tokenizer
from resilient_ai._inference.plaintext import PlainTextTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again and again.",
    "der schnelle braune Fuchs springt über den faulen Hund, wieder und wieder",
    "def answer(question):\n    return 42\n    return 42",
    "機械学習のモデルは同じ答えを返す 機械学習",
] * 4


def make_tokenizer(**model):
    """A byte-level BPE as decoders have it, with control tokens and one taught word."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|end|>", "<|pad|>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("foxhound")])
    return tokenizer


TOLD = make_tokenizer().to_str()
INDEX = index_tokenizer(TOLD.encode())
WHOLE = PlainTextTokenizer(Tokenizer.from_str(TOLD))

PIECES = ("again", " and", "fox", "foxhound", "<|end|>", "<think>", "the", "ü", "u\u0308", "機械", " ", "\n")
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)
unicode_texts = texts.filter(lambda text: text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def test_such_a_tokenizer_can_be_indexed():
    """A byte-level BPE, as decoders have it, has an index."""
    assert INDEX is not None


@given(unicode_texts, unicode_texts)
def test_what_is_covered_has_the_ids_of_the_whole(text, other):
    """An excerpt gives the ids of the whole tokenizer for every text that it covers, and covers its own."""
    excerpt = Excerpts(INDEX).cut([text])
    small = PlainTextTokenizer(excerpt.tokenizer)
    assert excerpt.covers(small.words(text))
    assert small.ids(text) == WHOLE.ids(text)
    if excerpt.covers(small.words(other)):
        assert small.ids(other) == WHOLE.ids(other)


def test_a_text_it_was_not_made_for_is_not_covered():
    """A word outside of what an excerpt was cut for is told apart: its ids may be others."""
    excerpt = Excerpts(INDEX).cut(["fox"])
    small = PlainTextTokenizer(excerpt.tokenizer)
    assert not excerpt.covers(small.words("again"))
    assert small.ids("again") != WHOLE.ids("again")


def test_control_tokens_are_those_of_the_whole():
    """An excerpt knows every control token by its id, whatever it was cut for."""
    assert PlainTextTokenizer(Excerpts(INDEX).cut(["a"]).tokenizer).control_tokens == WHOLE.control_tokens


def changed(**model):
    told = json.loads(TOLD)
    return json.dumps({**told, "model": {**told["model"], **model}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(changed(ignore_merges=True), id="words before merges"),
        pytest.param(changed(byte_fallback=True), id="byte fallback"),
        pytest.param(changed(unk_token="a"), id="unknown token"),
        pytest.param(changed(dropout=0.1), id="dropout"),
        pytest.param(changed(end_of_word_suffix="</w>"), id="suffix"),
        pytest.param(changed(type="WordPiece"), id="another model"),
        pytest.param(changed(vocab={"a": 0}), id="letters missing"),
        pytest.param(
            json.dumps({**json.loads(TOLD), "pre_tokenizer": {"type": "Whitespace"}}).encode(), id="no bytes"
        ),
        pytest.param(
            changed(vocab={**json.loads(TOLD)["model"]["vocab"], "<|end|>": 9999}), id="control token a piece"
        ),
    ],
)
def test_others_have_no_index(content):
    """A tokenizer of which an excerpt might do something else has no index."""
    assert index_tokenizer(content) is None


@pytest.mark.parametrize(
    "content", [b"", b"something", INDEX[:-1], INDEX[:-5] + b"xxxxx", INDEX[: len(INDEX) // 2]]
)
def test_damaged_index_is_refused(content):
    """An index that is cut short or altered raises `ValueError`, and is never cut from."""
    with pytest.raises(ValueError):
        Excerpts(content)
