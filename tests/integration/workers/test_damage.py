"""What happens to a worker and to its files while its host goes on: every call ends, and rightly."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from host_kit import MODEL, VOCABULARY, Workplace, finish, next_line, write_model

from tokenizer_kit import small_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deserted")]

KILLS = 20

UNDER_TRAFFIC = f"""
import random
from functools import partial
import numpy as np
from resilient_ai import composition

# How often a worker may be started at once has tests of its own.
composition.RestartBudget = partial(composition.RestartBudget, starts=1000)
texts = ["the sun is warm", "rain", "cold rain is a", "b c d", "a b", "warm"]
right = ai.embed(texts).vectors
stop = threading.Event()
calls, slowest = [], []

def traffic(seed):
    dice = random.Random(seed)
    longest = 0.0
    while not stop.is_set():
        picked = dice.sample(range(len(texts)), 3)
        began = time.monotonic()
        try:
            answer = ai.embed([texts[place] for place in picked], timeout=20)
            calls.append("right" if np.allclose(answer.vectors, right[picked], atol=1e-5) else "wrong")
        except Exception as exc:
            calls.append(repr(exc))
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.002)
    slowest.append(longest)

threads = [threading.Thread(target=traffic, args=(seed,), daemon=True) for seed in range(3)]
[thread.start() for thread in threads]
killed = set()
while len(killed) < {KILLS}:
    now = worker()
    if now.state == "up" and now.pid not in killed:
        os.kill(now.pid, signal.SIGKILL)
        killed.add(now.pid)
    time.sleep(0.002)
until_back()
stop.set()
[thread.join() for thread in threads]
say(json.dumps([sorted(set(calls)), len(calls), max(slowest), worker().restarts]))
"""


def test_many_kills_under_traffic(place):
    """However often the worker is killed, every call has the right answer at once; then it is back."""
    host = place.program(UNDER_TRAFFIC)
    outcomes, calls, slowest, restarts = json.loads(finish(host, within=90).lines[0])
    assert outcomes == ["right"]
    assert calls > 10 * KILLS
    assert slowest < 2.0
    assert restarts == KILLS


@pytest.fixture
def own(tmp_path):
    """A place with a model of its own, and that model's folder."""
    made = []

    def make(**options):
        write_model(tmp_path / "models" / MODEL, **options)
        made.append(Workplace(tmp_path, tmp_path / "models"))
        return made[0], tmp_path / "models" / MODEL

    yield make
    for place in made:
        place.clear()


LOSES_ITS_GRAPH = """
say(embed())
sys.stdin.readline()
os.kill(worker().pid, signal.SIGKILL)
until(lambda: "model" in device().why_out)
say(json.dumps([embed(), ai.health().warnings]))
sys.stdin.readline()
until_back()
say("back", worker().restarts)
"""


def remove(graph):
    graph.unlink()


def garble(graph):
    graph.write_bytes(b"no graph")


def lock(graph):
    graph.chmod(0)
    if os.access(graph, os.R_OK):
        pytest.skip("whoever runs this may read everything")


@pytest.mark.parametrize("damage", [remove, garble, lock])
def test_a_graph_that_is_lost_after_loading(own, damage):
    """The next worker cannot load it, says which file and why, and the CPU serves; mended, it is back."""
    place, model = own()
    graph = model / "onnx" / "model.onnx"
    kept = graph.read_bytes()
    host = place.program(LOSES_ITS_GRAPH, stdin=subprocess.PIPE)
    assert next_line(host) == "simulated"
    damage(graph)
    press_enter(host)
    served, (warning,) = json.loads(next_line(host))
    assert served == "cpu"
    assert f"the graph {graph}" in warning
    graph.unlink(missing_ok=True)
    graph.write_bytes(kept)
    press_enter(host)
    assert finish(host).lines == ["back 1"]


def press_enter(host):
    host.stdin.write("\n")
    host.stdin.flush()


STRANGE_TOKENS = """
say(embed("a"))
before = worker().pid
for _ in range(5):
    try:
        say(embed("ad", "the sun"))
    except rai.ResilientAIError as exc:
        say(type(exc).__name__, exc)
say(embed("a", "b"), worker().pid == before, worker().restarts, ai.health().status)
"""


def test_a_token_beyond_the_vocabulary(own):
    """A tokenizer with more tokens than the model is told of as the model's fault; it costs no worker."""
    assert small_tokenizer().encode("ad").ids[2] == VOCABULARY - 1
    place, _ = own(vocabulary=VOCABULARY - 2)
    first, *refused, last = finish(place.program(STRANGE_TOKENS)).lines
    assert (first, last) == ("simulated", "simulated True 0 healthy")
    assert len(refused) == 5
    assert all(
        line.startswith(f"ModelCorrupt the tokenizer gave token id {VOCABULARY - 1}") for line in refused
    )
