"""The workers of one service: one for each card, shared by all its models."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.worker import Worker
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.errors import ServiceClosed

__all__ = ["WorkerHouse"]


class WorkerHouse:
    """Makes the worker of a card when the first model asks for it, with `hire(card)`. Thread-safe."""

    def __init__(self, cards: Sequence[int], hire: Callable[[int], Worker]) -> None:
        self._cards = tuple(cards)
        self._hire = hire
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._workers: dict[int, Worker] = {}
        self._loads: Counter[str] = Counter()  # of each model
        self._closed = False

    def backends(self, model: ModelSpec, *, limit: float) -> list[WorkerBackend]:
        """The model on each card; `limit` is the longest a batch may take, in seconds.

        Each time it is another model to the workers, so that one may take the place of another one of
        the same name while that is still in use.
        """
        model = replace(model, name=self._fresh_name(model.name))
        return [WorkerBackend(self._worker(card), model, limit=limit) for card in self._cards]

    def close(self) -> None:
        """End every worker, and wait a moment for it. May be called twice."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        for worker in workers:
            worker.close()

    def _fresh_name(self, name: str) -> str:
        with self._lock:
            self._loads[name] += 1
            number = self._loads[name]
        return name if number == 1 else f"{name}#{number}"

    def _worker(self, card: int) -> Worker:
        with self._lock:
            if self._closed:
                raise ServiceClosed("the service was closed while a model was loaded")
            if card not in self._workers:
                self._workers[card] = self._hire(card)
            return self._workers[card]
