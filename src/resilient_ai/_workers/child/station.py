"""The models of a worker: each frame about one goes to the thread it lives in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilient_ai._workers.child.runner import ModelRunner, Tools
from resilient_ai._workers.messages import read_load
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import ConfigurationError, ModelNotFound

if TYPE_CHECKING:
    from resilient_ai._resilience.fault_kinds import Fault

__all__ = ["Station", "resident_bytes"]


class Station:
    """Models by name, each with its runner. Thread-safe; nothing here waits for a device but `report`.

    Args:
        tools: What the runners work with.
        card: Tells the card's name and its total and free bytes; None where there is none.
        start_fault: How the first loading is to fail.
    """

    def __init__(
        self,
        tools: Tools,
        *,
        card: Callable[[], Mapping[str, Any] | None] = lambda: None,
        start_fault: Fault | None = None,
    ) -> None:
        self._tools = tools
        self._card = card
        self._lock = threading.Lock()
        # Guarded by `_lock`, as is putting anything to a runner: nothing comes after its last frame.
        self._runners: dict[str, ModelRunner] = {}
        self._start_fault = start_fault

    def take(self, frame: Frame) -> None:
        """See to it that a LOAD, RUN or UNLOAD is answered; does not wait for it.

        Raises what is wrong with a frame that cannot even be begun with; answering it is the caller's.
        """
        if frame.kind is Kind.LOAD:
            self._load(frame)
        else:
            self._pass_on(frame)

    def report(self, request: Frame) -> Frame:
        """The STATE of the process, which answers a REPORT. Takes as long as the card takes to answer."""
        card = self._card()
        with self._lock:
            models = [name for name, runner in self._runners.items() if runner.is_loaded]
        return Frame(Kind.STATE, request.id, {"rss": resident_bytes(), "card": card, "models": models})

    def _load(self, frame: Frame) -> None:
        spec = read_load(frame)
        with self._lock:
            if spec.name in self._runners:
                raise ConfigurationError(f"the model {spec.name!r} is loaded already; unload it first")
            fault, self._start_fault = self._start_fault, None
            runner = ModelRunner(frame, spec, self._tools, start_fault=fault, on_failed_load=self._forget)
            self._runners[spec.name] = runner
        runner.start()

    def _pass_on(self, frame: Frame) -> None:
        name = str(frame.meta.get("model"))
        with self._lock:
            runner = self._runners.get(name)
            if runner is None:
                raise ModelNotFound(f"the model {name!r} is not loaded in this worker")
            if frame.kind is Kind.UNLOAD:
                del self._runners[name]
            runner.put(frame)

    def _forget(self, runner: ModelRunner) -> None:
        """Free the name of a model that could not be loaded, unless it was unloaded meanwhile."""
        with self._lock:
            name = next((name for name, known in self._runners.items() if known is runner), None)
            if name is not None:
                del self._runners[name]
                runner.put(None)


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """The memory that this process really holds."""
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
