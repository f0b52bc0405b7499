"""Puts the parts together as the settings say: the one place that knows them all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.session import GpuOptions
from resilient_ai._models.keeping import KeepRules
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving.assembly import Assembler
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.devices import Devices, InProcess, InWorkers, Opener, no_device
from resilient_ai._serving.engine import Engine
from resilient_ai._serving.engines import Engines
from resilient_ai._serving.hints import Hints
from resilient_ai._serving.hosting import BatchLimits
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.trials import Trials
from resilient_ai._telemetry.events import EventBus
from resilient_ai._telemetry.log import log
from resilient_ai._version import __version__
from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai._workers.host.card_lock import CardLock
from resilient_ai._workers.host.command import worker_command, worker_env
from resilient_ai._workers.host.house import WorkerHouse
from resilient_ai._workers.host.watch import WorkerLimits
from resilient_ai._workers.host.worker import Worker
from resilient_ai._workers.messages import DeviceSpec
from resilient_ai.values import Backend

if TYPE_CHECKING:
    from resilient_ai._resilience.fault_plan import FaultPlan
    from resilient_ai._resilience.faults import Injector
    from resilient_ai.settings import AISettings

__all__ = ["build_engine"]

_MEGABYTE = 1 << 20
_ENGINES = ".tensorrt"
_HINTS = ".hints"
_SHORTEST_WAIT = 1.0
_LOCKS = Path(tempfile.gettempdir()) / "resilient-ai-locks"
"""One folder for every process of the machine that may want a card."""

_RUNNERS_WITH_GPU = 3
"""While one waits for a device that may hang and one for its lane, one is free for the CPU."""


def build_engine(settings: AISettings, warn: Callable[[str], None], events: EventBus) -> Engine:
    """Put the parts together as the settings say."""
    threads = min(settings.parallel_workers, usable_cores())
    house = WorkerHouse(settings.gpu_device_ids, partial(_hire, settings, threads, events))
    assemble = Assembler(
        threads=threads,
        max_tokens=settings.max_length,
        limits=BatchLimits(settings.token_budget, settings.batch_size),
        precision=settings.precision,
        start=settings.start,
        spin=settings.spin,
        engines=_engines(settings, threads, events),
        token_outputs=settings.late_interaction,
        devices=_devices(settings, house, threads),
        hints=Hints(settings.model_path.absolute() / _HINTS),
        policy=_policy(settings),
        events=events,
        # Nobody asked for a GPU with "auto" alone; a missing one is no news then.
        on_missing_gpu=log.info if settings.use_gpu == "auto" and not settings.worker_python else warn,
    )
    return Engine(
        ModelRegistry(
            settings.model_path,
            mirror=settings.mirror_url,
            offline=settings.offline,
            loader=assemble,
            keep=KeepRules(settings.keep_models, settings.memory_limit_mb * _MEGABYTE),
        ),
        BufferPool(settings.memory_pool_size * _MEGABYTE),
        VectorCache(settings.cache_size),
        queue_size=settings.queue_size,
        runners=1 if settings.use_gpu == "never" else _RUNNERS_WITH_GPU + len(settings.gpu_device_ids) - 1,
        events=events,
        devices=house,
    )


def _engines(settings: AISettings, threads: int, events: EventBus) -> Engines:
    trials = Trials(settings.model_path.absolute() / _HINTS)
    return Engines(
        settings.cpu_engine,
        settings.precision,
        threads,
        trials,
        events,
        agreement=settings.agreement or None,
    )


def _devices(settings: AISettings, house: WorkerHouse, threads: int) -> Devices:
    if settings.use_gpu == "never":
        return Devices(no_device)
    simulated = settings.use_gpu == "simulated"
    opener: Opener = InWorkers(
        house, settings.gpu_timeout, needs_cuda=not simulated and settings.worker_python is None
    )
    if settings.gpu_in_process:
        opener = InProcess(
            "simulated" if simulated else "gpu",
            None if simulated else _gpu_options(settings),
            threads,
            spoil=_spoil(settings),
        )
    return Devices(
        opener,
        required=settings.use_gpu in {"always", "simulated"},
        cuda=not simulated,
        token_budget=None if simulated else settings.gpu_token_budget,
        buckets=not simulated,
    )


def _gpu_options(settings: AISettings) -> GpuOptions:
    return GpuOptions(
        device_id=settings.gpu_device_ids[0],
        allow_growth=settings.gpu_allow_growth,
        tensorrt=settings.use_tensorrt == "true",
    )


def _hire(settings: AISettings, threads: int, events: EventBus, card: int) -> Worker:
    """The worker of a card; nothing is started yet."""
    python = None if settings.worker_python is None else str(settings.worker_python)
    simulated = settings.use_gpu == "simulated"
    name = "simulated" if simulated else "gpu"
    return Worker(
        DeviceSpec(
            name=name if len(settings.gpu_device_ids) == 1 else f"{name}:{card}",
            kind="cpu" if simulated else "cuda",
            card=card,
            memory_fraction=settings.gpu_memory_fraction,
            allow_growth=settings.gpu_allow_growth,
            tensorrt=settings.use_tensorrt,
            tensorrt_cache=str(settings.model_path.absolute() / _ENGINES),
            threads=threads,
            injectable=settings.allow_fault_injection,
        ),
        command=worker_command(python),
        env=worker_env(os.environ, python=python),
        version=__version__,
        limits=WorkerLimits(phase=settings.worker_phase, idle=settings.worker_idle),
        budget=RestartBudget(max_wait=max(settings.recovery_time, _SHORTEST_WAIT)),
        lock=CardLock(_LOCKS, card) if settings.gpu_exclusive else None,
        injector=_injector(settings),
        events=events,
    )


def _injector(settings: AISettings) -> Injector | None:
    """Makes the worker's calls and starts fail on purpose, where that is allowed."""
    if not settings.allow_fault_injection:
        return None
    from resilient_ai._resilience.faults import Injector  # noqa: PLC0415 - nobody else should pay for it

    return Injector(_fault_plan(settings))


def _spoil(settings: AISettings) -> Callable[[Backend], Backend] | None:
    """Makes the calls of a device in this process fail on purpose, where that is allowed."""
    if not settings.allow_fault_injection:
        return None
    from resilient_ai._resilience.faults import FaultyBackend  # noqa: PLC0415 - as above

    return partial(FaultyBackend, plan=_fault_plan(settings))


def _fault_plan(settings: AISettings) -> FaultPlan | None:
    from resilient_ai._resilience.fault_plan import FaultPlan  # noqa: PLC0415 - as above

    plan = settings.fault_plan_json()
    return None if plan is None else FaultPlan.parse(plan)


def _policy(settings: AISettings) -> FallbackPolicy:
    return FallbackPolicy(
        gpu_timeout=settings.gpu_timeout,
        error_threshold=settings.error_threshold,
        recovery_time=settings.recovery_time,
        auto_retry=settings.auto_retry,
        max_retries=settings.max_retries,
        fallback=settings.fallback,
        verify=settings.verify,
        agreement=settings.agreement or None,
        hedge=settings.hedge,
    )
