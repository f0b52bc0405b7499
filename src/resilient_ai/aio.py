"""The asynchronous face: the same calls as coroutines, over the same engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np

from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving import arguments as check
from resilient_ai._serving.health import Health
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._telemetry.events import Observer
from resilient_ai.service import STREAM_CHUNK, AIService, EmbedOptions, MultiOptions, RerankOptions
from resilient_ai.values import Embeddings, FloatArray, MultiEmbeddings, Ranking

if TYPE_CHECKING:
    from resilient_ai.settings import AISettings

__all__ = ["AsyncAIService"]


class AsyncAIService:
    """`AIService` for event loops: any number of loops and threads may share one.

    Nothing here blocks the loop: calls are queued, and a cancelled task withdraws its call.
    Arguments, results and errors are those of `AIService`.
    """

    def __init__(self, settings: AISettings | None = None) -> None:
        self._service = AIService(settings)

    @classmethod
    def from_env(cls) -> Self:
        """The service as the AI_* environment and the configuration file describe it."""
        return cls()

    @property
    def settings(self) -> AISettings:
        return self._service.settings

    @property
    def registry(self) -> ModelRegistry[HostedModel]:
        return self._service.registry

    async def load(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - a deadline, as everywhere
        await asyncio.to_thread(self._service.load, timeout=timeout)

    async def reload(self, name: str | None = None, *, timeout: float | None = None) -> tuple[str, ...]:  # noqa: ASYNC109 - as above
        return await asyncio.to_thread(self._service.reload, name, timeout=timeout)

    async def use(
        self,
        *,
        model_name: str | None = None,
        reranker_name: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> None:
        await asyncio.to_thread(
            self._service.use, model_name=model_name, reranker_name=reranker_name, timeout=timeout
        )

    async def embed(self, texts: Iterable[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        return await asyncio.wrap_future(self._service.submit_embed(texts, **options))

    async def embed_multi(self, texts: Iterable[str], **options: Unpack[MultiOptions]) -> MultiEmbeddings:
        return await asyncio.wrap_future(self._service.submit_embed_multi(texts, **options))

    async def embed_query(self, text: str, **options: Unpack[EmbedOptions]) -> FloatArray:
        options.setdefault("input_type", "query")
        return np.asarray((await self.embed([check.check_text(text)], **options)).vectors[0])

    async def embed_documents(self, texts: Iterable[str], **options: Unpack[EmbedOptions]) -> FloatArray:
        return (await self.embed(texts, **options)).vectors

    async def embed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        chunk_size: int = STREAM_CHUNK,
        **options: Unpack[EmbedOptions],
    ) -> AsyncIterator[Embeddings]:
        """As `AIService.embed_stream`; takes asynchronous iterables too, one chunk ahead."""
        check.check_count(chunk_size, what="chunk_size")
        options.setdefault("priority", "bulk")
        ahead: asyncio.Task[Embeddings] | None = None
        try:
            async for chunk in _chunks(texts, chunk_size):
                current, ahead = ahead, asyncio.ensure_future(self.embed(chunk, **options))
                if current is not None:
                    yield await current
            if ahead is not None:
                yield await ahead
        finally:
            if ahead is not None:
                ahead.cancel()

    async def rerank(self, query: str, documents: Iterable[str], **options: Unpack[RerankOptions]) -> Ranking:
        return await asyncio.wrap_future(self._service.submit_rerank(query, documents, **options))

    def health(self) -> Health:
        return self._service.health()

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        return self._service.subscribe(observer)

    async def close(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - what runs may finish for so long
        await asyncio.to_thread(self._service.close, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _chunks(texts: Iterable[str] | AsyncIterable[str], size: int) -> AsyncIterator[list[str]]:
    if not isinstance(texts, AsyncIterable):
        source = check.check_stream(texts)
        while chunk := list(islice(source, size)):
            yield chunk
        return
    chunk = []
    async for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
