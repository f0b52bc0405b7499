"""The drill itself: one fault after another, under traffic that never stops."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from resilient_ai._adapters.drill.devices import DrilledDevice, drill_settings, drilled_devices
from resilient_ai._adapters.drill.judge import Judge
from resilient_ai._adapters.drill.lives import WorkerLives
from resilient_ai._adapters.drill.outside import OUTSIDE
from resilient_ai._adapters.drill.plans import NotedPlan, blames_caller, seconds_of
from resilient_ai._adapters.drill.report import Course, DrillReport, latency_ms, tally
from resilient_ai._adapters.drill.requests import REQUESTS
from resilient_ai._adapters.drill.traffic import Call, Traffic
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai.errors import ConfigurationError, DeviceFailed

if TYPE_CHECKING:
    from resilient_ai.service import AIService
    from resilient_ai.settings import AISettings

__all__ = ["QUICK", "Drill", "DrillOptions", "fault_names", "run_drill"]

QUICK = ("poisoned", "hang", "nan")
"""A fault of each sort: an error, no answer, a wrong answer."""

_WARM_CALLS = 60
"""Answers of the device before the first fault: what is usual must be known to tell what is not."""
_LOOK_EVERY = 0.02
_ALONE = 1.0
"""Seconds of traffic on the CPU alone before each fault: what else the machine does changes by then."""
_SETTLE_WITHIN = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions:
    """How to drill.

    Attributes:
        faults: Names of `fault_names()`, in order; empty for all that the device can have.
        seconds: How long each fault lasts.
        threads: Callers at once.
        seed: Decides what they ask for.
        verify: The service's mode of finding wrong values during the drill.
        keep_recovery: Keep the configured recovery time; otherwise it is at most a second.

    Raises:
        ConfigurationError: A value makes no sense; the message names it.
    """

    faults: tuple[str, ...] = ()
    seconds: float = 2.0
    threads: int = 4
    seed: int = 0
    verify: Literal["every", "sampled", "off"] = "every"
    keep_recovery: bool = False

    def __post_init__(self) -> None:
        known = fault_names(process=True)
        if unknown := [name for name in self.faults if name not in known]:
            raise ConfigurationError(f"there is no fault {unknown[0]!r}; choose of: {', '.join(known)}")
        if not 0 < self.seconds <= 3600:  # noqa: PLR2004 - an hour; NaN fails as well
            raise ConfigurationError(f"seconds={self.seconds!r} must be above 0 and at most 3600")
        if not 1 <= self.threads <= 256:  # noqa: PLR2004 - more callers would measure the threads
            raise ConfigurationError(f"threads={self.threads!r} must be from 1 to 256")


def fault_names(*, process: bool) -> tuple[str, ...]:
    """The faults there are; without `process` those that a device in this process can have."""
    return (*FaultPlan.presets(process=process), *(OUTSIDE if process else ()))


def run_drill(
    settings: AISettings,
    options: DrillOptions | None = None,
    *,
    make_service: Callable[[AISettings], AIService] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> DrillReport:
    """Drill a service of these settings, made for the purpose and closed afterwards; blocks until done.

    Where the settings do not insist on a GPU, a simulated one is made to fail. `tell` gets lines
    of progress.

    Raises:
        ConfigurationError: The service has no device that could be made to fail.
        DeviceFailed: The last device does not give the same answer twice, so nothing can be judged.
    """
    options = options or DrillOptions()
    own = drill_settings(settings, verify=options.verify, keep_recovery=options.keep_recovery, tell=tell)
    with (make_service or _open_service)(own) as service:
        service.load()
        return Drill(service, options, tell=tell).run()


def _open_service(settings: AISettings) -> AIService:
    from resilient_ai.service import AIService  # noqa: PLC0415 - brings the inference engine

    return AIService(settings)


class Drill:
    """One drill of one loaded service. Not thread-safe; `run` it once."""

    def __init__(
        self,
        service: AIService,
        options: DrillOptions,
        *,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._service = service
        self._options = options
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._devices = drilled_devices(service)
        policy = self._devices[0].policy
        self._judge = Judge(self._devices[0].agreement_limit)
        self._patience = 2 * policy.gpu_timeout + 10.0
        # A probe may just have begun, and hang with the fault it was to find gone.
        self._back_within = _SETTLE_WITHIN + 2 * (policy.recovery_time + policy.gpu_timeout)
        self._faults = self._choose(options.faults)
        self._lives = WorkerLives(clock)

    def run(self) -> DrillReport:
        """Drill every fault and count."""
        began = self._clock()
        self._learn()
        courses: list[Course] = []
        marks: list[int] = []
        with self._lives.watch(self._service), self._traffic() as traffic:
            self._warm_up(traffic)
            for name in self._faults:
                alone = self._ask_reference(traffic)
                marks.append(len(traffic.calls()))
                courses.append(self._run_fault(name, traffic, alone))
        calls = traffic.calls()
        # What was asked before the first fault counts with it, and what is asked after each as well.
        shares = [calls[start:end] for start, end in pairwise([0, *marks[1:], len(calls)])]
        results = tuple(map(tally, courses, shares))
        errors = {
            course.fault: dict(Counter(call.error for call in share if call.error))
            for course, share in zip(courses, shares, strict=True)
        }
        service = describe(self._service, self._options, self._devices[0], courses, self._clock() - began)
        return DrillReport(results, {**service, "errors": errors})

    def _traffic(self) -> Traffic:
        options = self._options
        return Traffic(
            self._service, self._judge, threads=options.threads, patience=self._patience, seed=options.seed
        )

    def _learn(self) -> None:
        """Learn the right answers from the last device alone; it must give each of them twice."""
        self._tell("learning the right answers from the CPU alone")
        with self._out_of_service():
            for request in REQUESTS:
                answer = request.submit(self._service).result(self._patience)
                self._judge.learn(request, answer)
                again = request.submit(self._service).result(self._patience)
                if not self._judge.is_right(request, again):
                    raise DeviceFailed(
                        "the CPU alone did not give the same answer twice, so nothing can be judged by it; "
                        "its memory or its ONNX Runtime may be faulty: compare with another machine"
                    )

    def _ask_reference(self, traffic: Traffic) -> list[Call]:
        """How the last device alone serves this traffic: the calls it answered in a while."""
        with self._out_of_service():
            began, seen = self._clock(), len(traffic.calls())
            self._sleep(min(_ALONE, self._options.seconds))
            return [call for call in traffic.calls(seen) if call.begun >= began and call.outcome == "right"]

    @contextmanager
    def _out_of_service(self) -> Iterator[None]:
        # One that is out already stays so: it must not come back without having proved itself.
        serving = [device.guarded.breaker for device in self._devices if device.guarded.is_in_service]
        for breaker in serving:
            breaker.force_open()
        try:
            yield
        finally:
            for breaker in serving:
                breaker.reset()

    def _warm_up(self, traffic: Traffic) -> None:
        self._tell("warming up the device")
        name = self._devices[0].name
        warm = self._wait(
            lambda: sum(name in call.served_by for call in traffic.calls()) >= _WARM_CALLS, _SETTLE_WITHIN
        )
        if not warm:
            raise DeviceFailed(f"{name} does not serve before any fault: {self._devices[0].trouble}")

    def _choose(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The faults to drill; what kills a process is for a worker's only."""
        possible = fault_names(process=self._devices[0].worker is not None)
        if impossible := [name for name in wanted if name not in possible]:
            raise ConfigurationError(
                f"{impossible[0]} happens to a worker's process, and {self._devices[0].name} has none: "
                "AI_GPU_IN_PROCESS=false gives it one"
            )
        return wanted or possible

    def _run_fault(self, name: str, traffic: Traffic, alone: list[Call]) -> Course:
        """Let a fault happen for its time; wait until the device serves again, wholly if it does so soon."""
        seen = len(traffic.calls())
        for device in self._devices:
            device.forgive()
        self._tell(f"{name}: on")
        on = self._clock()
        struck = self._strike(name) if name in OUTSIDE else self._follow(FaultPlan.preset(name))
        off = self._clock()
        back_after = self._wait_for_return(traffic, seen, off)
        self._wait(lambda: all(device.is_back for device in self._devices), _SETTLE_WITHIN)
        missing = back_after is None
        how = f"not back: {self._devices[0].trouble}" if missing else f"back after {back_after:.2f} s"
        self._tell(f"{name}: off, {how}")
        ready_after = self._lives.ready_after(on)
        return Course(name, self._devices[0].name, on, off, struck, back_after, ready_after, tuple(alone))

    def _follow(self, preset: FaultPlan) -> float | None:
        """Let a plan have its time; when it first struck, unless its errors are the callers' own."""
        plan = NotedPlan.of(preset)
        try:
            self._set_plan(plan)
            self._sleep(seconds_of(plan, self._options.seconds))
        finally:
            self._set_plan(None)
        return plan.struck[0] if plan.struck and not blames_caller(plan) else None

    def _strike(self, name: str) -> float:
        """Do something to the worker's process from outside, and let its time pass."""
        worker, began = self._devices[0].worker, self._clock()
        assert worker is not None
        OUTSIDE[name](worker, lambda until: self._wait(until, self._back_within))
        self._sleep(max(0.0, began + self._options.seconds - self._clock()))
        return began

    def _set_plan(self, plan: FaultPlan | None) -> None:
        # Models on one worker share what injects its faults; set twice, a plan would begin anew.
        for set_plan in dict.fromkeys(device.set_plan for device in self._devices):
            set_plan(plan)

    def _wait_for_return(self, traffic: Traffic, seen: int, off: float) -> float | None:
        """Seconds from `off` to the device's first answer to a call that began after it."""

        def answers() -> list[float]:
            later = (call for call in traffic.calls(seen) if call.begun >= off)
            return [call.ended - off for call in later if self._devices[0].name in call.served_by]

        return min(answers()) if self._wait(lambda: bool(answers()), self._back_within) else None

    def _wait(self, until: Callable[[], bool], most: float) -> bool:
        """Look until it is so; False when it is not after `most` seconds."""
        give_up = self._clock() + most
        while not until():
            if self._clock() >= give_up:
                return False
            self._sleep(_LOOK_EVERY)
        return True


def describe(
    service: AIService, options: DrillOptions, device: DrilledDevice, courses: list[Course], seconds: float
) -> dict[str, Any]:
    """What the figures were got from."""
    settings, policy = service.settings, device.policy
    alone = [call for course in courses for call in course.alone]
    return {
        "model": settings.model_name,
        "reranker": settings.reranker_name,
        "device": device.name,
        "verify": policy.verify,
        "agreement": device.guarded.agreement,
        "agreement_limit": device.agreement_limit,
        "recovery_time_s": policy.recovery_time,
        "gpu_timeout_s": policy.gpu_timeout,
        "error_threshold": policy.error_threshold,
        "seconds_per_fault": options.seconds,
        "threads": options.threads,
        "seed": options.seed,
        "cpu_alone_p50_ms": latency_ms(alone, 50),
        "cpu_alone_p99_ms": latency_ms(alone, 99),
        "elapsed_s": round(seconds, 1),
        "warnings": list(service.health().warnings),
    }
