"""The workers of one service: one for each card, shared by all its models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from resilient_ai._workers.backend import WorkerBackend
from resilient_ai._workers.messages import ModelSpec
from resilient_ai._workers.worker import Worker

__all__ = ["WorkerHouse"]


class WorkerHouse:
    """Makes the worker of a card when the first model asks for it, with `hire(card)`. Thread-safe."""

    def __init__(self, cards: Sequence[int], hire: Callable[[int], Worker]) -> None:
        self._cards = tuple(cards)
        self._hire = hire
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}  # guarded by `_lock`

    def backends(self, model: ModelSpec, *, limit: float) -> list[WorkerBackend]:
        """The model on each card; `limit` is the longest a batch may take, in seconds."""
        return [WorkerBackend(self._worker(card), model, limit=limit) for card in self._cards]

    def close(self) -> None:
        """End every worker, and wait a moment for it. May be called twice."""
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.close()

    def _worker(self, card: int) -> Worker:
        with self._lock:
            if card not in self._workers:
                self._workers[card] = self._hire(card)
            return self._workers[card]
