"""Sessions that are on the device they claim to be on.

ONNX Runtime's own habits that are switched off or checked here: it falls back to the CPU without
an error, replaces a session behind one's back, takes every core of the host, and raises fifteen
exception classes that share no base.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from resilient_ai._inference.arenas import is_shared, why_not_shared
from resilient_ai._inference.paging import start_paging_in
from resilient_ai._inference.providers import GpuOptions, device_key
from resilient_ai._inference.recipe import Cancellation, Recipe, settle_tensorrt
from resilient_ai._inference.runtime import (
    gpu_is_installed,
    load_runtime,
    preload_libraries,
    runtime_version,
)
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, InvalidInput, ResilientAIError

__all__ = ["Cancellation", "GpuOptions", "Session", "gpu_is_installed", "runtime_version"]

_PAGING_ENDS: Final = 1.0
"""Seconds that closing waits for weights that are still being read from the disk."""
_NOT_SHRUNK: Final = "memory arena shrink list"  # what ONNX Runtime says, before it runs anything


class Session:
    """One loaded graph. `run` is thread-safe and releases the GIL while the graph runs.

    `gpu` None means the CPU. `threads` is the number of threads one run may use; `fuse` lets ONNX
    Runtime rewrite the graph, which helps published exports and harms graphs built for it.
    `prepack` copies the weights into the order that the kernels read them in. Without it they stay
    where they are, which for a graph of this library is its file mapped into memory: the session is
    there at once, its weights take no memory of the process's own, and runs take longer.
    `cancellation` may end the loading, which then raises `DeviceUnavailable`.
    """

    def __init__(
        self,
        graph: Path,
        *,
        threads: int,
        gpu: GpuOptions | None = None,
        fuse: bool = True,
        spin: bool = True,
        prepack: bool = True,
        cancellation: Cancellation | None = None,
    ) -> None:
        self._notes: list[str] = []
        self._rebuilding = threading.Lock()  # held while a session replaces one whose engine failed
        if gpu is not None:
            preload_libraries()
            gpu, note = settle_tensorrt(gpu)
            self._note(note)
        if reason := why_not_shared(gpu):
            self._note(f"no shared arena: {reason}")
        self._recipe = Recipe(
            graph,
            threads,
            gpu,
            fuse,
            spin,
            shared=is_shared(gpu),
            prepack=prepack,
            cancellation=cancellation,
        )
        self._session: Any = self._make()
        # What is mapped is read by the first run anyway: better before it, and while others work.
        self._paging = None if prepack else start_paging_in(graph.with_name(f"{graph.name}.data"))
        _sessions.add(self)
        inputs = self._session.get_inputs()
        self.inputs: Mapping[str, str] = {i.name: i.type for i in inputs}
        self.input_shapes: Mapping[str, tuple[int | str | None, ...]] = {
            i.name: tuple(i.shape) for i in inputs
        }
        self.outputs: Mapping[str, tuple[int | str | None, ...]] = {
            o.name: tuple(o.shape) for o in self._session.get_outputs()
        }

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers really in use, best first."""
        return tuple(self._live().get_providers())

    @property
    def nodes(self) -> Mapping[str, int]:
        """How many of the graph's nodes each provider runs; empty where the runtime cannot tell."""
        session = self._live()
        if not hasattr(session, "get_provider_graph_assignment_info"):  # not in every version
            return {}
        counts: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not as it was asked for, a sentence each: without TensorRT, without a shared arena."""
        return tuple(self._notes)

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], *, shrink: bool = False
    ) -> list[NDArray[Any]]:
        """Run the graph once; return the named outputs in order.

        `shrink` gives the memory that the arena does not need back to the device afterwards, which
        takes time: for after an outlier. A TensorRT engine that fails is left behind here and the
        batch runs without.

        Raises `InvalidInput` when the graph refuses the feeds and `DeviceFailed`, with the
        runtime's own text, for everything that goes wrong after that.
        """
        session = self._live()
        try:
            return list(session.run(list(outputs), dict(feeds), self._shrinking() if shrink else None))
        except Exception as exc:  # its exception classes share no base
            if shrink and _NOT_SHRUNK in str(exc):
                self._note(f"its memory cannot be shrunk: {exc}")
                shrink = False
            elif type(exc).__name__ != "EPFail" or not self._leave_tensorrt(session, exc):
                raise _run_error(exc) from exc
        return self.run(outputs, feeds, shrink=shrink)

    def close(self) -> None:
        """Let go of the graph; a run that is under way finishes first. May be called twice."""
        self._session = None
        if self._paging is not None:
            self._paging.join(_PAGING_ENDS)

    def _live(self) -> Any:
        session = self._session
        if session is None:
            raise DeviceUnavailable("this session was closed, or its process forked; load the model again")
        return session

    def _abandon(self) -> None:
        """Give the session up without freeing it, in the child of a fork.

        Its threads did not come along, and its destructor would wait for them: it joins thread ids
        that a new session's threads may have been given meanwhile. So it must never be freed.
        """
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            self._session = None

    def _make(self) -> Any:
        """A session by the recipe, or by a simpler one where that fails."""
        while True:
            try:
                return self._recipe.make()
            except ResilientAIError as exc:
                simpler = self._recipe.simpler(exc)
                if simpler is None:
                    raise
                self._recipe, note = simpler
                self._note(note)

    def _leave_tensorrt(self, failed: Any, error: Exception) -> bool:
        """Replace a session whose engine failed; False where TensorRT was not in use.

        It is never run again: it would crash.
        """
        with self._rebuilding:
            if self._session is not failed:  # another thread was here first, or `close` was called
                return True
            if not self._recipe.wants_tensorrt:
                return False
            recipe, note = self._recipe.without_tensorrt(error)
            fresh = recipe.make()
            if self._session is failed:
                self._recipe, self._session = recipe, fresh
                self._note(note)
            return True

    def _note(self, text: str | None) -> None:
        if text is not None and text not in self._notes:
            self._notes.append(text)

    def _shrinking(self) -> Any:
        options = load_runtime().RunOptions()
        device = device_key(self._recipe.gpu)
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", device)
        return options


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _abandon_sessions() -> None:
    for session in list(_sessions):
        session._abandon()  # noqa: SLF001 - its own class, after a fork


os.register_at_fork(after_in_child=_abandon_sessions)


def _run_error(error: Exception) -> ResilientAIError:
    if type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError):
        return InvalidInput(f"the graph refused the batch: {error}")
    return DeviceFailed(str(error))
