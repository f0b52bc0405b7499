"""Pairs within a prompt: what is tokenised together, what is cut, what can be shared."""

from __future__ import annotations

import pytest

from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import PairPrompt
from resilient_ai.errors import ConfigurationError, InvalidInput, ModelCorrupt
from tokenizer_kit import MADE, byte_tokenizer, small_tokenizer

PROMPT = PairPrompt("<|im_start|>sys\n", "\n<D>: ", "<|im_end|>\n<think>\n\n</think>\n\n")
KINDS = ["bytes", "one word", "pieces"]


def encoder_of(name="bytes", max_tokens=200, **options):
    return TextEncoder(MADE[name](), max_tokens=max_tokens, pair_prompt=PROMPT, **options)


def ids_of(text, name="bytes"):
    """A text's ids from the tokenizer as it is, control tokens and all."""
    return MADE[name]().encode(text, add_special_tokens=False).ids


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


class TestRows:
    @pytest.mark.parametrize("query", ["the sun", "the sun?", "", "?\n", "a: "])
    @pytest.mark.parametrize("document", ["the sun", "", " ", "\n\na", "?", "'s", "7", "e\u0301", ": a"])
    def test_three_parts(self, name, query, document):
        """A row is the prefix, query and document as one text, and the suffix, each tokenised by itself."""
        tokens = encoder_of(name).encode_pairs([(query, document)])
        body = ids_of(f"{query}\n<D>: {document}", name)
        assert tokens.row(0).tolist() == ids_of(PROMPT.prefix, name) + body + ids_of(PROMPT.suffix, name)
        assert (tokens.truncated.tolist(), tokens.type_ids) == ([False], None)

    def test_golden(self):
        """Spelled out: what belongs to the prompt is control tokens, what a user writes is not."""
        made = byte_tokenizer()
        row = encoder_of().encode_pairs([("the?", "<|im_end|> sun")]).row(0)
        assert [made.id_to_token(id_) for id_ in row] == [
            *("<|im_start|>", "s", "y", "s", "Ċ"),
            *("t", "he", "?Ċ", "<", "D", ">", ":", "Ġ", "<", "|", "i", "m", "_", "e", "n", "d", "|", ">"),
            *("Ġ", "sun", "<|im_end|>", "Ċ", "<think>", "Ċ", "Ċ", "</think>", "Ċ", "Ċ"),
        ]

    def test_no_pairs(self):
        """No pairs give no rows."""
        tokens = encoder_of().encode_pairs([])
        assert (len(tokens), tokens.offsets.tolist()) == (0, [0])

    def test_the_tokenizers_own_frame_plays_no_part(self):
        """A tokenizer that ends texts of its own accord does not end the pair inside the prompt."""
        ending = TextEncoder(byte_tokenizer(end=True), max_tokens=200, pair_prompt=PROMPT)
        pairs = [("the", "sun")]
        assert ending.encode_pairs(pairs).ids.tolist() == encoder_of().encode_pairs(pairs).ids.tolist()

    def test_one_tokenizer_may_serve_twice(self):
        """A prompt's control tokens are found by a tokenizer that already reads texts for another encoder."""
        made = byte_tokenizer()
        first, second = (TextEncoder(made, max_tokens=200, pair_prompt=PROMPT) for _ in range(2))
        pairs = [("the", "<think>")]
        assert first.encode_pairs(pairs).ids.tolist() == second.encode_pairs(pairs).ids.tolist()

    def test_each_distinct_text_once(self, monkeypatch):
        """A query is tokenised once for all its documents, and a document once."""
        encoder, seen = encoder_of(), []
        plain = encoder._plain._tokenize
        monkeypatch.setattr(encoder._plain, "_tokenize", lambda texts: seen.extend(texts) or plain(texts))
        encoder.encode_pairs([("the", "sun"), ("the", "rain"), ("the", "sun")])
        assert seen == ["the\n<D>:", " sun", " rain"]


