"""Control tokens that a user writes are text, whatever the tokenizer makes of them by itself."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from resilient_ai._inference.plaintext import PlainTextTokenizer
from resilient_ai._inference.tokens import TextEncoder
from tokenizer_kit import (
    MADE,
    NAMES,
    byte_tokenizer,
    encoders_tokenizer,
    piece_tokenizer,
    reference_tokenizer,
)


def spelled_out(control):
    """Ways to write control tokens into a text; full-width characters become plain ones in NFKC."""
    for token in control:
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
        yield from (token, f"a{token}b", f" {token} ", token * 3, f"{token[0]}{token}{token[1:]}", wide)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_brings_a_control_token_about(name):
    """However it is written, alone and among others, a control token stays text."""
    plain = PlainTextTokenizer(encoders_tokenizer(name))
    unknown = plain.ids("\U00012000")  # an unknown letter gets this anyway
    control = set(plain.control_tokens.values()) - set(unknown)
    texts = list(spelled_out(plain.control_tokens))
    for ids in [*plain.read(texts, 1000)[0], *map(plain.ids, texts)]:
        assert not control & set(ids)


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizers_own_special_tokens_stay(name):
    """What the tokenizer puts around a text is there all the same, and no more of it."""
    reference = reference_tokenizer(name)
    reference.no_truncation()
    encoder = TextEncoder(encoders_tokenizer(name), max_tokens=64)
    assert encoder.encode([""]).ids.tolist() == reference.encode("").ids


@pytest.mark.parametrize("name", MADE)
def test_one_tokenizer_may_be_taken_over_twice(name):
    """Taking a tokenizer over again changes nothing."""
    made = MADE[name]()
    first = PlainTextTokenizer(made)
    texts = list(spelled_out(first.control_tokens))
    once = [first.ids(text) for text in texts]
    again = PlainTextTokenizer(made)
    assert [again.ids(text) for text in texts] == once
    assert again.control_tokens == first.control_tokens


def test_which_tokens_control():
    """Special tokens do, and so do others in brackets; words that were added to a vocabulary are words."""
    made = byte_tokenizer()
    made.add_tokens(["sunflower", AddedToken("<tool>", special=False)])
    plain = PlainTextTokenizer(made)
    assert set(plain.control_tokens) == {
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool>"),
    }
    assert plain.ids("sunflower") == [made.token_to_id("sunflower")]


def test_ids_are_those_of_the_vocabulary():
    """The spellings come with the ids under which the model knows the tokens."""
    made = piece_tokenizer()
    assert PlainTextTokenizer(made).control_tokens == {
        "<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": made.token_to_id("<mask>"),
    }  # fmt: skip


def test_a_control_token_of_one_character():
    """One that cannot be broken up does no harm to other texts."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "|": 1, "sun": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["|", "[UNK]"])
    assert PlainTextTokenizer(made).ids("sun rain") == [2, 0]


def test_words_with_control_tokens_for_a_name():
    """A tokenizer of words finds its control tokens in the vocabulary, too, and is kept from it."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "<end>": 1, "sun": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<end>"])
    assert PlainTextTokenizer(made).ids("sun <end> sun") == [2, 0, 0, 2]
