"""One model on a worker, as a backend and as the lane that its batches take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from resilient_ai._resilience.waiting import LaneBusy, never, wait_out
from resilient_ai._workers.host.life import Life, WorkerDied
from resilient_ai._workers.host.tickets import Ticket
from resilient_ai._workers.host.worker import Worker, WorkerState
from resilient_ai._workers.messages import ModelSpec, read_answer, read_error, run_frame
from resilient_ai._workers.wire import Frame, Kind, ProtocolError
from resilient_ai.errors import ModelCorrupt, ServiceClosed
from resilient_ai.values import Batch, Vectors

__all__ = ["WorkerBackend"]


class WorkerBackend:
    """Runs a model's batches in a worker process. Thread-safe; several models may share a worker.

    The worker knows the model by the name in `model`, whatever the name in a batch.
    It is a `Lane` as well: a process can be ended, so no thread has to be risked on it. `limit` is
    for `run`, in seconds.
    """

    def __init__(self, worker: Worker, model: ModelSpec, *, limit: float = 30.0) -> None:
        self.worker = worker
        self._model = model
        self._limit = limit
        self._last: Life | None = None
        self._undo: list[Callable[[], None]] = []  # of `on_death`
        self._closed = False

    @property
    def device(self) -> str:
        return self.worker.spec.name

    @property
    def lost_threads(self) -> int:
        """None is ever left behind: the process ends instead."""
        return 0

    def state(self) -> WorkerState:
        return self.worker.state()

    def run(self, batch: Batch) -> Vectors:
        """Run a batch, within the limit, on a worker that is started where there is none."""
        self.prepare()
        return self.run_within(batch, patience=self._limit, hang_after=self._limit)

    def run_within(
        self, batch: Batch, *, patience: float, hang_after: float, leave_if: Callable[[], bool] = never
    ) -> Vectors:
        """Run a batch as `Lane.run_within` has it. Raises `WorkerDied` at once where no worker is up."""
        self._check_ids(batch)
        if patience <= 0:
            raise LaneBusy("the callers have no time left")
        life = self._last = self.worker.life_with(self._model.name)
        injector = self.worker.injector
        fault = injector.tell_call(batch) if injector is not None else None
        named = replace(batch, model=self._model.name)
        make = partial(run_frame, batch=named, fault=fault)
        size = int(batch.input_ids.size)
        ticket = life.request(make, line=self._model.name, size=size, within=min(patience, hang_after))
        wait_out(
            _Waiting(life, ticket),
            patience=patience,
            hang_after=hang_after,
            leave_if=leave_if,
            clock=time.monotonic,
        )
        return self._read(life, ticket.result())

    def under_way(self) -> tuple[int, float] | None:
        life = self._last
        return None if life is None else life.under_way(self._model.name)

    def prepare(self) -> None:
        """Start the worker and load the model, unless both are there. May take long."""
        if self._closed:
            raise ServiceClosed("this model was closed")
        self.worker.prepare(self._model)

    def renew(self) -> None:
        """End the process that the last batch ran on, and with it what others have on it."""
        life = self._last
        if life is not None:
            life.fail(WorkerDied("the worker was ended: what it did last is not to be trusted"))

    def on_death(self, tell: Callable[[BaseException], None]) -> None:
        self._undo.append(self.worker.on_death(tell))

    def close(self) -> None:
        """Unload the model; a worker without any model ends."""
        self._closed = True
        while self._undo:
            self._undo.pop()()
        self.worker.leave(self._model.name)

    def _check_ids(self, batch: Batch) -> None:
        """On a GPU, an id without a row in the table of embeddings would poison the context."""
        rows = self._model.vocabulary
        if rows is None:
            return
        for ids in (batch.input_ids, batch.shared_ids):
            if ids is None or not ids.size:
                continue
            # Read without a sign, what is negative is larger than all: one look at each id is enough.
            if int(ids.view(np.uint64).max()) >= rows:
                least, most = int(ids.min()), int(ids.max())
                raise ModelCorrupt(
                    f"token id {least if least < 0 else most} is none of the {rows} that "
                    f"{self._model.name!r} knows: its tokenizer belongs to another model. "
                    "Fetch both anew: resilient-ai models pull"
                )

    @staticmethod
    def _read(life: Life, frame: Frame) -> Vectors:
        if frame.kind is Kind.ERROR:
            raise read_error(frame)
        try:
            return read_answer(frame)
        except ProtocolError as exc:
            life.fail(exc)
            raise


class _Waiting:
    """A ticket together with the life it waits for."""

    __slots__ = ("_life", "_ticket")

    def __init__(self, life: Life, ticket: Ticket) -> None:
        self._life = life
        self._ticket = ticket

    @property
    def begun(self) -> float | None:
        return self._ticket.begun

    def wait(self, seconds: float) -> bool:
        return self._life.wait(self._ticket, seconds)

    def end(self, *, error: BaseException) -> bool:
        return self._ticket.end(error=error)
