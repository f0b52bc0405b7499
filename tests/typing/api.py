"""The public surface as a type checker sees it. Checked by mypy, never run."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import resilient_ai as rai

Vectors = NDArray[np.float32]


def sync_face(ai: rai.AIService) -> None:
    assert_type(ai.embed(["a"], dimensions=64, timeout=1.0), rai.Embeddings)
    assert_type(ai.embed(("a", "b"), input_type="query", priority="bulk").vectors, Vectors)
    assert_type(ai.embed_query("a", instruction=None), Vectors)
    assert_type(ai.embed_documents(text for text in "ab"), Vectors)
    assert_type(ai.embed_stream(iter("ab"), chunk_size=2), Iterator[rai.Embeddings])
    assert_type(ai.submit_embed(["a"]), Future[rai.Embeddings])
    ranking = ai.rerank("q", ["a"], top_k=1, raw_scores=True)
    assert_type(ranking, rai.Ranking)
    assert_type(ranking[0], rai.RankedDocument)
    assert_type(ranking[0:1], tuple[rai.RankedDocument, ...])
    assert_type([hit.score for hit in ranking], list[float])
    assert_type(ai.health(), rai.Health)
    assert_type(ai.embed(["a"], model="bge-m3").model, str)
    assert_type(ai.reload("bge-m3", timeout=60.0), tuple[str, ...])
    ai.use(model_name="bge-m3", reranker_name="late-interaction")


async def async_face(ai: rai.AsyncAIService) -> None:
    assert_type(await ai.embed(["a"]), rai.Embeddings)
    assert_type(await ai.rerank("q", ["a"]), rai.Ranking)
    assert_type(ai.embed_stream(["a"]), AsyncIterator[rai.Embeddings])
    assert_type(await ai.reload(), tuple[str, ...])
    await ai.use(model_name="bge-m3")


def wrong_arguments(ai: rai.AIService) -> None:
    ai.embed(["a"], priority="urgent")  # type: ignore[arg-type]
    ai.embed(["a"], unknown=1)  # type: ignore[call-arg]
    ai.rerank("q", ["a"], top_k="1")  # type: ignore[arg-type]


def breaker(protected: rai.CircuitBreaker) -> None:
    permit = protected.try_acquire()
    if isinstance(permit, rai.Rejection):
        assert_type(permit.retry_after, float | None)
    else:
        permit.success()

    @protected
    def double(number: int) -> int:
        return 2 * number

    assert_type(double(1), int)
