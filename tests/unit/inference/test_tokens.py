"""From texts to token ids: limits, flags, what is refused, and files that are not what they should be."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from resilient_ai._inference.tokens import TextEncoder
from resilient_ai.errors import ConfigurationError, InvalidInput, ModelCorrupt, ModelNotFound
from tokenizer_kit import (
    NAMES,
    byte_tokenizer,
    encoders_tokenizer,
    fresh_tokenizer,
    reference_tokenizer,
    small_tokenizer,
)


@pytest.fixture
def small():
    return TextEncoder(small_tokenizer(), max_tokens=8, with_types=True)


class TestEncode:
    def test_ids_and_offsets(self, small):
        """Texts are packed end to end between their special tokens."""
        tokens = small.encode(["the sun", "", "suns"])
        assert [tokens.row(i).tolist() for i in range(3)] == [[2, 4, 5, 3], [2, 3], [2, 5, 10, 3]]
        assert tokens.offsets.tolist() == [0, 4, 6, 10]
        assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int64, np.int64)
        assert tokens.truncated.tolist() == [False, False, False]

    def test_no_texts(self, small):
        """No texts give no tokens, of the right types."""
        for tokens in (small.encode([]), small.encode_pairs([])):
            assert len(tokens) == 0
            assert tokens.ids.dtype == tokens.offsets.dtype == tokens.type_ids.dtype == np.int64
            assert tokens.truncated.dtype == np.bool_
            assert tokens.offsets.tolist() == [0]

    def test_a_text_that_just_fits(self, small):
        """A text is cut, and marked, from the first token that does not fit."""
        tokens = small.encode(["the " * 6, "the " * 7])
        assert tokens.lengths.tolist() == [8, 8]
        assert tokens.truncated.tolist() == [False, True]
        assert tokens.row(0).tolist() == tokens.row(1).tolist()

    @pytest.mark.parametrize("name", NAMES)
    def test_baked_in_settings_are_reset(self, name):
        """Truncation and padding that a tokenizer.json brings along change nothing."""
        spoilt = fresh_tokenizer(name)
        spoilt.enable_truncation(5)
        spoilt.enable_padding(length=50)
        texts = ["the sun is warm and the rain is cold", "a"]
        plain = TextEncoder(encoders_tokenizer(name), max_tokens=64).encode(texts)
        got = TextEncoder(spoilt, max_tokens=64).encode(texts)
        assert got.ids.tolist() == plain.ids.tolist()
        assert got.truncated.tolist() == [False, False]

    @pytest.mark.parametrize("name", NAMES)
    def test_strange_texts(self, name):
        """Next to nothing, half a tag and odd brackets get the ids the tokenizer itself gives them."""
        reference = reference_tokenizer(name)
        reference.no_truncation()
        texts = ["<", "< s>", "[ SEP ]", "a<b>c</b>", "<|im", "x[0][1]", " \n\t ", "\u200b", ""]
        tokens = TextEncoder(encoders_tokenizer(name), max_tokens=128).encode(texts)
        for index, text in enumerate(texts):
            assert tokens.row(index).tolist() == reference.encode(text).ids

    @pytest.mark.parametrize("bad", ["\ud800", "good \udfff bad", "x" * 10_000 + "\ud83d"])
    def test_lone_surrogates(self, small, bad):
        """Text that is no Unicode is the caller's error, alone, in company and in a pair."""
        for refused in (
            lambda: small.encode([bad]),
            lambda: small.encode(["fine", bad, "fine"]),
            lambda: small.encode_pairs([("fine", bad)]),
        ):
            if len(bad) > 100:  # behind what can matter it is never read
                assert refused().truncated.any()
                continue
            with pytest.raises(InvalidInput, match="surrogate"):
                refused()

    def test_ids_beyond_the_vocabulary(self):
        """An id the model has no row for never leaves the encoder."""
        encoder = TextEncoder(small_tokenizer(), max_tokens=8, vocabulary=6)
        assert encoder.encode(["the sun"]).ids.max() == 5
        with pytest.raises(ModelCorrupt, match="7"):
            encoder.encode(["the warm"])
        with pytest.raises(ModelCorrupt):
            encoder.encode_pairs([("the", "warm")])

    def test_no_room(self):
        """A limit that leaves no room for text is refused at once, with the setting to raise."""
        with pytest.raises(ConfigurationError, match="AI_MAX_LENGTH"):
            TextEncoder(small_tokenizer(), max_tokens=3)
        assert TextEncoder(small_tokenizer(), max_tokens=4).encode_pairs([("a", "b")]).lengths.tolist() == [4]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("piece", ["the sun is warm ", "word", " ", "\u4e2d\u6587", "a\u0301", "1 "])
    @pytest.mark.slow
    def test_ten_megabytes(self, name, piece):
        """A text of 10 MB costs no more than its first part, whatever it is made of."""
        encoder = TextEncoder(encoders_tokenizer(name), max_tokens=512)
        text = piece * (10_000_000 // len(piece))
        began = time.perf_counter()
        tokens = encoder.encode([text])
        assert time.perf_counter() - began < 3
        assert tokens.truncated.tolist() == [True]
        assert 1 <= tokens.lengths[0] <= 512

    def test_threads_do_not_disturb_each_other(self, small):
        """Many threads may use one encoder."""
        texts = [("the " * (n % 9)) + "sun" for n in range(64)]
        expected = [small.encode([text]).ids.tolist() for text in texts]
        barrier = threading.Barrier(8)

        def work(part):
            barrier.wait()
            return [small.encode([text]).ids.tolist() for text in texts[part::8]]

        with ThreadPoolExecutor(8) as threads:
            for part, got in enumerate(threads.map(work, range(8))):
                assert got == expected[part::8]


class TestPairs:
    def test_type_ids(self, small):
        """The two texts of a pair carry the types the tokenizer gives them."""
        tokens = small.encode_pairs([("the sun", "rain"), ("", "a b")])
        assert tokens.row(0).tolist() == [2, 4, 5, 3, 9, 3]
        assert tokens.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1]

    def test_types_only_where_asked(self):
        """A model without types gets none."""
        assert TextEncoder(small_tokenizer(), max_tokens=8).encode_pairs([("a", "b")]).type_ids is None

    def test_query_share(self):
        """The query takes at most its share, and then only the document is cut."""
        encoder = TextEncoder(small_tokenizer(), max_tokens=12, query_share=0.5)
        tokens = encoder.encode_pairs([("the " * 20, "sun " * 20), ("the", "sun " * 20), ("the " * 6, "sun")])
        assert tokens.row(0).tolist() == [2, *[4] * 6, 3, *[5] * 3, 3]
        assert tokens.row(1).tolist() == [2, 4, 3, *[5] * 8, 3]
        assert tokens.row(2).tolist() == [2, *[4] * 6, 3, 5, 3]
        assert tokens.truncated.tolist() == [True, True, False]

    def test_long_queries_leave_room(self):
        """However large its share, a query cannot push a row beyond the limit."""
        encoder = TextEncoder(small_tokenizer(), max_tokens=8, query_share=0.99)
        assert encoder.encode_pairs([("the " * 50, "sun " * 50)]).lengths.tolist() == [8]

    def test_each_distinct_text_once(self, small, monkeypatch):
        """A query is tokenised once for all its documents."""
        seen = []
        plain = small._plain._tokenize
        monkeypatch.setattr(small._plain, "_tokenize", lambda texts: seen.extend(texts) or plain(texts))
        small.encode_pairs([("the", "sun"), ("the", "rain"), ("the", "sun")])
        assert seen == ["the", "sun", "rain"]


