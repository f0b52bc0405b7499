"""One model in a worker, and the thread it lives in: loaded there, run there, let go there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from resilient_ai._workers.child.diagnosis import Canary, Examiner
from resilient_ai._workers.child.lifeline import DeadMansSwitch
from resilient_ai._workers.child.loading import Loaded, Loader
from resilient_ai._workers.child.outbox import Outbox
from resilient_ai._workers.child.sabotage import Sabotage
from resilient_ai._workers.exits import ExitCode
from resilient_ai._workers.messages import ModelSpec, answer_frame, read_run
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import ModelNotFound

if TYPE_CHECKING:
    from resilient_ai._resilience.fault_kinds import Fault

__all__ = ["ModelRunner", "Tools"]


@dataclass(frozen=True, slots=True)
class Tools:
    """What the runners of a worker share."""

    outbox: Outbox
    loader: Loader
    examiner: Examiner
    sabotage: Sabotage
    switch: DeadMansSwitch
    clock: Callable[[], float] = time.perf_counter


class ModelRunner:
    """Loads one model and runs its batches, strictly in order, in a thread of its own.

    `put` is thread-safe and never blocks. Every frame is answered, once.

    Args:
        load: The frame that asks for the model.
        spec: The model.
        tools: What it works with.
        start_fault: How the loading is to fail.
        on_failed_load: Called before the host is told that the model could not be loaded.
    """

    def __init__(
        self,
        load: Frame,
        spec: ModelSpec,
        tools: Tools,
        *,
        start_fault: Fault | None = None,
        on_failed_load: Callable[[ModelRunner], None],
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._start_fault = start_fault
        self._on_failed_load = on_failed_load
        self._loaded: Loaded | None = None
        self._frames: SimpleQueue[Frame | None] = SimpleQueue()
        self._frames.put(load)
        self._thread = threading.Thread(target=self._work, name=f"model {spec.name}", daemon=True)

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def start(self) -> None:
        self._thread.start()

    def put(self, frame: Frame | None) -> None:
        """Add a RUN, or an UNLOAD, which is the last; so is None, which nobody has an answer to."""
        self._frames.put(frame)

    def _work(self) -> None:
        try:
            while self._serve_next():
                pass
        except BaseException:  # noqa: BLE001 - a thread that ends in silence leaves its host waiting
            self._tools.outbox.give_up()

    def _serve_next(self) -> bool:
        """Answer the next frame; False when it was the last. Keeps nothing of it while it waits for more."""
        frame = self._frames.get()
        if frame is None:
            return False
        try:
            self._serve(frame)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the host is told
            self._fail(frame, exc)
        return frame.kind is not Kind.UNLOAD

    def _serve(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.LOAD:
                self._load(frame)
            case Kind.RUN:
                self._run(frame)
            case _:
                self._unload(frame)

    def _load(self, frame: Frame) -> None:
        tools = self._tools

        def announce(phase: str, **details: Any) -> None:
            tools.outbox.phase(frame.id, phase, **details)
            tools.sabotage.begin_phase(self._start_fault, phase)

        self._loaded = tools.loader.load(self._spec, announce)
        tools.outbox.send(Frame(Kind.LOADED, frame.id, self._loaded.report))

    def _run(self, frame: Frame) -> None:
        tools = self._tools
        if self._loaded is None:
            raise ModelNotFound(f"the model {self._spec.name!r} is not loaded in this worker")
        try:
            batch, meta = read_run(frame)
        except ProtocolError as exc:
            # Not of the device, and the stream is still in step: the next batch may be one.
            tools.outbox.error(frame.id, exc)
            return
        fault = tools.sabotage.read(meta)
        with tools.switch:
            began = tools.clock()
            answer = tools.sabotage.run(self._loaded.backend, batch, fault)
            seconds = tools.clock() - began
        tools.sabotage.send(tools.outbox, answer_frame(frame.id, replace(answer, seconds=seconds)), fault)

    def _unload(self, frame: Frame) -> None:
        if self._loaded is not None:
            # Freeing a session holds the GIL, and waits for the device.
            with self._tools.switch:
                self._loaded.backend.close()
                self._loaded = None
        self._tools.outbox.send(Frame(Kind.UNLOADED, frame.id))

    def _fail(self, frame: Frame, error: BaseException) -> None:
        """Tell the host; end the process if nothing will work in it any more.

        The error keeps the session of a failed load alive until then: freeing one whose device is
        dead would abort the process before it has told why.
        """
        tools = self._tools
        with tools.switch:
            diagnosis = tools.examiner.examine(error, self._canary())
        if frame.kind is Kind.LOAD:
            self._on_failed_load(self)
        if diagnosis.fatal:
            tools.outbox.last_error(frame.id, diagnosis.error, ExitCode.POISONED)
        else:
            tools.outbox.error(frame.id, diagnosis.error)

    def _canary(self) -> Canary | None:
        loaded = self._loaded
        return None if loaded is None else lambda: loaded.backend.run(loaded.canary)
