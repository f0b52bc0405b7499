"""Faults on purpose in a worker, where they are permitted; where they are not, their code is not loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resilient_ai._workers.child.outbox import Outbox
from resilient_ai._workers.wire import Frame
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Backend, Batch, Vectors

if TYPE_CHECKING:
    from resilient_ai._resilience.fault_kinds import Fault

__all__ = ["Sabotage"]


class Sabotage:
    """Makes what a fault says happen; without a fault everything goes its normal way. Thread-safe.

    `permitted` loads what is needed at once, so that the first fault comes as quickly as the others.
    """

    def __init__(self, *, permitted: bool) -> None:
        self._mischief: Any = None
        if permitted:
            from resilient_ai._workers.child import mischief  # noqa: PLC0415 - a worker in earnest lacks it

            self._mischief = mischief

    def read(self, meta: Mapping[str, Any] | None) -> Fault | None:
        """The fault that a frame's meta describes. Raises `ConfigurationError` where none is permitted."""
        if meta is None:
            return None
        if self._mischief is None:
            raise ConfigurationError(
                "a fault was sent to a worker that does not permit any; set AI_ALLOW_FAULT_INJECTION=true"
            )
        fault: Fault = self._mischief.read_fault(meta)
        return fault

    def begin_phase(self, fault: Fault | None, phase: str) -> None:
        """Let a start fail, or not, at the beginning of one of its phases."""
        if fault is not None:
            self._mischief.start_fault(fault, phase)

    def run(self, backend: Backend, batch: Batch, fault: Fault | None) -> Vectors:
        if fault is None:
            return backend.run(batch)
        answer: Vectors = self._mischief.run_with_fault(backend, batch, fault)
        return answer

    def send(self, outbox: Outbox, frame: Frame, fault: Fault | None) -> None:
        if fault is None:
            outbox.send(frame)
        else:
            outbox.deliver(lambda channel: self._mischief.send_answer(channel, frame, fault))