class TestEndToken:
    END = "<|endoftext|>"

    @pytest.mark.parametrize("puts_it_there", [True, False])
    def test_once_and_last(self, puts_it_there):
        """Each text ends with it once, whether or not the tokenizer sees to that, cut or not."""
        made = byte_tokenizer(end=puts_it_there)
        end = made.token_to_id(self.END)
        encoder = TextEncoder(made, max_tokens=6, end_token=self.END, with_types=True)
        tokens = encoder.encode(["", "sun", "the sun the sun the sun the sun", f"sun{self.END}"])
        for index in range(4):
            row = tokens.row(index).tolist()
            assert (row[-1], row.count(end)) == (end, 1)
        assert tokens.lengths.tolist() == [1, 2, 6, 6]
        assert tokens.truncated.tolist() == [False, False, True, True]
        assert tokens.type_ids.tolist() == [0] * 15

    def test_one_that_the_tokenizer_lacks(self):
        """A tokenizer that does not know the token belongs to another model."""
        with pytest.raises(ModelCorrupt, match="endoftext"):
            TextEncoder(small_tokenizer(), max_tokens=8, end_token=self.END)

    def test_takes_its_room(self):
        """The token counts: one more than fits is refused."""
        with pytest.raises(ConfigurationError):
            TextEncoder(byte_tokenizer(), max_tokens=1, end_token=self.END)


class TestFiles:
    def test_a_good_one(self, tmp_path):
        """A tokenizer.json on disk serves with the options that are given."""
        (tmp_path / "tokenizer.json").write_text(small_tokenizer().to_str())
        encoder = TextEncoder.load(tmp_path / "tokenizer.json", max_tokens=9)
        assert encoder.max_tokens == 9
        assert encoder.encode(["sun"]).ids.tolist() == [2, 5, 3]

    def test_a_missing_one(self, tmp_path):
        """A missing file is named, with the command that brings it."""
        with pytest.raises(ModelNotFound, match="models pull"):
            TextEncoder.load(tmp_path / "tokenizer.json", max_tokens=9)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe\x00", b'{"model": 3}', json.dumps({"a": 1}).encode()],
    )
    def test_broken_ones(self, tmp_path, content):
        """What is no tokenizer.json is a corrupt model."""
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelCorrupt):
            TextEncoder.load(tmp_path / "tokenizer.json", max_tokens=9)

    def test_a_folder_instead(self, tmp_path):
        """A folder of that name cannot be read, and is said to be so."""
        with pytest.raises(ModelCorrupt):
            TextEncoder.load(tmp_path, max_tokens=9)

    def test_one_that_drops_text(self):
        """A tokenizer that gives no token for a letter is no tokenizer for a language model."""
        mute = Tokenizer(models.WordLevel({"x": 0}, unk_token="[UNK]"))
        mute.pre_tokenizer = pre_tokenizers.Split("a", "removed")
        with pytest.raises(ModelCorrupt):
            TextEncoder(mute, max_tokens=8)
