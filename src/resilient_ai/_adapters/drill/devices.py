"""The service under drill: settings that permit it, and the devices in it that can be made to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai._resilience.faults import FaultyBackend
from resilient_ai._serving.canary import default_limit
from resilient_ai._serving.health import reference_health
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.tier import GuardedDevice
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.host.worker import Worker
from resilient_ai.errors import ConfigurationError

if TYPE_CHECKING:
    from resilient_ai.service import AIService
    from resilient_ai.settings import AISettings

__all__ = ["DrilledDevice", "drill_settings", "drilled_devices"]

_SHORT_RECOVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class DrilledDevice:
    """A model's first device: how it is guarded, and the means to make it fail.

    `worker` is the process that owns it, None for a device in this process.
    """

    guarded: GuardedDevice
    set_plan: Callable[[FaultPlan | None], None]
    policy: FallbackPolicy
    agreement_limit: float
    worker: Worker | None

    @property
    def name(self) -> str:
        return self.guarded.name

    @property
    def is_back(self) -> bool:
        """Whether it serves, and gets all of the traffic."""
        return self.guarded.is_in_service and self.guarded.ramp.is_full

    def forgive(self) -> None:
        """Let what it suffered so far, on purpose, not lengthen the wait for its next return."""
        self.guarded.forgive()
        if self.worker is not None:
            self.worker.forgive()

    @property
    def trouble(self) -> str:
        return self.guarded.out_of_service_because or "it is in service, but no answer came from it"


def drill_settings(
    settings: AISettings,
    *,
    verify: Literal["every", "sampled", "off"],
    keep_recovery: bool,
    tell: Callable[[str], None],
) -> AISettings:
    """The same settings for a service that may be made to fail; tells what is different.

    Nothing comes from the cache, and a plan of the settings' own is left out.
    """
    changes: dict[str, object] = {
        "allow_fault_injection": True,
        "fault_plan": None,
        "cache_size": 0,
        "fallback": "cpu",
        "verify": verify,
    }
    if settings.use_gpu in {"auto", "never"}:
        changes["use_gpu"] = "simulated"
        tell(
            f"AI_USE_GPU={settings.use_gpu}: a simulated GPU is drilled; AI_USE_GPU=always drills a real one"
        )
    if not keep_recovery and settings.recovery_time_ms > _SHORT_RECOVERY_MS:
        changes["recovery_time_ms"] = _SHORT_RECOVERY_MS
        tell(f"recovery time {settings.recovery_time:g} s is 1 s for the drill; --keep-recovery keeps it")
    if settings.log_level == "warning":
        changes["log_level"] = "error"  # every failed-over batch is a warning, and here meant to happen
    return settings.model_copy(update=changes)


def drilled_devices(service: AIService) -> tuple[DrilledDevice, ...]:
    """The first device of each loaded model, that of the embedding model first.

    Raises:
        ConfigurationError: A model has none beside the CPU, or it cannot be made to fail.
    """
    main = service.settings.model_name
    names = [known.name for known in service.registry.list_loaded()]
    names.sort(key=lambda name: name != service.registry.get(main).name)
    return tuple(_drilled_device(service, name) for name in names)


def _drilled_device(service: AIService, name: str) -> DrilledDevice:
    model = service.registry.loaded(name)
    assert model is not None
    manager = model.backend
    if not manager.guarded:
        why = "; ".join(service.health().warnings) or "the CPU is its only device"
        raise ConfigurationError(
            f"there is nothing to drill: {name} has no GPU ({why}). "
            "Set AI_USE_GPU=simulated to drill a simulated one"
        )
    guarded = manager.guarded[0]
    backend = guarded.backend
    worker = backend.worker if isinstance(backend, WorkerBackend) else None
    faults = (
        worker.injector if worker is not None else backend if isinstance(backend, FaultyBackend) else None
    )
    if faults is None:
        raise ConfigurationError(f"{guarded.name} of {name} cannot be made to fail: fault injection is off")
    numbers = (service.settings.precision, reference_health(manager.reference).precision)
    limit = manager.policy.agreement or min(default_limit(each, model.card.kind) for each in numbers)
    return DrilledDevice(guarded, faults.set_plan, manager.policy, limit, worker)
