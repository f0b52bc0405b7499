"""Who takes part: one module a family, each of which runs in a process of its own (`speed.guest`).

An embedder has `embed(texts)`, a reranker `rerank(query, documents)`; both give float32 arrays. What
cannot take part here raises `Unavailable` when it is made.
"""

from __future__ import annotations

__all__ = ["Unavailable"]


class Unavailable(Exception):
    """A contestant that this machine or this version does not have; the text says why."""
