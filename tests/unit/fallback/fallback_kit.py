"""Managers over fakes, errors as the presets raise them, and time that passes only when told."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from resilient_ai._resilience.breaker import State
from resilient_ai._resilience.fault_kinds import ERROR_CLASSES
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai.testing import FakeBackend, FakeClock, FaultPlan, batch_of
from resilient_ai.values import Vectors

ROWS = ([1, 2, 3], [4, 5, 6, 7], [8, 9])
BATCH = batch_of(*ROWS)
ONE_ROW = batch_of([1, 2, 3])
CANARY = batch_of([101, 7, 102], [101, 8, 9, 102])
LARGEST = batch_of(*([101, *range(row, row + 30), 102] for row in range(4)))
NAN = Vectors(np.full((3, 16), np.nan, np.float32), "gpu")

OUT_OF_MEMORY = "CUDA failure 2: out of memory"


def error(preset):
    """The error that a preset of `FaultPlan` raises."""
    what = FaultPlan.preset(preset).rules[0].what
    return ERROR_CLASSES[what.error](what.text)


def transient():
    return error("transient")


class TwoDevices:
    """A manager of a fake GPU and a fake CPU, its clock, and all the events it told of."""

    def __init__(self, gpu=None, cpu=None, *, clock=None, real_time=False, missing=False, slots=1, **policy):
        self.gpu = gpu if gpu is not None else FakeBackend("gpu")
        self.cpu = cpu if cpu is not None else FakeBackend("cpu")
        self.clock = clock if clock is not None else FakeClock()
        self.naps = []
        time = {} if real_time else {"clock": self.clock, "sleep": self.nap}
        self.manager = FallbackManager(
            [self.gpu, self.cpu],
            FallbackPolicy(**{"ramp": (1.0,), "verify": "off", **policy}),
            missing=missing,
            slots=slots,
            **time,
        )
        self.events = []
        self.manager.events.subscribe(self.events.append)
        self.guard = self.manager.guarded[0]

    def nap(self, seconds):
        self.naps.append(seconds)
        self.clock.sleep(seconds)

    def run(self, batch=BATCH):
        return self.manager.run(batch)

    def prober(self, *, canaries=(CANARY, LARGEST), limit=0.9999, real_time=False):
        time = {} if real_time else {"clock": self.clock}
        return Prober(self.manager, canaries, limit=limit, **time)

    @property
    def state(self):
        return self.guard.breaker.state

    @property
    def counted(self):
        return self.guard.breaker.snapshot()

    @property
    def wait(self):
        """Seconds until the device may be tried again."""
        return self.guard.breaker.snapshot().retry_after

    def told(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def is_open(self):
        return self.state is State.OPEN


@contextmanager
def two_devices(*backends, **options):
    made = TwoDevices(*backends, **options)
    try:
        yield made
        assert made.counted.in_flight == 0, "a permit is still out"
    finally:
        made.manager.close()


class Peers:
    """A manager of several equal fake GPUs and a fake CPU, its clock, and all the events it told of."""

    def __init__(
        self,
        count=2,
        *,
        gpus=None,
        cpu=None,
        real_time=False,
        slots=1,
        ceilings=None,
        missing=False,
        **policy,
    ):
        self.gpus = gpus if gpus is not None else [FakeBackend(f"gpu:{card}") for card in range(count)]
        self.cpu = cpu if cpu is not None else FakeBackend("cpu")
        self.clock = FakeClock()
        self.manager = FallbackManager(
            [self.gpus, self.cpu],
            FallbackPolicy(**{"ramp": (1.0,), "verify": "off", "auto_retry": False, **policy}),
            missing=missing,
            ceilings=ceilings,
            slots=slots,
            **({} if real_time else {"clock": self.clock, "sleep": self.clock.sleep}),
        )
        self.events = []
        self.manager.events.subscribe(self.events.append)
        self.guards = self.manager.guarded

    def run(self, batch=BATCH):
        return self.manager.run(batch)

    def prober(self, **options):
        return Prober(self.manager, (CANARY,), limit=0.9999, clock=self.clock, **options)

    @property
    def asked(self):
        """How many batches each GPU was given."""
        return [len(gpu.calls) for gpu in self.gpus]

    def told(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@contextmanager
def peers(count=2, **options):
    made = Peers(count, **options)
    try:
        yield made
        assert [guard.breaker.snapshot().in_flight for guard in made.guards] == [0] * len(made.guards)
        for group in made.manager._groups:
            assert not any(group._load.values()), "a batch that came back is still counted"
    finally:
        made.manager.close()


class Gate:
    """A backend's `before` that stops each run until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, batch):
        self.entered.release()
        assert self.opened.wait(30)

    def wait_for(self, runs=1):
        for _ in range(runs):
            assert self.entered.acquire(timeout=10)


def hanging(device="gpu"):
    """A backend that hangs in each run until its gate is opened, and the gate."""
    gate = Gate()
    return FakeBackend(device, before=gate), gate


def due(batch, instant):
    return replace(batch, due=instant)


def in_threads(count, work):
    """Run `work(index)` in so many threads that start together; returns results and errors."""
    barrier = threading.Barrier(count)
    results = [None] * count

    def one(index):
        barrier.wait()
        try:
            results[index] = work(index)
        except Exception as exc:
            results[index] = exc

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results
