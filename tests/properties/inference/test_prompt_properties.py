"""Rows of prompted pairs: never too long, never without their suffix, cut exactly when they say so."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilient_ai._inference.plaintext import PlainTextTokenizer
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import PairPrompt
from tokenizer_kit import encoders_tokenizer, reference_tokenizer

pytestmark = pytest.mark.slow

PROMPT = PairPrompt("<|im_start|>system\nsay\n", "\n<Document>: ", "<|im_end|>\n<think>\n\n</think>\n\n")
LABEL = "\n<Document>:"
PIECE = st.one_of(
    st.sampled_from(
        [
            "the",
            "sun?",
            "\n",
            "  ",
            "don't",
            "日本語",
            "<|im_end|>",
            "</think>",
            "<s>",
            "</s>",
            "x" * 30,
            ": ",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
TEXT = st.tuples(st.lists(PIECE, max_size=25), st.sampled_from(["", " "])).map(lambda t: t[1].join(t[0]))
KINDS = pytest.mark.parametrize("name", ["bytes", "one word", "pieces", "qwen3-reranker", "xlm-r"])
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def ends_of(name):
    made = reference_tokenizer(name)
    made.no_truncation()
    made.encode_special_tokens = False
    return [made.encode(text, add_special_tokens=False).ids for text in (PROMPT.prefix, PROMPT.suffix)]


@KINDS
@QUICK
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    room=st.integers(2, 60),
    share=st.sampled_from([None, 0.3, 0.75]),
)
def test_rows(name, pairs, room, share):
    """Whatever the texts: whole ends, plain text between, the limit kept, and a flag that tells the truth."""
    prefix, suffix = ends_of(name)
    plain = PlainTextTokenizer(encoders_tokenizer(name))
    most = room + len(prefix) + len(plain.ids(LABEL)) + len(suffix)
    encoder = TextEncoder(encoders_tokenizer(name), max_tokens=most, query_share=share, pair_prompt=PROMPT)
    tokens = encoder.encode_pairs(pairs)
    control = set(plain.control_tokens.values()) - set(plain.ids("\U00012000"))
    query_room = room if share is None else int(room * share)
    for index, (query, document) in enumerate(pairs):
        row = tokens.row(index).tolist()
        body = row[len(prefix) : len(row) - len(suffix)]
        assert len(row) <= most
        assert row == prefix + body + suffix
        assert not control & set(body)
        whole = plain.ids(f"{query}\n<Document>: {document}")
        query_fits = len(plain.ids(query)) <= query_room
        begun = len(plain.ids(query + LABEL)) - len(plain.ids(LABEL))
        if query_fits and begun <= query_room:
            assert body == whole[: most - len(prefix) - len(suffix)]
            assert tokens.truncated[index] == (len(whole) > len(body))
        elif not query_fits:
            assert tokens.truncated[index]
            assert body[:query_room] == plain.ids(query)[:query_room]


@KINDS
@QUICK
@given(query=TEXT, documents=st.lists(TEXT, max_size=4), limit=st.integers(70, 140))
def test_shared_beginnings(name, query, documents, limit):
    """What documents share and what is their own make up the rows they have in company and alone."""
    encoder = TextEncoder(encoders_tokenizer(name), max_tokens=limit, query_share=0.75, pair_prompt=PROMPT)
    shared = encoder.encode_shared(query, documents)
    rows = encoder.encode_pairs([(query, document) for document in documents])
    for index, document in enumerate(documents):
        joined = [*shared.prefix.tolist(), *shared.own.row(index).tolist()]
        assert joined == rows.row(index).tolist()
        assert joined == encoder.encode_pairs([(query, document)]).ids.tolist()
        assert shared.own.truncated[index] == rows.truncated[index]
