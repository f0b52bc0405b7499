"""Real models, small ones, replaced under traffic: on the CPU, and in a worker process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import resilient_ai as rai
from swap_kit import TEXTS, WAIT, service_settings, table, until, version_of, write_version

VERSIONS = 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(110)]


@pytest.fixture(params=["never", "simulated"])
def ai(request, tmp_path):
    write_version(tmp_path / "models" / "mine", 0)
    settings = service_settings(tmp_path, use_gpu=request.param)
    with rai.AIService(settings) as service:
        service.load()
        yield service


def test_replaced_under_traffic(ai, tmp_path):
    """Eight threads call while new files come.

    No call fails, each has one version's vectors, none an older version's than the one before, and the
    device that should serve serves them all.
    """
    stop, barrier = threading.Event(), threading.Barrier(9)

    def work():
        answers = []
        barrier.wait()
        while not stop.is_set():
            answers.append(ai.embed(TEXTS, timeout=WAIT))
        return answers

    with ThreadPoolExecutor(8) as threads:
        ended = [threads.submit(work) for _ in range(8)]
        barrier.wait()
        for version in range(1, VERSIONS):
            write_version(tmp_path / "models" / "mine", version)
            assert ai.reload(timeout=WAIT) == ("mine",)
            for _ in range(20):
                assert version_of(ai.embed(TEXTS, timeout=WAIT)) == version
        stop.set()
        every = [each.result(WAIT) for each in ended]
    for answers in every:
        versions = [version_of(answer) for answer in answers]
        assert versions == sorted(versions)
        assert not any(answer.degraded for answer in answers)
    assert all(len(answers) > VERSIONS for answers in every)
    device = "cpu" if ai.settings.use_gpu == "never" else "simulated"
    assert {name for answers in every for answer in answers for name in answer.served_by} == {device}
    worker = ai.health().models[0].backends[0].worker
    if worker is not None:  # one and the same, with the last of them loaded alone
        until(lambda: len(ai.health().models[0].backends[0].worker.models) == 1)
        assert worker.restarts == 0


def test_a_broken_one(ai, tmp_path):
    """Files of a model that answers wrongly never serve; the present one goes on, and so does its worker."""
    write_version(tmp_path / "models" / "mine", 1, table_of=lambda version: table(version) * np.nan)
    with pytest.raises(rai.ModelCorrupt, match="does not answer rightly"):
        ai.reload(timeout=WAIT)
    answer = ai.embed(TEXTS, timeout=WAIT)
    assert (version_of(answer), answer.degraded) == (0, False)
    write_version(tmp_path / "models" / "mine", 2)
    assert ai.reload(timeout=WAIT) == ("mine",)
    assert version_of(ai.embed(TEXTS, timeout=WAIT)) == 2


def test_one_model_after_another(tmp_path, ai):
    """With room for one model in memory, two are used in turn, each loaded when it is needed."""
    write_version(tmp_path / "models" / "other", 3)
    limited = service_settings(tmp_path, use_gpu=ai.settings.use_gpu, keep_models=1)
    with rai.AIService(limited) as service:
        for _ in range(2):
            assert version_of(service.embed(TEXTS, timeout=WAIT)) == 0
            assert version_of(service.embed(TEXTS, timeout=WAIT, model="other")) == 3
        until(lambda: [model.name for model in service.health().models] == ["other"])