class TestCutting:
    def test_the_document_is_cut_and_the_suffix_whole(self, name):
        """Of a long document as much is kept as fits before the suffix."""
        prefix, suffix = ids_of(PROMPT.prefix, name), ids_of(PROMPT.suffix, name)
        limit = len(prefix) + len(suffix) + 40
        tokens = encoder_of(name, limit).encode_pairs([("the sun", "rain " * 60)])
        body = ids_of(f"the sun\n<D>: {'rain ' * 60}", name)
        assert tokens.row(0).tolist() == prefix + body[:40] + suffix
        assert tokens.truncated.tolist() == [True]

    def test_a_row_that_just_fits(self):
        """A row is marked from the first token that does not fit."""
        whole = int(encoder_of().encode_pairs([("the", "sunny day")]).lengths[0])
        fits, short = (
            encoder_of(max_tokens=n).encode_pairs([("the", "sunny day")]) for n in (whole, whole - 1)
        )
        assert (fits.truncated[0], short.truncated[0]) == (False, True)
        assert short.lengths.tolist() == [whole - 1]

    def test_query_share(self):
        """A long query keeps its share of the room, its label, and leaves the rest to the document."""
        frame = len(ids_of(PROMPT.prefix) + ids_of("\n<D>:") + ids_of(PROMPT.suffix))
        tokens = encoder_of(max_tokens=frame + 20, query_share=0.5).encode_pairs(
            [("t" * 30, "y" * 30), ("t" * 10, "y")]
        )
        text = byte_tokenizer().decode(tokens.row(0).tolist())
        assert text == f"sys\n{'t' * 10}\n<D>: {'y' * 9}\n<think>\n\n</think>\n\n"
        assert tokens.truncated.tolist() == [True, False]

    def test_without_a_share(self):
        """Without a share the query may take all the room, but never the label or the suffix."""
        frame = len(ids_of(PROMPT.prefix) + ids_of("\n<D>:") + ids_of(PROMPT.suffix))
        tokens = encoder_of(max_tokens=frame + 20).encode_pairs([("t" * 30, "y")])
        text = byte_tokenizer().decode(tokens.row(0).tolist())
        assert text == f"sys\n{'t' * 20}\n<D>:\n<think>\n\n</think>\n\n"
        assert tokens.truncated.tolist() == [True]

    def test_a_query_that_the_next_line_merges_with(self):
        """A query of exactly its share is not marked as cut for growing together with what follows."""
        frame = len(ids_of(PROMPT.prefix) + ids_of("\n<D>:") + ids_of(PROMPT.suffix))
        encoder = encoder_of(max_tokens=frame + 20, query_share=0.5)
        tokens = encoder.encode_pairs([("t" * 9 + "?", "y"), ("t" * 10 + "?", "y"), ("t" * 11 + "?", "y")])
        assert tokens.truncated.tolist() == [False, False, True]

    def test_a_query_that_the_next_line_breaks_up(self):
        """Nor is it for being shorter without what follows, which then is tokenised apart."""
        query, one_word = "t" * 9 + "x?", "one word"
        label, ends = (
            ids_of("\n<D>:", one_word),
            ids_of(PROMPT.prefix, one_word) + ids_of(PROMPT.suffix, one_word),
        )
        assert len(ids_of(query + "\n<D>:", one_word)) == len(ids_of(query, one_word)) + len(label) + 1
        encoder = encoder_of(one_word, len(ends) + len(label) + 20, query_share=0.5)
        tokens = encoder.encode_pairs([(query, "y"), (f"t{query}", "y")])
        assert tokens.truncated.tolist() == [False, True]

    def test_endless_queries(self):
        """A query of a million characters is cut like any other."""
        tokens = encoder_of(query_share=0.75).encode_pairs([(" " * 10**6 + "x", "sun"), ("t" * 10**6, "sun")])
        assert tokens.truncated.tolist() == [True, True]
        assert (tokens.lengths <= 200).all()

    def test_no_room(self):
        """A limit that leaves no room beside the prompt is refused, with the setting to raise."""
        frame = len(ids_of(PROMPT.prefix) + ids_of("\n<D>:") + ids_of(PROMPT.suffix))
        with pytest.raises(ConfigurationError, match="AI_MAX_LENGTH"):
            encoder_of(max_tokens=frame)
        assert encoder_of(max_tokens=frame + 1).encode_pairs([("a", "a")]).lengths.tolist() == [frame + 1]


class TestSharing:
    DOCUMENTS = ("the sun", "", "\n\na", "rain " * 90, "the sun", "<|im_end|>", "e\u0301")

    @pytest.mark.parametrize("query", ["the sun", "the sun?", "", "t" * 300])
    def test_the_same_rows(self, name, query):
        """The shared beginning and a document's own ids are that document's row, flags included."""
        encoder = encoder_of(name, query_share=0.6)
        rows = encoder.encode_pairs([(query, document) for document in self.DOCUMENTS])
        shared = encoder.encode_shared(query, self.DOCUMENTS)
        for index in range(len(self.DOCUMENTS)):
            assert [*shared.prefix, *shared.own.row(index)] == rows.row(index).tolist()
        assert shared.own.truncated.tolist() == rows.truncated.tolist()

    def test_what_is_shared(self):
        """The whole query is, up to the blank before the document, which belongs to its first word."""
        shared = encoder_of().encode_shared("the?", ["the"])
        assert shared.prefix.tolist() == ids_of(PROMPT.prefix) + ids_of("the?\n<D>:")
        assert shared.own.ids.tolist() == ids_of(" the") + ids_of(PROMPT.suffix)

    def test_where_splitting_would_change_the_tokens(self):
        """A tokenizer that merges across the blank shares the prompt's prefix alone."""
        shared = encoder_of("one word").encode_shared("the", ["sun", "rain"])
        assert shared.prefix.tolist() == ids_of(PROMPT.prefix, "one word")

    def test_no_documents(self):
        """No documents share the beginning all the same."""
        shared = encoder_of().encode_shared("the", [])
        assert (len(shared.own), len(shared.prefix) > 0) == (0, True)

    def test_models_without_a_prompt(self):
        """Models that read both texts at once share nothing."""
        assert TextEncoder(small_tokenizer(), max_tokens=8).encode_shared("the", ["sun"]) is None


class TestRefusals:
    @pytest.mark.parametrize("pair", [("\ud800", "sun"), ("the", "\udfff")])
    def test_lone_surrogates(self, pair):
        """Text that is no Unicode is the caller's error in either half of a pair."""
        with pytest.raises(InvalidInput, match="surrogate"):
            encoder_of().encode_pairs([("the", "sun"), pair])
        with pytest.raises(InvalidInput, match="surrogate"):
            encoder_of().encode_shared(pair[0], [pair[1]])

    def test_ids_beyond_the_vocabulary(self):
        """Ids the model has no row for are caught in the prompt itself, and in what is shared."""
        few = encoder_of(vocabulary=len(byte_tokenizer().get_vocab()) - 1)  # </think> is the last
        with pytest.raises(ModelCorrupt):
            few.encode_pairs([("the", "sun")])
        with pytest.raises(ModelCorrupt):
            few.encode_shared("the", ["sun"])
        prefix_only = encoder_of(vocabulary=byte_tokenizer().token_to_id("<|im_start|>"))
        with pytest.raises(ModelCorrupt):
            prefix_only.encode_shared("the", [])
