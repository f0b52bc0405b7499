"""Everything that serves calls in one process: models, queue, cache, memory; closed as one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import numpy as np

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._models.cards import Kind
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._models.residents import Lease, Retired
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.calls import Call, RerankCall
from resilient_ai._serving.deadlines import Deadlines
from resilient_ai._serving.dispatcher import Dispatcher
from resilient_ai._serving.hosting import Closable, HostedModel
from resilient_ai._serving.jobs import CallFuture, Job, Progress, fail_all, internal_error
from resilient_ai._serving.loading import BackgroundLoader
from resilient_ai._serving.threads import start_thread
from resilient_ai._telemetry.events import EventBus, ModelReplaced, ModelUnloaded
from resilient_ai.errors import DeadlineExceeded, Overloaded, ResilientAIError, ServiceClosed
from resilient_ai.values import Priority

__all__ = ["Engine"]

Answer = TypeVar("Answer")

Name = str | Callable[[], str]
"""A model's name; or where to ask for it, when it may change until the call has its model."""


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
        self._events = events if events is not None else EventBus()
        self._loader = BackgroundLoader(registry.held)
        self._deadlines = Deadlines(clock)
        self.dispatcher = Dispatcher(
            pool, queue_size=queue_size, runners=runners, events=self._events, clock=clock
        )
        self._lock = threading.Lock()
        self._waiting_for_model = 0  # guarded by `_lock`
        self._closed = False

    def submit(
        self,
        name: Name,
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
        self._check_open()
        job: Job[Answer] = Job(
            deadline=None if timeout is None else self._clock() + timeout,
            priority=priority,
            progress=progress,
            clock=self._clock,
        )
        chosen, lease = self._choose(name)
        if lease is None:
            self._start_after_load(chosen, call, job)
        else:
            self._start(lease, call, job)
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
        return _wait(self._loader.request(self.registry.get(name).name), name, timeout)

    def reload(self, name: str, timeout: float | None = None) -> bool:
        """Put a model that is loaded anew in the place of the present one, if its files or card changed.

        The new one answers for the first time after it has been proved; calls under way end on the old
        one, which is closed after the last of them. False when nothing changed, or it is not loaded.

        Raises what loading and proving raise, the present one goes on serving then; or
        `DeadlineExceeded` after `timeout` seconds, while it goes on in the background.
        """
        self._check_open()
        name = self.registry.get(name).name
        swapped: Future[bool] = Future()
        start_thread(partial(self._swap, name, swapped), f"resilient-ai-swap-{name}")
        return _wait(swapped, name, timeout)

    def prove(self, name: str, role: Kind, timeout: float | None = None) -> None:
        """Load a model and see that it can play its part: that of an embedding model, or of what reranks.

        Raises what is wrong with it: `ConfigurationError` for the wrong kind of model, and what loading
        and a call may raise. A model that was not loaded before is not kept then.
        """
        was_loaded = self.registry.loaded(name) is not None
        give_up = math.inf if timeout is None else self._clock() + timeout
        self.load(name, timeout)
        try:
            with self.registry.held(name) as model:
                model.prove()
                if role == "embedding":
                    model.dimension  # noqa: B018 - raises for a model that has none
                else:
                    self._prove_reranking(name, give_up - self._clock())
        except BaseException:
            if not was_loaded:
                self.retire(name)
            raise

    def retire(self, name: str) -> None:
        """Close a model as soon as the calls that have it are done; another call would load it again."""
        old = self.registry.retire(name)
        if old is not None:
            start_thread(partial(self._see_off, name, old), f"resilient-ai-retire-{name}")

    def close(self, timeout: float = 5.0) -> None:
        """End every call and free every model. May be called twice."""
        self._closed = True
        self._loader.close()
        self.dispatcher.close(timeout)
        self._deadlines.close()
        self.registry.close()
        # Only now: a runner with a batch on a device that hangs comes back when the device is closed.
        self.dispatcher.join(_JOIN)
        if self._devices is not None:
            self._devices.close()
        self.cache.clear()
        self.pool.trim()

    def _check_open(self) -> None:
        if self._closed:
            raise ServiceClosed("the service is closed; create a new one")

    def _prove_reranking(self, name: str, seconds: float) -> None:
        call = RerankCall(_CANARY, (_CANARY,), top_k=None, instruction=None, raw_scores=True)
        timeout = None if seconds == math.inf else max(0.0, seconds)
        self.submit(name, call, timeout=timeout, priority="interactive", progress=None).result()

    def _choose(self, name: Name) -> tuple[str, Lease[HostedModel] | None]:
        """The model's name, and a lease of it if it is loaded.

        A name that may change is asked for again when its model is not there: it may have left just
        because another one took its place.
        """
        if isinstance(name, str):
            return name, self.registry.lease(name)
        chosen = name()
        while (lease := self.registry.lease(chosen)) is None and (now := name()) != chosen:
            chosen = now
        return chosen, lease

    def _start(self, lease: Lease[HostedModel], call: Call[Answer], job: Job[Answer]) -> None:
        """Start a call on its model, which stays until the call is over."""
        try:
            model = lease.model
            route = call.route(model)
            job.route(route.lane, route.items, route.finish)
            if route.items:
                self.dispatcher.submit(job)
            else:
                job.complete(np.empty((0, model.card.dimension or 1), np.float32))
        except BaseException:
            lease.release()
            raise
        job.future.add_done_callback(lambda _: lease.release())

    def _start_after_load(self, name: str, call: Call[Answer], job: Job[Answer]) -> None:
        name = self.registry.get(name).name
        with self._lock:
            if self._waiting_for_model >= self._queue_size:
                raise Overloaded(f"{self._waiting_for_model} calls wait for {name!r} to load already")
            future = self._loader.request(name)
            self._waiting_for_model += 1
        future.add_done_callback(partial(self._loaded, name, call, job))

    def _loaded(self, name: str, call: Call[Answer], job: Job[Answer], future: Future[HostedModel]) -> None:
        with self._lock:
            self._waiting_for_model -= 1
        if job.is_over:
            return
        try:
            future.result()
            lease = self.registry.lease(name)
            if lease is not None:
                self._start(lease, call, job)
            else:  # it was loaded, and had to leave before this call's turn came
                self._start_after_load(name, call, job)
        except BaseException as exc:  # noqa: BLE001 - the caller must hear of it, whatever it was
            fail_all([job], exc)

    def _swap(self, name: str, swapped: Future[bool]) -> None:
        began = self._clock()
        try:
            old = self.registry.replace(name, check=HostedModel.prove)
        except BaseException as exc:  # noqa: BLE001 - it is the waiting caller's to raise
            swapped.set_exception(exc)
            return
        if old is not None:
            self._events.emit(ModelReplaced(name, (self._clock() - began) * 1000))
        swapped.set_result(old is not None)
        if old is not None:
            self._see_off(name, old)

    def _see_off(self, name: str, old: Retired[HostedModel]) -> None:
        old.close()
        self._events.emit(ModelUnloaded(name))


_CANARY = "A canary."

_JOIN = 1.0
"""Seconds for a batch that nobody waits for; a CPU is done with one sooner."""

Outcome = TypeVar("Outcome")


def _wait(future: Future[Outcome], name: str, timeout: float | None) -> Outcome:
    """What comes of loading a model. Raises its error, or `DeadlineExceeded`."""
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
