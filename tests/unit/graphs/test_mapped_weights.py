"""Weights that are mapped from their file give the answers that packed ones give, and stay in the file."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from resilient_ai._inference.recipe import Recipe
from resilient_ai._inference.session import Cancellation, Session
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._serving import cpu
from resilient_ai._serving.choosing import GraphChoice
from resilient_ai._serving.cpu import open_cpu
from resilient_ai._serving.warming import WarmingBackend
from resilient_ai.errors import DeviceUnavailable
from resilient_ai.testing import batch_of
from tiny_checkpoints import Tiny
from tiny_families import Qwen

ROUNDING = 1e-6

MODELS = {
    "encoder": (
        "embed",
        lambda: Tiny(hidden=64, wide=256, vocab=400),
        {"family": "bert", "pooling": "mean", "head": "embedding"},
    ),
    "decoder": (
        "embed",
        lambda: Qwen(seed=1, vocab=400, hidden=64),
        {"family": "qwen3", "pooling": "last_token", "head": "embedding"},
    ),
    "reranker": (
        "score",
        lambda: Qwen(seed=2, vocab=400, hidden=64, prefix="model."),
        {"family": "qwen3", "pooling": None, "head": "score", "shared_prefix": True},
    ),
}


@pytest.fixture(params=MODELS)
def made(request, tmp_path):
    """A graph with its weights in a file of their own, and a batch for it."""
    task, model, options = MODELS[request.param]
    folder = model().write(tmp_path / "model")
    path = ensure_graph(folder, tmp_path / "cache", inline_limit=0, **options)
    return GraphChoice(path, fuse=False), batch_of([5, 6, 7, 8, 9], [3, 2], task=task)


def opened(graph, start):
    return open_cpu(graph, threads=1, pooling=None, start=start)


def mapped_bytes(graph):
    """How much of a graph's file of weights is mapped into this process."""
    areas = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    spans = [area[0].split("-") for area in areas if area[-1] == f"{graph.path}.data"]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def settle():
    for thread in threading.enumerate():
        if thread.name == "resilient-ai-warm-up":
            thread.join(30)


def test_both_starts_give_the_same(made):
    """A fast start answers as a steady one does, and so does one that is packed while it serves."""
    graph, batch = made
    steady, fast = opened(graph, "steady"), opened(graph, "fast")
    expected = steady.run(batch).values
    assert np.abs(fast.run(batch).values - expected).max() <= ROUNDING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_LARGE", 0)
        auto = opened(graph, "auto")
    assert isinstance(auto, WarmingBackend)
    assert np.abs(auto.run(batch).values - expected).max() <= ROUNDING
    settle()
    assert np.array_equal(auto.run(batch).values, expected)
    for backend in (steady, fast, auto):
        backend.close()


@pytest.mark.parametrize(("spin", "told"), [(True, "1"), (False, "0")])
def test_waiting_awake_or_asleep(made, monkeypatch, spin, told):
    """The threads of a run spin as they are told, in every session of a model."""
    graph, batch = made
    seen = []
    options = Recipe._options

    def look(recipe, runtime):
        seen.append(options(recipe, runtime))
        return seen[-1]

    monkeypatch.setattr(Recipe, "_options", look)
    monkeypatch.setattr(cpu, "_LARGE", 0)
    backend = open_cpu(graph, threads=1, pooling=None, start="auto", spin=spin)
    backend.run(batch)
    settle()
    backend.close()
    key = "session.intra_op.allow_spinning"
    assert [each.get_session_config_entry(key) for each in seen] == [told, told]


def test_small_models_are_packed_at_once(made):
    """Where packing takes no time worth mentioning, auto is steady."""
    graph, _ = made
    backend = opened(graph, "auto")
    assert not isinstance(backend, WarmingBackend)
    backend.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_a_fast_start_leaves_the_weights_in_their_file(made):
    """All of the weights' file is mapped; after packing hardly any of it, after closing none."""
    graph, batch = made
    size = graph.path.with_name(f"{graph.path.name}.data").stat().st_size
    fast = opened(graph, "fast")
    fast.run(batch)
    assert mapped_bytes(graph) > 0.9 * size
    fast.close()
    assert mapped_bytes(graph) == 0
    steady = opened(graph, "steady")
    assert mapped_bytes(graph) < 0.6 * size
    steady.close()


def test_loading_can_be_cancelled(made):
    """A session whose loading is cancelled is not there, and says so; others load as ever."""
    graph, _ = made
    cancellation = Cancellation()
    Session(graph.path, threads=1, fuse=False, cancellation=cancellation).close()
    cancellation.cancel()
    with pytest.raises(DeviceUnavailable, match="cancel"):
        Session(graph.path, threads=1, fuse=False, cancellation=cancellation)
    Session(graph.path, threads=1, fuse=False).close()
