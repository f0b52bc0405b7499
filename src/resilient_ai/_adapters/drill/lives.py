"""When workers died and when the next ones were ready, as the service's events tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from resilient_ai._telemetry.events import Event, WorkerLost, WorkerStarted

if TYPE_CHECKING:
    from resilient_ai.service import AIService

__all__ = ["WorkerLives"]


class WorkerLives:
    """Notes the deaths and starts of a service's workers. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deaths: list[float] = []
        self._starts: list[float] = []

    @contextmanager
    def watch(self, service: AIService) -> Iterator[None]:
        unsubscribe = service.subscribe(self._note)
        try:
            yield
        finally:
            unsubscribe()

    def ready_after(self, since: float) -> float | None:
        """Seconds from the first death since an instant to the next start that came about."""
        died = next((at for at in self._deaths if at >= since), None)
        started = next((at for at in self._starts if died is not None and at >= died), None)
        return None if died is None or started is None else started - died

    def _note(self, event: Event) -> None:
        if isinstance(event, WorkerLost):
            self._deaths.append(self._clock())
        elif isinstance(event, WorkerStarted):
            self._starts.append(self._clock())
