"""The supervisor of a worker: starts it, watches it, ends it, and starts another one.

::

              prepare()                READY                    a batch, a canary
    (none) ───────────────> starting ─────────> up ────────────────────────────────> up
      ^                        │                 │ idle for long          │ renew(), close()
      │  reaped                │ a phase takes   │ its stream ended       │ its state is not heard
      │                        │ too long        v                        v
      └────────────────────────┴────────────── ending: asked, closed, SIGTERM, SIGKILL
                                                 │ survives even SIGKILL
                                                 v
                                              abandoned: no other one on this card while it lives
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from resilient_ai._telemetry.events import EventBus, WorkerAbandoned, WorkerLost, WorkerStarted
from resilient_ai._telemetry.log import log
from resilient_ai._workers.host.budget import RestartBudget
from resilient_ai._workers.host.card_lock import CardLock
from resilient_ai._workers.host.life import Life, WorkerDied, WorkerRetired, again
from resilient_ai._workers.host.process import WorkerProcess
from resilient_ai._workers.host.starting import explain_start, outlast
from resilient_ai._workers.host.tickets import Ticket
from resilient_ai._workers.host.watch import Watch, WorkerLimits
from resilient_ai._workers.messages import DeviceSpec, ModelSpec, hello_frame, load_frame
from resilient_ai._workers.wire import Frame, Kind
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, ServiceClosed

if TYPE_CHECKING:  # only tests and drills need it
    from resilient_ai._resilience.faults import Injector

__all__ = ["Worker", "WorkerState"]

Death = Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What is known of a worker now; sizes in bytes.

    `state`: "none" (not started yet, or idle for long), "starting", "up", "ending", "abandoned".
    `restarts` counts starts after the first. `ready_s` is what the last start took. `card` holds its
    name, total and free memory as last heard, `models` what each loaded model runs on.
    """

    state: str
    pid: int | None
    restarts: int
    ready_s: float | None
    last_death: str
    rss: int | None
    card: Mapping[str, Any] | None
    models: Mapping[str, Mapping[str, Any]]


