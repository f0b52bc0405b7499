"""What the service can truthfully say of itself, as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from resilient_ai._inference.backend import GraphBackend
from resilient_ai._inference.buffers import PoolStatistics
from resilient_ai._models.keeping import LoadedModel
from resilient_ai._resilience.breaker import Snapshot
from resilient_ai._serving.cache import CacheFigures
from resilient_ai._serving.dispatcher import QueueSnapshot
from resilient_ai._serving.engine import Engine
from resilient_ai._serving.heap import resident_bytes
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._serving.stats import FallbackStats
from resilient_ai._serving.warming import WarmingBackend
from resilient_ai._telemetry.log import log
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.worker import WorkerState
from resilient_ai.errors import ModelNotFound
from resilient_ai.values import Backend

__all__ = ["BackendHealth", "Health", "ModelHealth", "Notices", "examine", "reference_health"]


Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """One device of a model: its breaker, how well it agrees with the last one, what it is up to.

    `breaker` is None for the last device, which has none. `agreement` is the lowest cosine with
    the last device's canary answers, None before it was measured. `share` is the part of the
    traffic a returning device gets; `lost_threads` were left behind in calls that hang. `worker` is
    the process that owns the device, None for one in this process. `engine` is what computes there and
    `precision` in which numbers, "" where that cannot be told from here. `why_out` is the class of failure
    that took it out of service, "" while it serves, and `trouble` what it was and what can be done.
    """

    device: str
    breaker: Snapshot | None
    agreement: float | None
    share: float
    lost_threads: int
    why_out: str
    trouble: str = ""
    worker: WorkerState | None = None
    engine: str = ""
    precision: str = ""


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One loaded model, the device that would serve it now, and every device it has, best first.

    `fingerprint` changes with any of the model's files, `revision` is that of the repository they came
    from, `weight_bytes` what the weights take in memory, and `calls` the number that have it now.
    """

    name: str
    kind: str
    device: str
    backends: tuple[BackendHealth, ...]
    stats: FallbackStats
    fingerprint: str
    revision: str | None
    weight_bytes: int
    calls: int


@dataclass(frozen=True, slots=True)
class Health:
    """A snapshot of the service, JSON-able with `to_dict`.

    `live`: calls end. `ready`: the embedding model is loaded, so a call does not wait for it.
    `status` is "unhealthy" when not live, "degraded" when something that should be up is not. `memory`
    is that of the buffers; `resident_bytes` is what this process holds in all, where that can be told.
    """

    status: Status
    live: bool
    ready: bool
    models: tuple[ModelHealth, ...]
    queue: QueueSnapshot
    cache: CacheFigures
    memory: PoolStatistics
    resident_bytes: int | None
    uptime_s: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Notices:
    """What is not as it was asked for: said once in the log, and for as long as it lasts in `Health`."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}  # a set that keeps its order

    def add(self, text: str) -> None:
        if text not in self._texts:
            self._texts[text] = None
            log.warning(text)

    def texts(self) -> tuple[str, ...]:
        return tuple(self._texts)


def examine(engine: Engine, *, main_model: str, warnings: tuple[str, ...]) -> Health:
    """Look at a running engine; takes no device's time."""
    loaded = [(known, engine.registry.loaded(known.name)) for known in engine.registry.list_loaded()]
    models = tuple(_model(model, known) for known, model in loaded if model is not None)
    live = engine.dispatcher.is_live
    out = [backend for model in models for backend in model.backends if backend.why_out]
    told = (*warnings, *map(_out_of_service, out))
    status: Status = "unhealthy" if not live else "degraded" if told else "healthy"
    return Health(
        status=status,
        live=live,
        ready=live and _is_loaded(engine, main_model),
        models=models,
        queue=engine.dispatcher.snapshot(),
        cache=engine.cache.figures(),
        memory=engine.pool.statistics(),
        resident_bytes=resident_bytes(),
        uptime_s=engine.uptime,
        warnings=tuple(dict.fromkeys(told)),
    )


def _out_of_service(backend: BackendHealth) -> str:
    text = f"{backend.device} is out of service: {backend.why_out}"
    return f"{text}: {backend.trouble}" if backend.trouble else text


def _model(model: HostedModel, known: LoadedModel) -> ModelHealth:
    manager = model.backend
    guarded = tuple(
        BackendHealth(
            device=device.name,
            breaker=device.breaker.snapshot(),
            agreement=device.agreement,
            share=device.ramp.share if device.is_in_service else 0.0,
            lost_threads=device.lane.lost_threads,
            why_out="" if device.is_in_service else device.out_of_service_because or "taken out by hand",
            trouble=device.trouble,
            worker=device.backend.state() if isinstance(device.backend, WorkerBackend) else None,
        )
        for device in manager.guarded
    )
    reference = reference_health(manager.reference)
    return ModelHealth(
        name=known.name,
        kind=model.card.kind,
        device=manager.device,
        backends=(*guarded, reference),
        stats=manager.stats(),
        fingerprint=known.origin.fingerprint,
        revision=known.origin.revision,
        weight_bytes=known.origin.nbytes,
        calls=known.users,
    )


def reference_health(backend: Backend) -> BackendHealth:
    """What is known of a last device, which nothing guards."""
    serving = backend.serving if isinstance(backend, WarmingBackend) else backend
    known = serving if isinstance(serving, GraphBackend) else None
    return BackendHealth(
        backend.device,
        None,
        None,
        1.0,
        0,
        "",
        engine=known.engine if known is not None else "",
        precision=known.precision if known is not None else "",
    )


def _is_loaded(engine: Engine, name: str) -> bool:
    """Whether a model is in memory, by any of its names."""
    try:
        return engine.registry.loaded(name) is not None
    except ModelNotFound:
        return False
