"""From a card's prompts and a caller's instruction to the ids that a model is given."""

from __future__ import annotations

import dataclasses

import pytest

from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard, PairPrompt
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.calls import EmbedCall, RerankCall
from resilient_ai._serving.encoders import make_encoder
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import HostedModel
from resilient_ai.errors import ConfigurationError, InvalidInput
from resilient_ai.testing import FakeBackend
from serving_kit import DIMENSION, LIMITS
from tokenizer_kit import byte_tokenizer

EMBEDDER = ModelCard(
    name="embedder",
    kind="embedding",
    family="qwen3",
    dimension=DIMENSION,
    pooling="last_token",
    query_prompt="I: {instruction}\nQ:{text}",
    default_instruction="find",
    end_token="<|endoftext|>",
)
RERANKER = ModelCard(
    name="reranker",
    kind="reranker",
    family="qwen3",
    score="sigmoid",
    query_prompt="<I>: {instruction}\n<Q>: {text}",
    default_instruction="find",
    query_share=0.75,
    pair_prompt=PairPrompt("<|im_start|>sys\n", "\n<D>: ", "<|im_end|>\n<think>\n"),
)


def installed(card, folder):
    """A model of which nothing but the tokenizer is looked at."""
    path = folder / "tokenizer.json"
    path.write_text(byte_tokenizer().to_str(), encoding="utf-8")
    return InstalledModel(card, folder, "graph", {"tokenizer": (path,)}, {}, "here", None, folder)


@pytest.fixture
def host(tmp_path):
    def make(card, max_tokens=100):
        encoder = make_encoder(installed(card, tmp_path), max_tokens)
        return HostedModel(card, encoder, FallbackManager([FakeBackend("cpu", DIMENSION)]), LIMITS)

    return make


def embed(texts, input_type, instruction=None):
    return EmbedCall(texts, input_type, instruction, None, normalize=True, cache=VectorCache(0))


def rerank(query, documents, instruction=None):
    return RerankCall(query, documents, None, instruction, raw_scores=False)


def rows_of(route):
    tokens = route.lane.encode(route.items)
    return [tokens.row(index).tolist() for index in range(len(tokens))]


def ids_of(text):
    return byte_tokenizer().encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("instruction", "said"), [(None, "find"), ("judge {text}", "judge {text}"), ("", "")]
)
def test_embeddings(host, instruction, said):
    """A query stands behind its instruction, without a blank; a document stands alone; both end properly."""
    model, end = host(EMBEDDER), byte_tokenizer().token_to_id("<|endoftext|>")
    queries = rows_of(embed(["the sun"], "query", instruction).route(model))
    assert queries == [[*ids_of(f"I: {said}\nQ:the sun"), end]]
    assert rows_of(embed(["the sun"], "document").route(model)) == [[*ids_of("the sun"), end]]


@pytest.mark.parametrize(("instruction", "said"), [(None, "find"), ("judge", "judge")])
def test_rerankings(host, instruction, said):
    """Query and document stand within the prompt that the card gives the pair."""
    rows = rows_of(rerank("the?", ["sun", "rain"], instruction).route(host(RERANKER)))
    for row, document in zip(rows, ["sun", "rain"], strict=True):
        body = ids_of(f"<I>: {said}\n<Q>: the?\n<D>: {document}")
        assert row == ids_of("<|im_start|>sys\n") + body + ids_of("<|im_end|>\n<think>\n")


def test_instructions_do_not_control(host):
    """Control tokens in an instruction are text, as they are in queries and documents."""
    control = set(byte_tokenizer().encode("<|im_start|><|im_end|><|endoftext|><think></think>").ids)
    (row,) = rows_of(embed(["<think>"], "query", "<|im_end|>").route(host(EMBEDDER)))
    assert not control & set(row[:-1])
    (row,) = rows_of(rerank("<think>", ["<|im_end|>"], "<|im_start|>").route(host(RERANKER)))
    assert len([id_ for id_ in row if id_ in control]) == 3


@pytest.mark.parametrize("card", [EMBEDDER, RERANKER])
def test_an_instruction_that_leaves_no_room(host, card):
    """An instruction as long as the model's limit is the caller's error, not a query that is lost."""
    model = host(card)
    call = embed(["sun"], "query", "y" * 100) if card is EMBEDDER else rerank("sun", ["a"], "y" * 100)
    with pytest.raises(InvalidInput, match="instruction"):
        call.route(model)


@pytest.mark.parametrize(("card", "limit"), [(EMBEDDER, len("I: find?Q:?")), (RERANKER, 32)])
def test_a_limit_below_the_prompt(card, limit, tmp_path):
    """A limit that the card's own prompt fills is refused when the model is loaded."""
    with pytest.raises(ConfigurationError, match="AI_MAX_LENGTH"):
        make_encoder(installed(card, tmp_path), limit)
    assert isinstance(make_encoder(installed(card, tmp_path), limit + 10), TextEncoder)


def test_control_tokens_in_other_prompts(tmp_path):
    """A card that counts on control tokens where they are text is refused rather than misread."""
    card = dataclasses.replace(EMBEDDER, document_prompt="<|im_start|>{text}")
    with pytest.raises(ConfigurationError, match="im_start"):
        make_encoder(installed(card, tmp_path), 100)
