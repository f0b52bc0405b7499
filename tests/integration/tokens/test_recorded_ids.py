"""The ids of real tokenizers under the catalogue's recipes, as `transformers` gives them.

`recorded.json` is written by `benchmarks/parity_tokens.py --record`, which runs the authors' own
lines for each recipe and compares row by row; here a hash of all rows has to be the same.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.catalogue import builtin_catalogue
from tokenizer_kit import encoders_tokenizer, fresh_tokenizer, reference_tokenizer

pytestmark = pytest.mark.slow

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))
TOKENIZERS = {
    "qwen3emb": "qwen3",
    "qwen3_reranker": "qwen3-reranker",
    "bge-m3": "xlm-r",
    "bge-reranker-v2-m3": "xlm-r",
    "bge-small-en-v1.5": "minilm",
    "nomic-embed-text-v1.5": "minilm",
    "e5-small-v2": "minilm",
    "ms-marco-MiniLM-L6-v2": "minilm",
}


@cache
def xquad(folder):
    """The distinct paragraphs and questions of all languages, and each question with its paragraph."""
    texts, pairs = [], []
    for language in ("en", "ru", "de", "zh"):
        articles = json.loads((folder / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
        entries = [entry for article in articles for entry in article["paragraphs"]]
        asked = dict.fromkeys((qa["question"], entry["context"]) for entry in entries for qa in entry["qas"])
        texts += [*dict.fromkeys(entry["context"] for entry in entries), *(question for question, _ in asked)]
        pairs += asked
    return texts, pairs


def encoder_of(card, limit):
    return TextEncoder(
        encoders_tokenizer(TOKENIZERS[card.name]),
        max_tokens=limit,
        query_share=card.query_share,
        with_types=card.type_ids,
        end_token=card.end_token,
        pair_prompt=card.pair_prompt,
    )


@pytest.mark.parametrize(
    ("title", "limit"), [(title, limit) for title in RECORDED for limit in RECORDED[title]]
)
def test_rows_are_those_of_transformers(title, limit, shared_data):
    """Every row of thousands, in four languages, whole and cut, has the ids and types of the reference."""
    name, kind = title.rsplit(" ", 1)
    card = builtin_catalogue().find(name)
    texts, pairs = xquad(shared_data / "xquad")
    encoder = encoder_of(card, int(limit))
    if kind == "pairs":
        query = card.prompt_for("query")
        tokens = encoder.encode_pairs([(query.apply(question), document) for question, document in pairs])
    else:
        prompt = card.prompt_for("query" if kind == "queries" else "document")
        tokens = encoder.encode([prompt.apply(text) for text in texts])
    expected = RECORDED[title][limit]
    assert (len(tokens), int(tokens.lengths.sum())) == (expected["rows"], expected["tokens"])
    assert hash_of(tokens) == expected["sha256"]


def hash_of(tokens):
    digest = hashlib.sha256()
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        types = [] if tokens.type_ids is None else tokens.type_ids[start:end]
        digest.update(
            np.concatenate([[end - start], tokens.ids[start:end], types]).astype(np.int64).tobytes()
        )
    return digest.hexdigest()


def test_shared_beginnings_of_thousands(shared_data):
    """With the real tokenizer of Qwen3-Reranker, shared and own ids are the prompt tokenised as a whole."""
    _, pairs = xquad(shared_data / "xquad")
    picked = [pair for number, pair in enumerate(pairs) if number % 2]
    card = builtin_catalogue().find("qwen3_reranker")
    encoder, plain = encoder_of(card, 2048), reference_tokenizer("qwen3-reranker")
    plain.no_truncation()
    query = card.prompt_for("query")
    texts = [f"{query.apply(question)}\n<Document>: {document}" for question, document in picked]
    bodies = plain.encode_batch(texts, add_special_tokens=False)
    prefix, suffix = plain.encode(card.pair_prompt.prefix).ids, plain.encode(card.pair_prompt.suffix).ids
    assert len(picked) > 2000
    for (question, document), body in zip(picked, bodies, strict=True):
        shared = encoder.encode_shared(query.apply(question), [document])
        assert [*shared.prefix.tolist(), *shared.own.ids.tolist()] == prefix + body.ids + suffix


def test_the_prompt_of_qwen_rerankers():
    """The whole prompt, read back: single newlines, no end token, yes and no as the head expects them."""
    card = builtin_catalogue().find("qwen3_reranker")
    made = reference_tokenizer("qwen3-reranker")
    row = encoder_of(card, 512).encode_pairs([(card.prompt_for("query").apply("Q?"), "D")]).row(0)
    assert made.decode(row.tolist(), skip_special_tokens=False) == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: Q?\n<Document>: D<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert (made.token_to_id("yes"), made.token_to_id("no")) == (9693, 2152)


def test_the_ends_of_qwen_embeddings():
    """Each text ends with 151643 once; a tokenizer.json of before that was mended does the same."""
    card = builtin_catalogue().find("qwen3emb")
    old = json.loads(fresh_tokenizer("qwen3").to_str())
    old["post_processor"] = old["post_processor"]["processors"][0]
    old = Tokenizer.from_str(json.dumps(old))
    assert old.encode("gravity").ids[-1] != 151643
    mended = TextEncoder(old, max_tokens=8, end_token=card.end_token)
    texts = ["Explain gravity", "", "gravity " * 20, "<|endoftext|>"]
    tokens = encoder_of(card, 8).encode(texts)
    assert mended.encode(texts).ids.tolist() == tokens.ids.tolist()
    for index in range(len(texts)):
        assert tokens.row(index).tolist().count(151643) == 1
        assert tokens.row(index)[-1] == 151643


def test_xlm_roberta_against_published_ids(shared_data):
    """The ids that the model's own tests expect of sentences that spell no control token out."""
    published = json.loads(
        (shared_data / "xlm-roberta-bge-m3-tokenizer" / "expected_token_ids.json").read_text(encoding="utf-8")
    )
    encoder = TextEncoder(encoders_tokenizer("xlm-r"), max_tokens=512)
    plain = [
        entry for entry in published if not any(token in entry["text"] for token in encoder.control_tokens)
    ]
    assert plain
    for entry in plain:
        assert encoder.encode([entry["text"]]).ids.tolist() == entry["ids"]
