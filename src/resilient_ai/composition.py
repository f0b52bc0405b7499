"""Puts the parts together as the settings say: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._inference.cores import usable_cores
from resilient_ai._inference.session import GpuOptions
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai._serving.assembly import Assembler, Devices
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.engine import Engine
from resilient_ai._serving.hosting import BatchLimits
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._telemetry.events import EventBus
from resilient_ai._telemetry.log import log
from resilient_ai.settings import LATE_INTERACTION, AISettings

__all__ = ["build_engine"]

_MEGABYTE = 1 << 20

_RUNNERS_WITH_GPU = 3
"""While one waits for a device that may hang and one for its lane, one is free for the CPU."""


def build_engine(settings: AISettings, warn: Callable[[str], None], events: EventBus) -> Engine:
    """Put the parts together as the settings say."""
    assemble = Assembler(
        threads=min(settings.parallel_workers, usable_cores()),
        max_tokens=settings.max_length,
        limits=BatchLimits(settings.token_budget, settings.batch_size),
        precision=settings.precision,
        token_outputs=settings.reranker_name == LATE_INTERACTION,
        devices=_devices(settings),
        policy=_policy(settings),
        events=events,
        on_missing_gpu=warn if settings.use_gpu == "always" else log.info,
    )
    return Engine(
        ModelRegistry(
            settings.model_path, mirror=settings.mirror_url, offline=settings.offline, loader=assemble
        ),
        BufferPool(settings.memory_pool_size * _MEGABYTE),
        VectorCache(settings.cache_size),
        queue_size=settings.queue_size,
        runners=1 if settings.use_gpu == "never" else _RUNNERS_WITH_GPU,
        events=events,
    )


def _devices(settings: AISettings) -> Devices:
    gpu = GpuOptions(
        device_id=settings.gpu_device_ids[0],
        allow_growth=settings.gpu_allow_growth,
        tensorrt=settings.use_tensorrt == "true",
    )
    plan = settings.fault_plan_json()
    return Devices(
        gpu=gpu if settings.use_gpu in {"auto", "always"} else None,
        required=settings.use_gpu == "always",
        simulated=settings.use_gpu == "simulated",
        injectable=settings.allow_fault_injection,
        faults=None if plan is None else FaultPlan.parse(plan),
    )


def _policy(settings: AISettings) -> FallbackPolicy:
    return FallbackPolicy(
        gpu_timeout=settings.gpu_timeout,
        error_threshold=settings.error_threshold,
        recovery_time=settings.recovery_time,
        auto_retry=settings.auto_retry,
        max_retries=settings.max_retries,
        fallback=settings.fallback,
        verify=settings.verify,
        hedge=settings.hedge,
    )
