"""A backend that is there at once, and makes room for a faster one while it serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from resilient_ai._inference.session import Cancellation
from resilient_ai._serving.threads import start_thread
from resilient_ai._telemetry.log import log
from resilient_ai.errors import Overloaded, ServiceClosed
from resilient_ai.values import Backend, Batch, Vectors

__all__ = ["WarmingBackend"]

_LONGEST_END = 5.0
"""Seconds that closing waits for what is being made; it is told to stop, and mostly does at once."""


class WarmingBackend:
    """Serves on `first` until the backend that `make` gives is ready. Thread-safe.

    Both must give the same answers. The second is made on a thread of its own once the first batch was
    answered, so it takes nothing from that, nor from a model that nobody asks. No batch waits or fails:
    those under way end on `first`, which is closed after the last of them. What fails while it is being
    made is logged, and `first` goes on.
    """

    def __init__(self, first: Backend, make: Callable[[Cancellation], Backend]) -> None:
        self._make = make
        self._cancellation = Cancellation()
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._serving = _Held(first)
        self._thread: threading.Thread | None = None
        self._has_begun = False
        self._closed = False

    @property
    def device(self) -> str:
        return self._serving.backend.device

    @property
    def serving(self) -> Backend:
        """The backend that gets the next batch."""
        return self._serving.backend

    def run(self, batch: Batch) -> Vectors:
        with self._lock:
            if self._closed:
                raise ServiceClosed("this model was closed; ask its service for it again")
            held = self._serving
            held.users += 1
        try:
            return held.backend.run(batch)
        finally:
            self._leave(held)

    def close(self) -> None:
        """Stop what is being made, and close what serves after the last batch under way."""
        with self._lock:
            self._closed = self._has_begun = True
            thread = self._thread
            done = self._serving.retire()
        self._cancellation.cancel()
        if done:
            self._serving.backend.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LONGEST_END)

    def _warm(self) -> None:
        try:
            fresh = self._make(self._cancellation)
        except Exception as exc:  # noqa: BLE001 - a thread's last stop; the first backend serves on
            if not self._closed:
                _tell(exc)
            return
        with self._lock:
            # Whichever of the two does not serve any more is closed here.
            old = _Held(fresh) if self._closed else self._serving
            if not self._closed:
                self._serving = _Held(fresh)
            done = old.retire()
        if done:
            old.backend.close()

    def _leave(self, held: _Held) -> None:
        """Let go of a backend; after the first batch begin with the other one."""
        with self._lock:
            held.users -= 1
            done = held.retired and not held.users
            if not self._has_begun:
                self._has_begun = True
                self._thread = self._begin()
        if done:
            held.backend.close()

    def _begin(self) -> threading.Thread | None:
        try:
            return start_thread(self._warm, "resilient-ai-warm-up")
        except Overloaded as exc:  # the batch has its answer all the same
            _tell(exc)
            return None


@dataclass(slots=True)
class _Held:
    """A backend, and how many batches are on it now."""

    backend: Backend
    users: int = 0
    retired: bool = False

    def retire(self) -> bool:
        """Let no further batch come; whether nobody is on it any more."""
        self.retired = True
        return not self.users


def _tell(error: Exception) -> None:
    log.warning("a model keeps its fast start and slower pace: it could not be packed", error=str(error))
