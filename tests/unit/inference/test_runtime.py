"""How ONNX Runtime was built is told, and what it prints stays out of the host's output."""

from __future__ import annotations

import threading

import pytest

from graph_kit import write_graph
from resilient_ai._inference import runtime
from resilient_ai._inference.runtime import preload_libraries, read_build, runtime_version
from serving_kit import run_python

pytest.importorskip("onnxruntime")

PRELOAD = """
def preload_dlls():
    print("Failed to load", "libcudart.so.13")
    others()
"""


def test_the_build():
    """The build says what it was made for and where its libraries are."""
    build = read_build()
    assert build.version == runtime_version()
    assert "CPUExecutionProvider" in build.providers
    assert (build.cuda is not None) is ("CUDAExecutionProvider" in build.providers)
    assert list(build.folder.glob("*onnxruntime*"))
    assert build.library_of("CUDAExecutionProvider").parent == build.folder


def test_prints(monkeypatch, capfd):
    """What the runtime prints is returned; what another thread prints meanwhile is printed."""

    def others():
        thread = threading.Thread(target=print, args=("from the host",))
        thread.start()
        thread.join()

    module = {"others": others}
    exec(PRELOAD, module)
    fake = type("FakeRuntime", (), {"preload_dlls": staticmethod(module["preload_dlls"])})
    monkeypatch.setattr(runtime, "load_runtime", lambda: fake)
    runtime._preload.cache_clear()
    try:
        assert preload_libraries() == ("Failed to load libcudart.so.13",)
        assert preload_libraries() == ("Failed to load libcudart.so.13",)
    finally:
        runtime._preload.cache_clear()
    assert capfd.readouterr() == ("from the host\n", "")
    assert "print" not in module


def test_a_runtime_that_cannot_preload(monkeypatch):
    """A version that has no such function needs nothing."""
    monkeypatch.setattr(runtime, "load_runtime", object)
    runtime._preload.cache_clear()
    try:
        assert preload_libraries() == ()
    finally:
        runtime._preload.cache_clear()


ARENA = """
import sys, threading
import numpy as np
from pathlib import Path
from resilient_ai._inference.arenas import is_shared, share_arena
from resilient_ai._inference.session import Session
feeds = {name: np.ones((64, 128), np.int64) for name in ("input_ids", "attention_mask")}
graph = Path(sys.argv[1])
alone = Session(graph, threads=1).run(["pooled"], feeds)[0]
outcomes = []
threads = [threading.Thread(target=lambda: outcomes.append(share_arena())) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert outcomes == [None] * 4, outcomes
assert is_shared(None)
for shrink in (False, True, False):
    first, second = Session(graph, threads=1), Session(graph, threads=2)
    for session in (first, second, first):
        assert np.array_equal(session.run(["pooled"], feeds, shrink=shrink)[0], alone)
        assert session.notes == (), session.notes
print("shared")
"""


@pytest.mark.slow
def test_one_arena_for_all(tmp_path):
    """Sessions that share an arena give the answers of one with its own, and can shrink it."""
    done = run_python(ARENA, write_graph(tmp_path / "model.onnx", "pooled"))
    assert done.stdout == "shared\n", done.stderr
