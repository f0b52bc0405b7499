"""A whole service on a worker that suffers everything: no answer is wrong, no call is lost, it comes back."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

import resilient_ai as rai
from resilient_ai._adapters.drill.devices import drilled_devices
from resilient_ai._telemetry.events import WorkerAbandoned, WorkerLost, WorkerStarted
from resilient_ai.errors import DeadlineExceeded, Overloaded
from resilient_ai.testing import FaultPlan
from tokenizer_kit import small_tokenizer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(180)]

MODEL, DIMENSION = "e5-small-v2", 384
THREADS = 8
CALL_LIMIT = 10.0
COMES_BACK_WITHIN = 40.0
STRIKES_FOR = 0.2
PRESETS = [name for name in FaultPlan.presets() if FaultPlan.preset(name).needs_process]
# What leaves the process as it was.
HARMLESS = {"stdout_noise", "leak"}
WORDS = ("the", "sun", "rain", "a", "of", "and")
TEXTS = [f"{WORDS[n % 6]} {WORDS[n // 6 % 6]} {n}" for n in range(120)]


def write_model(folder: Path) -> None:
    """The files of a model that gives each token a random vector of its own, and of texts the mean."""
    (folder / "onnx").mkdir(parents=True)
    tokenizer = small_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.get_vocab_size()}))
    table = np.random.default_rng(3).normal(size=(tokenizer.get_vocab_size(), DIMENSION)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["rows", "longest", DIMENSION]
            )
        ],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "onnx" / "model.onnx"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / MODEL)
    return folder


def settings(store, **values):
    return rai.AISettings.load(
        environ={},
        cwd=store,
        **{
            "model_name": MODEL,
            "reranker_name": "late-interaction",
            "model_path": store,
            "offline": True,
            "cache_size": 0,
            "max_length": 32,
            "parallel_workers": 1,
            "recovery_time_ms": 1000,
            "fallback_timeout_ms": 2000,
            "worker_phase_ms": 4000,
            "log_level": "critical",
            **values,
        },
    )


@pytest.fixture(scope="module")
def right(store):
    """The right vectors, from a service without any worker."""
    with rai.AIService(settings(store, use_gpu="never")) as ai:
        return ai.embed(TEXTS).vectors


def open_handles():
    """What this process has open, but for what libraries keep open for good."""
    found = Counter()
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(handle.readlink())
            found[target.partition(":")[0] if not target.startswith("/") else target] += 1
    return found


def until(so, within=COMES_BACK_WITHIN, tell=lambda: "it does not come about"):
    give_up = time.monotonic() + within
    while not so():
        assert time.monotonic() < give_up, tell()
        time.sleep(0.01)


@dataclass
class Traffic:
    """Callers that never rest. Whatever is neither the right answer nor an error that may be is noted."""

    ai: rai.AIService
    right: np.ndarray
    told: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    longest: float = 0.0

    def __post_init__(self):
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(THREADS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(2 * CALL_LIMIT)

    def served_by(self, device):
        return self.told[device]

    def _ask(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            rows = [rng.randrange(len(TEXTS)) for _ in range(rng.choice((1, 1, 2, 8)))]
            limit = rng.choice((None, CALL_LIMIT, 0.05))
            began = time.monotonic()
            told = self._call(rows, limit)
            with self.lock:
                self.told.update(told)
                self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(rng.random() * 0.02)

    def _call(self, rows, limit):
        try:
            answer = self.ai.embed([TEXTS[row] for row in rows], timeout=limit)
        except (Overloaded, DeadlineExceeded) as exc:
            if limit != 0.05:
                self.wrong.append(exc)
            return [type(exc).__name__]
        except BaseException as exc:
            self.wrong.append(exc)
            return [type(exc).__name__]
        # The CPU and the worker run the same session, on batches of other shapes.
        if not np.allclose(answer.vectors, self.right[rows], atol=1e-5):
            self.wrong.append((rows, answer))
        return [*set(answer.served_by), "answers"]


class Service:
    """A service on a worker, and what may be done to that."""

    def __init__(self, store, **values):
        self.ai = rai.AIService(settings(store, use_gpu="simulated", allow_fault_injection=True, **values))
        self.events = []
        self.ai.subscribe(self.events.append)
        self.ai.load()
        (self.device,) = drilled_devices(self.ai)
        self.worker = self.device.worker

    @property
    def pid(self):
        return self.worker.state().pid

    def lives(self):
        return sum(isinstance(event, WorkerStarted) for event in self.events)

    def is_up(self):
        return self.worker.state().state == "up"

    def comes_back(self, traffic):
        """Wait until a worker is up and serves."""
        until(self.is_up, tell=lambda: f"no worker: {self.worker.state()}")
        before = traffic.served_by("simulated")
        until(
            lambda: traffic.served_by("simulated") > before, tell=lambda: f"out: {self.ai.health().warnings}"
        )

    def suffer(self, preset, traffic):
        """Have a preset happen, wait until that which it ends was replaced."""
        self.device.forgive()
        lives, worker = self.lives(), self.worker
        struck = len(worker.injector.injected)
        worker.injector.set_plan(FaultPlan.preset(preset))
        rules = FaultPlan.preset(preset).rules
        starts = sum(rule.when.last is not None for rule in rules)
        until(
            lambda: len(worker.injector.injected) > struck + starts, tell=lambda: f"{preset} does not strike"
        )
        time.sleep(STRIKES_FOR)
        worker.injector.set_plan(None)
        if preset not in HARMLESS:
            until(
                lambda: self.lives() > lives, tell=lambda: f"no fresh worker after {preset}: {worker.state()}"
            )
        self.comes_back(traffic)

    def close(self):
        self.ai.close()


@pytest.fixture
def open_service(store):
    """Makes services, and closes them also where a test fails."""
    made = []

    def make():
        made.append(Service(store))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def leaves_nothing():
    """Compares handles, threads and children of this process before and after."""
    threads, handles = set(threading.enumerate()), open_handles()
    children = set(psutil.Process().children(recursive=True))
    yield
    until(lambda: set(threading.enumerate()) <= threads, 5.0, lambda: f"threads: {threading.enumerate()}")
    until(lambda: not open_handles() - handles, 5.0, lambda: f"open: {open_handles() - handles}")
    left = set(psutil.Process().children(recursive=True)) - children
    assert not left, f"processes left, zombies perhaps: {left}"


def zombies():
    return [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]


def judge(service, traffic):
    assert traffic.wrong == []
    assert not any(thread.is_alive() for thread in traffic.threads), "a call that does not end"
    assert traffic.longest < CALL_LIMIT + 2
    assert traffic.told["answers"] > 100
    assert not [event for event in service.events if isinstance(event, WorkerAbandoned)]
    until(lambda: not zombies(), 2.0)


def test_every_preset(right, leaves_nothing, open_service):
    """Each fault of a process in turn, under traffic: all calls end rightly, a fresh worker serves after it."""
    service = open_service()
    with Traffic(service.ai, right) as traffic:
        service.comes_back(traffic)
        for preset in PRESETS:
            service.suffer(preset, traffic)
            assert traffic.wrong == [], preset
    judge(service, traffic)
    deaths = sum(isinstance(event, WorkerLost) for event in service.events)
    assert deaths >= len(PRESETS) - len(HARMLESS)


@pytest.mark.parametrize("seed", range(2))
def test_killed_and_stopped_at_any_instant(right, leaves_nothing, open_service, seed):
    """SIGKILL and SIGSTOP from outside, in service, in starts, in a row: the same."""
    rng = random.Random(seed)
    service = open_service()
    with Traffic(service.ai, right) as traffic:
        service.comes_back(traffic)
        for _ in range(6):
            service.device.forgive()
            time.sleep(rng.random())
            if (pid := service.pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)))
        service.device.forgive()
        service.comes_back(traffic)
    judge(service, traffic)
    assert service.lives() > 1


def test_closed_at_any_instant(leaves_nothing, open_service):
    """A service that is closed while its worker starts, serves, dies or is stopped leaves nothing behind."""
    for seed in range(1, 5):
        rng = random.Random(seed)
        service = open_service()
        if seed % 3:
            os.kill(service.pid, signal.SIGKILL if seed % 2 else signal.SIGSTOP)
            time.sleep(rng.random() * 0.4)
        service.close()
        until(lambda: not psutil.Process().children(), 5.0, lambda: psutil.Process().children())
