"""The application: which path answers what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from resilient_ai._adapters.http import embeddings, reranking
from resilient_ai._adapters.http.bodies import BodyReader
from resilient_ai._adapters.http.disconnects import run_while_connected
from resilient_ai._adapters.http.fields import read_fields
from resilient_ai._adapters.http.offers import Offer, embedding_offer, reranking_offer
from resilient_ai._adapters.http.problems import EXCEPTION_HANDLERS, JSON
from resilient_ai._adapters.http.warmup import keep_loading
from resilient_ai.aio import AsyncAIService

__all__ = ["build_app"]


def build_app(service: AsyncAIService, *, bodies: BodyReader | None = None) -> Starlette:
    """The ASGI application over a service, which it loads in the background but does not close."""
    api = _Api(service, bodies or BodyReader())

    @asynccontextmanager
    async def loading(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(keep_loading(service))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return Starlette(
        routes=[
            Route("/v1/embeddings", api.embed, methods=["POST"]),
            Route("/v1/rerank", api.rerank, methods=["POST"]),
            Route("/v2/rerank", api.rerank, methods=["POST"]),
            Route("/v1/models", api.list_models),
            Route("/health", api.report_health),
            Route("/health/live", api.report_live),
            Route("/health/ready", api.report_ready),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=loading,
    )


class _Api:
    """The endpoints. Errors of the tree become answers in `problems`."""

    def __init__(self, service: AsyncAIService, bodies: BodyReader) -> None:
        self._service = service
        self._bodies = bodies
        self._created = int(time.time())

    async def embed(self, request: Request) -> Response:
        async with self._bodies.reading(request) as body:
            fields = read_fields(embeddings.EmbeddingRequest, body)
            embedding_offer(self._service).check(fields.model)
            call = self._service.embed(fields.input, **fields.options())
            answer = await run_while_connected(request, call)
            return _json(await embeddings.render(answer, fields.encoding_format))

    async def rerank(self, request: Request) -> Response:
        async with self._bodies.reading(request) as body:
            fields = read_fields(reranking.RerankRequest, body)
            reranking_offer(self._service).check(fields.model)
            call = self._service.rerank(fields.query, fields.documents, **fields.options())
            answer = await run_while_connected(request, call)
            version = request.url.path.split("/")[1].removeprefix("v")
            return _json(reranking.render(answer, version=version, with_documents=fields.return_documents))

    async def list_models(self, _: Request) -> Response:
        # One model may do both, and is listed once.
        offers = (embedding_offer(self._service), reranking_offer(self._service))
        each = {offer.card.name: offer for offer in offers}
        return _json({"object": "list", "data": [self._describe(offer) for offer in each.values()]})

    async def report_health(self, _: Request) -> Response:
        health = self._service.health()
        return _json(health.to_dict(), status=503 if health.status == "unhealthy" else 200)

    async def report_live(self, _: Request) -> Response:
        live = self._service.health().live
        return _json({"live": live}, status=200 if live else 503)

    async def report_ready(self, _: Request) -> Response:
        ready = self._service.health().ready
        return _json({"ready": ready}, status=200 if ready else 503)

    def _describe(self, offer: Offer) -> dict[str, Any]:
        """One model as OpenAI's clients know it, and what else can be said of it."""
        return {
            "id": offer.card.name,
            "object": "model",
            "created": self._created,
            "owned_by": "resilient_ai",
            "kind": offer.card.kind,
            "aliases": sorted(offer.names - {offer.card.name}),
            "dimensions": offer.card.dimension,
            "max_tokens": min(offer.card.max_tokens, self._service.settings.max_length),
        }


def _json(content: bytes | dict[str, Any], status: int = 200) -> Response:
    body = content if isinstance(content, bytes) else to_json(content, inf_nan_mode="null")
    return Response(body, status_code=status, media_type=JSON)
