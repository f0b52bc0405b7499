"""POST /v1/rerank and /v2/rerank: the request and answer that Cohere's and Jina's clients share."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic_core import to_json

from resilient_ai._adapters.http.fields import CallFields
from resilient_ai.service import RerankOptions
from resilient_ai.values import RankedDocument, Ranking

__all__ = ["RerankRequest", "render"]

MOST_DOCUMENTS = 10_000


def _text_of(document: Any) -> Any:
    return document["text"] if isinstance(document, dict) and "text" in document else document


Document = Annotated[str, BeforeValidator(_text_of)]
"""A text, or an object whose field `text` is one."""


class RerankRequest(CallFields):
    """Documents to rank by how well they answer a query; `top_n` keeps the best so many."""

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[Document], Field(min_length=1, max_length=MOST_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None

    def options(self) -> RerankOptions:
        return RerankOptions(
            top_k=self.top_n,
            instruction=self.instruction,
            timeout=self.timeout,
            priority=self.priority or "interactive",
        )


def render(answer: Ranking, *, version: str, with_documents: bool | None) -> bytes:
    """Write the answer as JSON; `version` is that of the path it was asked by."""
    tokens = int(answer.token_counts.sum())
    return to_json(
        {
            "id": str(uuid4()),
            "model": answer.model,
            "results": [_result(document, with_text=bool(with_documents)) for document in answer],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {"api_version": {"version": version}},
            "truncated": np.flatnonzero(answer.truncated).tolist(),
            "served_by": list(dict.fromkeys(answer.served_by)),
            "degraded": answer.degraded,
            "elapsed_ms": answer.elapsed_ms,
        }
    )


def _result(document: RankedDocument, *, with_text: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"index": document.index, "relevance_score": document.score}
    if with_text:
        result["document"] = {"text": document.document}
    return result
