"""What happens inside, as frozen values, and whoever wants to hear of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

__all__ = [
    "AgreementMeasured",
    "BatchSplit",
    "BreakerMoved",
    "CallShed",
    "DeviceFailure",
    "EngineChosen",
    "Event",
    "EventBus",
    "FellBack",
    "ModelReplaced",
    "ModelUnloaded",
    "Observer",
    "Probed",
    "RampMoved",
    "WorkerAbandoned",
    "WorkerLost",
    "WorkerStarted",
]

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; the fields of the subclasses say what. `level` is how grave it is."""

    level: ClassVar[Level] = "info"

    @property
    def name(self) -> str:
        return type(self).__name__

    def to_dict(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class BreakerMoved(Event):
    """A device's breaker changed its state."""

    level: ClassVar[Level] = "warning"
    device: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceFailure(Event):
    """A device failed with a batch; `hint` says what a person can do, where something can be done."""

    level: ClassVar[Level] = "warning"
    device: str
    failure_class: str
    text: str
    hint: str
    rows: int


@dataclass(frozen=True, slots=True)
class FellBack(Event):
    """A batch went to a lower device than the one that should be up."""

    level: ClassVar[Level] = "warning"
    served_by: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class BatchSplit(Event):
    """A batch did not fit into a device's memory and is run in halves from now on."""

    device: str
    tokens: int
    ceiling: int


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """The background prober tried a device with its canaries."""

    device: str
    passed: bool
    reason: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class AgreementMeasured(Event):
    """How well a device's canary answers agree with the reference device's (1 is perfect)."""

    device: str
    agreement: float
    limit: float


@dataclass(frozen=True, slots=True)
class EngineChosen(Event):
    """A model was opened on the CPU on one of two engines; the figures are OpenVINO's beside ONNX Runtime's.

    They are 0 where it could not be tried; `reason` says why then.
    """

    engine: str
    graph: str
    reason: str
    speedup: float
    agreement: float


@dataclass(frozen=True, slots=True)
class RampMoved(Event):
    """A device that came back gets another share of the traffic, from 0 to 1."""

    device: str
    share: float


@dataclass(frozen=True, slots=True)
class CallShed(Event):
    """A call was refused because it could not have been served in time."""

    level: ClassVar[Level] = "warning"
    priority: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class ModelReplaced(Event):
    """A model took the place of an earlier one of its name, whose calls may still be under way."""

    model: str
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class ModelUnloaded(Event):
    """A model that was replaced, or is not named any more, was closed after its last call."""

    model: str


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """A device's worker process is up; `life` counts them, from 1."""

    device: str
    pid: int
    life: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class WorkerLost(Event):
    """A device's worker process that was up died, or had to be ended; `reason` is what it died of."""

    level: ClassVar[Level] = "warning"
    device: str
    pid: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerAbandoned(Event):
    """A device's worker process could not be killed; no other one is started while it is there."""

    level: ClassVar[Level] = "error"
    device: str
    pid: int


Observer = Callable[[Event], None]


class EventBus:
    """Tells every observer of every event, isolated from one another and from the emitter.

    Thread-safe. Observers run on the emitting thread and must be quick; one that raises is
    counted in `errors` and stays subscribed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the ticket of each subscription; replaced, never changed, under `_lock`.
        self._observers: dict[object, Observer] = {}
        self.errors = 0

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Add an observer; call what is returned to remove it."""
        ticket = object()
        with self._lock:
            self._observers = {**self._observers, ticket: observer}

        def unsubscribe() -> None:
            with self._lock:
                self._observers = {key: kept for key, kept in self._observers.items() if key is not ticket}

        return unsubscribe

    def emit(self, event: Event) -> None:
        for observer in self._observers.values():
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - an observer's error is not the service's
                with self._lock:
                    self.errors += 1
