"""POST /v1/embeddings: OpenAI's request and answer, with a few fields more."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError, to_json

from resilient_ai._adapters.http.fields import CallFields
from resilient_ai._models.cards import InputType
from resilient_ai.service import EmbedOptions
from resilient_ai.values import Embeddings, FloatArray

__all__ = ["EmbeddingRequest", "EncodingFormat", "render"]

EncodingFormat = Literal["float", "base64"]

MOST_TEXTS = 2048

_QUICK = 1 << 14
"""So many numbers are written in about a millisecond: less than the event loop would miss."""


def _as_texts(value: Any) -> Any:
    """Make a list of one text, and refuse what only looks like texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise _wrong("must be a string or a list of strings with at least one in it")
    if isinstance(texts[0], int | list):
        raise _wrong("must be text; token ids are not accepted, they depend on the model's own tokenizer")
    if len(texts) > MOST_TEXTS:
        raise _wrong(f"holds {len(texts)} texts, but a request takes at most {MOST_TEXTS}; send several")
    if "" in texts:
        raise _wrong(f"must hold no empty string, but the one at index {texts.index('')} is")
    return texts


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("input", "{message}", {"message": message})


class EmbeddingRequest(CallFields):
    """Texts to embed; `input_type` chooses the model's query or document prompt."""

    input: Annotated[list[str], BeforeValidator(_as_texts)]
    encoding_format: EncodingFormat | None = None
    dimensions: int | None = None
    input_type: InputType | None = None

    def options(self) -> EmbedOptions:
        return EmbedOptions(
            input_type=self.input_type or "document",
            instruction=self.instruction,
            dimensions=self.dimensions,
            timeout=self.timeout,
            priority=self.priority or "interactive",
        )


async def render(answer: Embeddings, encoding_format: EncodingFormat | None) -> bytes:
    """Write the answer as JSON, on another thread when the event loop would have to wait for it."""
    write = _as_base64 if encoding_format == "base64" else _as_numbers
    if answer.vectors.size <= _QUICK:
        return _render(answer, write)
    return await asyncio.to_thread(_render, answer, write)


def _render(answer: Embeddings, write: Callable[[FloatArray], object]) -> bytes:
    tokens = int(answer.token_counts.sum())
    frame = {
        "object": "list",
        "model": answer.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "dimensions": answer.dimensions,
        "truncated": np.flatnonzero(answer.truncated).tolist(),
        "served_by": list(dict.fromkeys(answer.served_by)),
        "degraded": bool(answer.degraded),
        "elapsed_ms": answer.elapsed_ms,
    }
    parts = [to_json(frame)[:-1], b',"data":[']
    # Row by row: the encoder keeps the interpreter's lock while it runs, and the event loop needs it.
    for index, vector in enumerate(answer.vectors):
        item = to_json({"object": "embedding", "index": index, "embedding": write(vector)})
        parts += (b"," if index else b"", item)
    return b"".join((*parts, b"]}"))


def _as_numbers(vector: FloatArray) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _as_base64(vector: FloatArray) -> str:
    """Little-endian float32, as OpenAI's clients decode it."""
    return b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
