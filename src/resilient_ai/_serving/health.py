"""What the service can truthfully say of itself, as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from resilient_ai._inference.buffers import PoolStatistics
from resilient_ai._serving.cache import CacheFigures
from resilient_ai._serving.dispatcher import QueueSnapshot
from resilient_ai._serving.engine import Engine
from resilient_ai._telemetry.log import log

__all__ = ["Health", "ModelHealth", "Notices", "examine"]


Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One loaded model and the device that really runs it."""

    name: str
    kind: str
    device: str


@dataclass(frozen=True, slots=True)
class Health:
    """A snapshot of the service, JSON-able with `to_dict`.

    `live`: calls end. `ready`: the embedding model is loaded, so a call does not wait for it.
    `status` is "unhealthy" when not live, "degraded" when something that should be up is not.
    """

    status: Status
    live: bool
    ready: bool
    models: tuple[ModelHealth, ...]
    queue: QueueSnapshot
    cache: CacheFigures
    memory: PoolStatistics
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
    loaded = [engine.registry.loaded(known.name) for known in engine.registry.list_loaded()]
    models = tuple(
        ModelHealth(model.card.name, model.card.kind, model.backend.device) for model in loaded if model
    )
    live = engine.dispatcher.is_live
    status: Status = "unhealthy" if not live else "degraded" if warnings else "healthy"
    return Health(
        status=status,
        live=live,
        ready=live and any(model.name == main_model for model in models),
        models=models,
        queue=engine.dispatcher.snapshot(),
        cache=engine.cache.figures(),
        memory=engine.pool.statistics(),
        uptime_s=engine.uptime,
        warnings=warnings,
    )
