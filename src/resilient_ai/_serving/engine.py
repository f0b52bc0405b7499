"""Everything that serves calls in one process: models, queue, cache, memory; closed as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.calls import Call
from resilient_ai._serving.deadlines import Deadlines
from resilient_ai._serving.dispatcher import Dispatcher
from resilient_ai._serving.hosting import Closable, HostedModel
from resilient_ai._serving.jobs import CallFuture, Job, Progress, fail_all, internal_error
from resilient_ai._serving.loading import BackgroundLoader
from resilient_ai._telemetry.events import EventBus
from resilient_ai.errors import DeadlineExceeded, Overloaded, ResilientAIError, ServiceClosed
from resilient_ai.values import Priority

__all__ = ["Engine"]

Answer = TypeVar("Answer")


class Engine:
    """Takes checked calls, brings them together with their model, and sees that each one ends.

    Thread-safe. `queue_size` bounds the calls that wait, for their turn or for their model. `devices`
    are closed after the models.
    """

    def __init__(
        self,
        registry: ModelRegistry[HostedModel],
        pool: BufferPool,
        cache: VectorCache,
        *,
        queue_size: int,
        runners: int = 1,
        events: EventBus | None = None,
        devices: Closable | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.pool = pool
        self.cache = cache
        self._devices = devices
        self._started = clock()
        self._clock = clock
        self._queue_size = queue_size
        self._loader = BackgroundLoader(self._load)
        self._deadlines = Deadlines(clock)
        self.dispatcher = Dispatcher(pool, queue_size=queue_size, runners=runners, events=events, clock=clock)
        self._lock = threading.Lock()
        self._waiting_for_model = 0  # guarded by `_lock`
        self._closed = False

    def submit(
        self,
        name: str,
        call: Call[Answer],
        *,
        timeout: float | None,
        priority: Priority,
        progress: Progress | None,
    ) -> CallFuture[Answer]:
        """Start a call on the named model; never blocks on work.

        Raises what can be told at once: `ModelNotFound`, `InvalidInput`, `Overloaded`,
        `ServiceClosed`. Everything else comes through the future.
        """
        if self._closed:
            raise ServiceClosed("the service is closed; create a new one")
        job: Job[Answer] = Job(
            deadline=None if timeout is None else self._clock() + timeout,
            priority=priority,
            progress=progress,
            clock=self._clock,
        )
        model = self.registry.loaded(name)
        if model is None:
            self._start_after_load(name, call, job)
        else:
            self._start(model, call, job)
        if job.deadline is not None:
            self._deadlines.watch(job.deadline, job)
        return job.future

    @property
    def uptime(self) -> float:
        """Seconds since the engine was made."""
        return self._clock() - self._started

    def load(self, name: str, timeout: float | None = None) -> HostedModel:
        """Load a model now. Raises its error, or `DeadlineExceeded` after `timeout` seconds."""
        model = self.registry.loaded(name)
        if model is not None:
            return model
        future = self._loader.request(self.registry.get(name).name)
        try:
            return future.result(timeout)
        except ResilientAIError:
            raise
        except Exception as exc:
            if isinstance(exc, TimeoutError) and not future.done():
                raise DeadlineExceeded(
                    f"{name!r} was not loaded within {timeout} s; it goes on in the background, "
                    "or fetch it beforehand with `resilient-ai models pull`"
                ) from exc
            raise internal_error(exc) from exc

    def close(self, timeout: float = 5.0) -> None:
        """End every call and free every model. May be called twice."""
        self._closed = True
        self._loader.close()
        self.dispatcher.close(timeout)
        self._deadlines.close()
        for loaded in self.registry.list_loaded():
            self.registry.unload(loaded.name)
        if self._devices is not None:
            self._devices.close()
        self.cache.clear()
        self.pool.trim()

    def _start(self, model: HostedModel, call: Call[Answer], job: Job[Answer]) -> None:
        route = call.route(model)
        job.route(route.lane, route.items, route.finish)
        if route.items:
            self.dispatcher.submit(job)
        else:
            job.complete(np.empty((0, model.card.dimension or 1), np.float32))

    def _start_after_load(self, name: str, call: Call[Answer], job: Job[Answer]) -> None:
        name = self.registry.get(name).name
        with self._lock:
            if self._waiting_for_model >= self._queue_size:
                raise Overloaded(f"{self._waiting_for_model} calls wait for {name!r} to load already")
            future = self._loader.request(name)
            self._waiting_for_model += 1
        future.add_done_callback(partial(self._loaded, call, job))

    def _load(self, name: str) -> HostedModel:
        model = self.registry.load(name)
        if self._closed:  # meanwhile, and `close` could not see it
            self.registry.unload(name)
        return model

    def _loaded(self, call: Call[Answer], job: Job[Answer], future: Future[HostedModel]) -> None:
        with self._lock:
            self._waiting_for_model -= 1
        if job.is_over:
            return
        try:
            self._start(future.result(), call, job)
        except BaseException as exc:  # noqa: BLE001 - the caller must hear of it, whatever it was
            fail_all([job], exc)
