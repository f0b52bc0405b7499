"""Models replaced under traffic while the process that serves them is killed again and again."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import resilient_ai as rai
from resilient_ai._resilience.process_faults import Crash
from resilient_ai.testing import FaultPlan, FaultRule, When
from swap_kit import TEXTS, WAIT, service_settings, until, version_of, write_version

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(110)]

THREADS, VERSIONS = 8, 10


def test_swaps_while_workers_die(tmp_path):
    """No call fails, and each has the vectors of one version that is not older than the one before."""
    plan = FaultPlan((FaultRule(Crash(how="kill"), When(every=60)),))
    settings = service_settings(
        tmp_path,
        use_gpu="simulated",
        allow_fault_injection=True,
        fault_plan=plan.to_json(),
        log_level="critical",
    )
    write_version(tmp_path / "models" / "mine", 0)
    with rai.AIService(settings) as ai, ThreadPoolExecutor(THREADS) as threads:
        ai.load()
        stop, barrier = threading.Event(), threading.Barrier(THREADS + 1)

        def work():
            devices, last = Counter(), 0
            barrier.wait()
            while not stop.is_set():
                answer = ai.embed(TEXTS, timeout=WAIT)
                version = version_of(answer)
                assert version >= last
                last = version
                devices.update(answer.served_by)
            return devices

        ended = [threads.submit(work) for _ in range(THREADS)]
        barrier.wait()
        try:
            for version in range(1, VERSIONS):
                write_version(tmp_path / "models" / "mine", version)
                assert ai.reload(timeout=WAIT) == ("mine",)
                until(
                    lambda: ai.health().models[0].stats.gpu_calls + ai.health().models[0].stats.cpu_calls > 30
                )
        finally:
            stop.set()
        served = sum((each.result(WAIT) for each in ended), Counter())
        assert set(served) == {"cpu", "simulated"}
        assert ai.health().models[0].backends[0].worker.restarts > 0
        assert version_of(ai.embed(TEXTS, timeout=WAIT)) == VERSIONS - 1