class Worker:
    """One device's worker: at most one process at a time, with every model that is asked of it.

    Nothing is started before `prepare`. Thread-safe; in the child of a fork it is closed, and the
    parent's process is left alone.

    Args:
        spec: The device.
        command, env: Start the process; `version` is the library's, which both sides must share.
        limits: Times.
        budget: How often it may be restarted.
        lock: Held while a process of it lives, where only one may on this machine.
        injector: Makes starts and batches fail on purpose, in the process.
        events: Is told of starts and ends.
        clock: Seconds, monotonic.
        spawn: Starts a process, as `WorkerProcess.spawn` does.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        version: str,
        limits: WorkerLimits | None = None,
        budget: RestartBudget | None = None,
        lock: CardLock | None = None,
        injector: Injector | None = None,
        events: EventBus | None = None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[..., WorkerProcess] = WorkerProcess.spawn,
    ) -> None:
        self.spec = spec
        self._command = command
        self._env = env
        self._version = version
        self._limits = limits if limits is not None else WorkerLimits()
        self._budget = budget if budget is not None else RestartBudget()
        self._lock = lock
        self.injector = injector
        self._events = events if events is not None else EventBus()
        self._clock = clock
        self._spawn = spawn
        self._mourners: list[Death] = []
        self._users: set[str] = set()
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._watch: Watch | None = None
        self._starting = False
        self._closed = False
        self._lives = 0
        self._abandoned: WorkerProcess | None = None
        self._ready_s: float | None = None
        self._last_death = ""
        _workers.add(self)

    def __repr__(self) -> str:
        state = self.state()
        return f"<Worker {self.spec.name} {state.state} pid={state.pid} restarts={state.restarts}>"

    def prepare(self, model: ModelSpec) -> Life:
        """A process that is up and has loaded `model`: the present one, or a new one. May take long.

        Raises why there is none: `DeviceUnavailable` for what only a person can mend,
        `DeviceFailed` for what another start may, the model's own error, `ServiceClosed`.
        """
        self._users.add(model.name)
        life = self._running() or self._start()
        with life.loading:
            if model.name not in life.models:
                life.models[model.name] = self._load(life, model)
        if model.name not in self._users:  # it was closed meanwhile, and could not be unloaded then
            self.leave(model.name)
        return life

    def life_with(self, model: str) -> Life:
        """The process that has loaded a model. Raises what the worker died of, or why it is not up."""
        watch = self._watch
        if watch is None:
            raise WorkerDied(self._last_death or "the worker is not running")
        if watch.life.death is not None:
            raise again(watch.life.death)
        if model not in watch.life.models:
            raise WorkerDied(f"the worker is starting, and has not loaded {model!r} yet")
        return watch.life

    def on_death(self, tell: Death) -> Callable[[], None]:
        """Have `tell(error)` called when a process that was up has died, before another is started.

        Call what is returned to have that end.
        """
        self._mourners.append(tell)
        return partial(self._mourners.remove, tell)

    def leave(self, model: str) -> None:
        """A model is not needed any more; with the last one the process ends."""
        self._users.discard(model)
        watch = self._watch
        if watch is None:
            return
        if not self._users:
            watch.life.fail(WorkerRetired("the worker's last model was closed"))
        elif watch.life.models.pop(model, None) is not None:
            watch.life.forget(model)

    def forgive(self) -> None:
        """Forget the starts so far: they were brought about on purpose, and say nothing of the device."""
        self._budget.reset()

    def state(self) -> WorkerState:
        with self._changed:
            watch, abandoned = self._watch, self._still_abandoned()
            life = watch.life if watch is not None else None
            if life is None:
                name = "abandoned" if abandoned is not None else "none"
            else:
                name = "ending" if life.death is not None else "up" if life.is_up else "starting"
            process = life.process if life is not None else abandoned
            report = {**(life.ready or {}), **life.report} if life is not None else {}
            return WorkerState(
                state=name,
                pid=None if process is None else process.pid,
                restarts=max(0, self._lives - 1),
                ready_s=self._ready_s,
                last_death=self._last_death,
                rss=report.get("rss"),
                card=report.get("card"),
                models={} if life is None else dict(life.models),
            )

    def close(self, timeout: float = 2.0) -> None:
        """End the process and wait for that, at most `timeout` seconds. May be called twice."""
        with self._changed:
            self._closed = True
            # Who is about to start a process soon has one that can be ended.
            self._changed.wait_for(lambda: self._watch is not None or not self._starting, timeout)
            watch = self._watch
        if watch is not None:
            watch.life.fail(WorkerRetired("the worker was closed"))
            watch.join(timeout)

    # -- starting -------------------------------------------------------------------------------

    def _running(self) -> Life | None:
        """The process that is up; None when the caller is the one to start another."""
        with self._changed:
            while True:
                if self._closed:
                    raise ServiceClosed("this worker was closed, or is its parent process's")
                self._check_abandoned()
                if self._watch is not None and self._watch.life.is_up:
                    return self._watch.life
                if self._watch is None and not self._starting:
                    self._starting = True
                    return None
                # Somebody else starts one, or one is being ended.
                self._changed.wait(_LOOK)

    def _start(self) -> Life:
        try:
            life = self._launch()
            try:
                return self._greet(life)
            except DeviceFailed as exc:
                explained = explain_start(exc, self._command[0], has_spoken=life.has_spoken)
                if explained is exc:
                    raise
                raise explained from exc
        finally:
            with self._changed:
                self._starting = False
                self._changed.notify_all()

    def _launch(self) -> Life:
        if self._lock is not None and not self._lock.acquire():
            raise DeviceUnavailable(
                f"card {self.spec.card} has a worker of another process already ({self._lock.holder()}); "
                "AI_GPU_EXCLUSIVE=false allows one each"
            )
        try:
            self._spend()
            return self._attend(self._spawn(self._command, env=self._env))
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _spend(self) -> None:
        if wait := self._budget.take():
            raise WorkerDied(f"the worker died too often; it is started again in {wait:.1f} s")

    def _attend(self, process: WorkerProcess) -> Life:
        """Have a process watched that was started; end it where there is nobody to watch it."""
        life = Life(process, number=self._lives + 1, clock=self._clock)
        try:
            # Under the lock, or it could have ended before it is known to have begun.
            with self._changed:
                watch = Watch(life, self._limits, on_death=self._mourn, on_end=self._ended)
                watch.start()
                self._watch = watch
                self._lives += 1
                self._changed.notify_all()
        except (OSError, RuntimeError) as exc:
            process.end(ask=life.close)
            process.release()
            raise DeviceUnavailable(
                f"no worker process could be watched ({exc}): this program or its container is short of "
                "processes or open files. See: ulimit -a"
            ) from exc
        if self._closed:  # too early for `close` to end it
            life.fail(WorkerRetired("the worker was closed"))
        return life

    def _greet(self, life: Life) -> Life:
        began = self._clock()
        fault = self.injector.tell_start() if self.injector is not None else None
        hello = partial(hello_frame, spec=self.spec, version=self._version, fault=fault)
        try:
            ready = self._outlast(life, life.request(hello, within=_SEND), Kind.READY)
        except BaseException as exc:
            life.fail(WorkerRetired(f"the worker could not start: {exc}"))
            raise
        seconds = self._clock() - began
        with self._changed:
            self._ready_s = seconds
        life.ready = ready.meta
        self._events.emit(WorkerStarted(self.spec.name, life.process.pid, life.number, seconds * 1000))
        return life

    def _load(self, life: Life, model: ModelSpec) -> dict[str, Any]:
        """What the process says of a model that it has loaded."""
        ticket = life.request(partial(load_frame, spec=model), within=_SEND)
        try:
            return dict(self._outlast(life, ticket, Kind.LOADED).meta)
        finally:
            if not ticket.is_over:  # interrupted; what is loaded unknown to us could not be loaded again
                life.forget(model.name)

    def _outlast(self, life: Life, ticket: Ticket, kind: Kind) -> Frame:
        return outlast(life, ticket, kind, limit=self._limits.phase, clock=self._clock)

    def _check_abandoned(self) -> None:
        """Raise while a process that could not be killed is still there. Call with the lock held."""
        if (process := self._still_abandoned()) is not None:
            raise DeviceUnavailable(
                f"worker process {process.pid} cannot be killed: it hangs in the driver, and no "
                "other is started on its card. See the driver's messages (dmesg); a reboot may be needed"
            )

    def _still_abandoned(self) -> WorkerProcess | None:
        """The process that could not be killed, while it is there. Call with the lock held."""
        if self._abandoned is not None and self._abandoned.has_ended():
            self._abandoned.release()
            self._abandoned = None
            if self._lock is not None:
                self._lock.release()
        return self._abandoned

    # -- ending ---------------------------------------------------------------------------------

    def _mourn(self, life: Life, death: DeviceFailed) -> None:
        with self._changed:
            self._last_death = str(death)
        self._events.emit(WorkerLost(self.spec.name, life.process.pid, str(death)))
        for tell in tuple(self._mourners):
            try:
                tell(again(death))
            except Exception as exc:  # noqa: BLE001 - the others have to hear of it all the same
                log.error(
                    "whoever was told of a worker's death failed", device=self.spec.name, error=repr(exc)
                )

    def _ended(self, life: Life, *, gone: bool) -> None:
        """The process is reaped, or given up: the next one may be started."""
        process = life.process
        if gone:
            process.release()
        else:
            self._events.emit(WorkerAbandoned(self.spec.name, process.pid))
        if self._lock is not None and gone:
            self._lock.release()
        with self._changed:
            self._watch = None
            self._abandoned = None if gone else process
            self._changed.notify_all()

    def _forget(self) -> None:
        """In the child of a fork: let go of what is the parent's, without touching its process."""
        # The thread that held the lock did not come along.
        self._changed = threading.Condition()
        self._closed = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.forget()


_LOOK = 0.2
"""How often a caller who waits for another's start looks whether all is as it was."""

_SEND = 10.0
"""Seconds in which a process that is up takes a request of a few hundred bytes."""

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _forget_workers() -> None:
    for worker in list(_workers):
        worker._forget()  # noqa: SLF001 - its own class, after a fork


os.register_at_fork(after_in_child=_forget_workers)
