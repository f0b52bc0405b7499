"""This library, through its public surface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import resilient_ai as rai
from speed.contestants import Unavailable

__all__ = ["Ours"]

_PLAIN = {
    "use_gpu": "never",
    "cache_size": 0,
    "offline": True,
    # Named, never loaded: late interaction would keep token vectors in the embedder's graph.
    "reranker_name": "ms-marco-MiniLM-L6-v2",
}


class Ours:
    """A service whose models lie in `root`; `settings` are added to the plain ones.

    It is loaded when it is made, or with `lazy` by its first call.
    """

    def __init__(self, *, root: str, settings: dict[str, Any], lazy: bool = False) -> None:
        values = {**_PLAIN, **settings}
        unknown = [name for name in values if name not in rai.AISettings.model_fields]
        if unknown:
            raise Unavailable(f"this version has no setting AI_{unknown[0].upper()}")
        try:
            own = rai.AISettings.load(environ={}, cwd=Path(root), model_path=root, **values)
            self._service = rai.AIService(own)
            if not lazy:
                self._load()
        except rai.ConfigurationError as exc:
            raise Unavailable(str(exc)) from exc

    def embed(self, texts: list[str]) -> Any:
        return self._service.embed(texts).vectors

    def rerank(self, query: str, documents: list[str]) -> Any:
        """The logits, in the order of the documents."""
        ranking = self._service.rerank(query, documents, raw_scores=True)
        scores = np.empty(len(documents), np.float32)
        for document in ranking:
            scores[document.index] = document.score
        return scores

    def _load(self) -> None:
        """Only what will be measured, by using it."""
        if self._service.settings.reranker_name == _PLAIN["reranker_name"]:
            self.embed(["a first text"])
        else:
            self.rerank("a question", ["a document"])
