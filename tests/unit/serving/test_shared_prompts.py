"""Documents of one query share what their prompts begin with, and nobody can tell but by the clock."""

from __future__ import annotations

import numpy as np
import pytest

from resilient_ai._inference.batching import shared_load
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard, PairPrompt
from resilient_ai._serving.calls import RerankCall
from resilient_ai._serving.dispatcher import Dispatcher
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.jobs import Job
from resilient_ai.errors import InvalidInput
from resilient_ai.testing import FakeBackend
from tokenizer_kit import byte_tokenizer

WAIT = 20
BUDGET = 512
QUERY = "how warm is the sun?"
DOCUMENTS = ["It is.", "", "\nThe sun is a star. " * 5, "a", "5778 K", "<|im_end|>"]
CARD = ModelCard(
    name="reranker",
    kind="reranker",
    family="qwen3",
    score="sigmoid",
    query_prompt="<I>: {instruction}\n<Q>: {text}",
    default_instruction="find",
    query_share=0.75,
    pair_prompt=PairPrompt("<|im_start|>sys\n", "\n<D>: ", "<|im_end|>\n<think>\n"),
)


def encoder(max_tokens=200):
    return TextEncoder(
        byte_tokenizer(), max_tokens=max_tokens, query_share=CARD.query_share, pair_prompt=CARD.pair_prompt
    )


@pytest.fixture
def served():
    """Make a hosted model on a fake device, and a function that runs calls on it."""
    dispatchers = []

    def make(*, shares_prefix=True, max_tokens=200, max_rows=32):
        fake = FakeBackend("cpu")
        limits = BatchLimits(BUDGET, max_rows)
        model = HostedModel(
            CARD, encoder(max_tokens), FallbackManager([fake]), limits, shares_prefix=shares_prefix
        )
        dispatcher = Dispatcher(BufferPool(1 << 22), queue_size=100)
        dispatchers.append(dispatcher)

        def rerank(query, documents, instruction=None):
            route = RerankCall(query, documents, None, instruction, raw_scores=True).route(model)
            job = Job()
            job.route(route.lane, route.items, route.finish)
            dispatcher.submit(job)
            return job.future.result(WAIT)

        return model, fake, rerank

    yield make
    for dispatcher in dispatchers:
        dispatcher.close()


def by_document(ranking):
    return [each.score for each in sorted(ranking, key=lambda each: each.index)]


def test_scores_and_counts_are_those_of_whole_prompts(served):
    """Whether a query is shared or not, scores, token counts and truncation are the same."""
    (_, _, shared), (_, _, whole) = served(), served(shares_prefix=False)
    for query in (QUERY, "", "long " * 100):
        for instruction in (None, "judge {text}", ""):
            one, other = (rerank(query, DOCUMENTS, instruction) for rerank in (shared, whole))
            assert by_document(one) == by_document(other)
            assert one.token_counts.tolist() == other.token_counts.tolist()
            assert one.truncated.tolist() == other.truncated.tolist()


def test_what_a_device_gets(served):
    """The ids of the shared beginning once, and each document's own, which together are the whole prompt."""
    model, fake, rerank = served()
    rerank(QUERY, DOCUMENTS)
    wanted = model._encoder.encode_pairs(
        [(CARD.prompt_for("query").apply(QUERY), document) for document in DOCUMENTS]
    )
    rows = {tuple(wanted.row(index).tolist()) for index in range(len(DOCUMENTS))}
    got = set()
    for batch in fake.calls:
        assert batch.task == "score"
        assert batch.shared_ids.size > 20
        for ids, length in zip(batch.input_ids, batch.lengths, strict=True):
            got.add((*batch.shared_ids.tolist(), *ids[:length].tolist()))
    assert got == rows


def lane_of(model, documents):
    return RerankCall(QUERY, DOCUMENTS[:documents], None, None, raw_scores=True).route(model).lane


def test_what_does_not_share(served):
    """A model whose graph cannot gets whole prompts."""
    model, fake, rerank = served(shares_prefix=False)
    rerank(QUERY, DOCUMENTS)
    assert all(batch.shared_ids is None for batch in fake.calls)
    assert lane_of(model, 6) is model.pair_lane()


def test_few_documents_share_where_small_batches_cost_little():
    """On a CPU alone each call has its own lane; before a CPU stands what does better with merged calls."""
    backends = [FakeBackend("cpu")], [FakeBackend("gpu"), FakeBackend("cpu")]
    alone, guarded = (
        HostedModel(CARD, encoder(), FallbackManager(each), BatchLimits(BUDGET, 32), shares_prefix=True)
        for each in backends
    )
    assert [lane_of(alone, count) is alone.pair_lane() for count in (1, 3, 4)] == [False] * 3
    assert [lane_of(guarded, count) is guarded.pair_lane() for count in (1, 3, 4)] == [True, True, False]
    alone.close()
    guarded.close()


def test_batches_hold_what_fits_with_the_beginning(served):
    """In planning a row counts as longer by its share of the beginning."""
    _, fake, rerank = served()
    rerank(QUERY, ["warm " * 10] * 64)
    for batch in fake.calls:
        load = shared_load("score", batch.shared_ids)
        assert load > 0
        assert batch.rows * (batch.input_ids.shape[1] + load) <= BUDGET
    assert sum(batch.rows for batch in fake.calls) == 64
    assert max(batch.rows for batch in fake.calls) > 1


def test_many_documents_have_one_beginning(served):
    """A call of several waves gives every batch the same ids to begin with."""
    _, fake, rerank = served(max_rows=1000)
    ranking = rerank(QUERY, [f"{number}" for number in range(600)])
    assert len(ranking) == 600
    assert len({batch.shared_ids.tobytes() for batch in fake.calls}) == 1


@pytest.mark.parametrize(
    ("query", "documents"), [("\ud800", ["a", "b"]), ("a", ["b", "\ud800"]), ("\ud800", ["a"])]
)
def test_what_is_no_text_is_the_callers_error(served, query, documents):
    """A lone surrogate in query or document fails its own call, and the next one goes well."""
    _, _, rerank = served()
    with pytest.raises(InvalidInput):
        rerank(query, documents)
    assert len(rerank(QUERY, DOCUMENTS)) == len(DOCUMENTS)


def test_a_query_that_leaves_little_room(served):
    """Where the query is cut, the scores are still those of the whole prompts, and each row says so."""
    (_, _, shared), (_, _, whole) = served(max_tokens=60), served(max_tokens=60, shares_prefix=False)
    one, other = (rerank("warm " * 50, DOCUMENTS) for rerank in (shared, whole))
    assert by_document(one) == by_document(other)
    assert one.truncated.all()
    assert np.array_equal(one.token_counts, other.token_counts)
    assert one.token_counts.max() <= 60
