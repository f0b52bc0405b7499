"""What a session asks of a GPU, what it does without, and that it says so; no card is needed for that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from resilient_ai._inference import arenas, recipe, runtime, session
from resilient_ai._inference.arenas import is_shared, share_arena
from resilient_ai._inference.session import GpuOptions, Session
from resilient_ai.errors import DeviceFailed, DeviceUnavailable, InvalidInput, ModelCorrupt

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ENV_ALLOCATORS = "session.use_env_allocators"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
NO_ENGINE = "[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP failed to create engine from network for node"
FULL = "Failed to allocate memory for requested buffer of size 268435456"


class EPFail(Exception):
    """What ONNX Runtime raises for an engine."""


class InvalidArgument(Exception):
    """And for what it does not take."""


class Entries(dict):
    """Options of a session or a run."""

    add_session_config_entry = add_run_config_entry = dict.__setitem__


class FakeSession:
    """One session of the fake runtime; `broken` has it fail as an engine does."""

    def __init__(self, providers, options):
        self.providers, self.options = providers, options
        self.runs, self.fallback = [], True
        self.failures = []

    def get_providers(self):
        return self.providers

    def disable_fallback(self):
        self.fallback = False

    def get_inputs(self):
        return []

    get_outputs = get_inputs

    def run(self, outputs, feeds, options):
        self.runs.append(options)
        if self.failures:
            raise self.failures.pop(0)
        return [np.ones(1) for _ in outputs]


class FakeRuntime:
    """An ONNX Runtime for CUDA; `on_create` may refuse a session, `missing` names libraries that are."""

    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_ENABLE_BASIC=1)
    OrtAllocatorType = SimpleNamespace(ORT_ARENA_ALLOCATOR=1)
    OrtMemType = SimpleNamespace(DEFAULT=0)
    SessionOptions = RunOptions = Entries
    OrtArenaCfg = dict

    def __init__(self):
        self.sessions, self.arenas = [], []
        self.missing = set()
        self.on_create = lambda _providers, _options: None
        self.arena_error = None
        self.taken = lambda providers: [*providers, CPU]

    def InferenceSession(self, _graph, *, sess_options, providers, enable_fallback):
        assert enable_fallback == 0
        if (error := self.on_create(dict(providers), sess_options)) is not None:
            raise error
        self.sessions.append(FakeSession(self.taken([name for name, _ in providers]), sess_options))
        return self.sessions[-1]

    def OrtMemoryInfo(self, *values):
        return values

    def create_and_register_allocator_v2(self, *values):
        if self.arena_error is not None:
            raise self.arena_error
        self.arenas.append(values)

    def missing_libraries(self, library):
        return {name: f"{name}: cannot open" for name in self.missing if name.split("_")[0] in library.name}


@pytest.fixture
def ort(monkeypatch):
    """A fake ONNX Runtime in the place of the real one, in a process that shares no arena yet."""
    fake = FakeRuntime()
    build = runtime.Build("onnxruntime-gpu", "1.99", "13.0", (TENSORRT, CUDA, CPU), Path("/nowhere"))
    for module in (arenas, recipe, session):
        monkeypatch.setattr(module, "load_runtime", lambda: fake)
    for module in (arenas, session):
        monkeypatch.setattr(module, "preload_libraries", lambda: ())
    monkeypatch.setattr(recipe, "read_build", lambda: build)
    monkeypatch.setattr(recipe, "missing_libraries", fake.missing_libraries)
    monkeypatch.setattr(arenas, "_outcomes", {})
    return fake


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    return path


def open_on(graph, **options):
    return Session(graph, threads=1, gpu=GpuOptions(**options))


class TestCuda:
    def test_what_is_asked(self, ort, graph):
        """CUDA alone is asked for, every node's place is recorded, and the runtime's own fallback is off."""
        made = open_on(graph)
        assert made.providers == (CUDA, CPU)
        assert made.notes == ()
        (real,) = ort.sessions
        assert real.options["session.record_ep_graph_assignment_info"] == "1"
        assert real.options[ENV_ALLOCATORS] == "0"
        assert not real.fallback

    def test_missing_libraries(self, ort, graph):
        """A GPU whose libraries are missing is refused by their names, before ONNX Runtime is asked."""
        ort.missing = {"cuda_blas"}
        with pytest.raises(DeviceUnavailable, match="GPU 2 cannot be used: cuda_blas: cannot open"):
            open_on(graph, device_id=2)
        assert ort.sessions == []

    @pytest.mark.parametrize("taken", [[CPU], [CPU, CUDA]])
    def test_a_session_elsewhere(self, ort, graph, taken):
        """A session that would run on the CPU is refused, for whatever reason it would."""
        ort.taken = lambda _: taken
        with pytest.raises(DeviceUnavailable, match=f"asked for {CUDA}, but ONNX Runtime would run on {CPU}"):
            open_on(graph)

    def test_factors_in_full(self):
        """Float32 is rounded only where the card may."""
        ((_, quick),) = GpuOptions().providers()
        ((_, exact),) = GpuOptions(tf32=False).providers()
        assert "use_tf32" not in quick
        assert exact["use_tf32"] == "0"


class TestTensorRT:
    @pytest.mark.parametrize("wish", [True, "auto"])
    def test_taken_where_it_is(self, ort, graph, wish):
        """TensorRT comes before CUDA where its libraries load."""
        made = open_on(graph, tensorrt=wish)
        assert made.providers == (TENSORRT, CUDA, CPU)
        assert made.notes == ()

    @pytest.mark.parametrize(
        ("wish", "notes"), [("auto", ()), (True, ("no TensorRT: tensorrt_nvinfer: cannot open",))]
    )
    def test_left_out_where_it_is_not(self, ort, graph, wish, notes):
        """Without its libraries CUDA runs alone, which is worth a word only where TensorRT was asked for."""
        ort.missing = {"tensorrt_nvinfer"}
        made = open_on(graph, tensorrt=wish)
        assert made.providers == (CUDA, CPU)
        assert made.notes == notes

    @pytest.mark.parametrize(
        "error", [EPFail(NO_ENGINE), RuntimeError("Please install\n"), InvalidArgument("x")]
    )
    def test_an_engine_that_cannot_be_loaded(self, ort, graph, error):
        """A session that cannot be made with TensorRT is made without, whatever the reason, and says why."""
        ort.on_create = lambda providers, _: error if TENSORRT in providers else None
        made = open_on(graph, tensorrt=True)
        assert made.providers == (CUDA, CPU)
        (note,) = made.notes
        assert note.startswith("no TensorRT, it failed: ")
        assert str(error).strip() in note

    def test_a_corrupt_graph(self, ort, graph):
        """What fails without TensorRT too is an error, that of the plain session."""
        ort.on_create = lambda providers, _: InvalidArgument(f"bad with {len(providers)} providers")
        with pytest.raises(ModelCorrupt, match="bad with 1 providers"):
            open_on(graph, tensorrt=True)

    def test_an_engine_that_fails_in_a_run(self, ort, graph):
        """The batch is run again on a session without TensorRT, and the broken one never again."""
        made = open_on(graph, tensorrt=True)
        ort.sessions[0].failures = [EPFail(NO_ENGINE)]
        assert len(made.run(["pooled"], {})) == 1
        assert len(made.run(["pooled"], {})) == 1
        assert [len(real.runs) for real in ort.sessions] == [1, 2]
        assert made.providers == (CUDA, CPU)
        assert made.notes == (f"no TensorRT, it failed: {NO_ENGINE}",)

    def test_many_threads_on_one_broken_engine(self, ort, graph):
        """One of them makes the new session, all get their answer."""
        made = open_on(graph, tensorrt=True)
        real, barrier = ort.sessions[0], threading.Barrier(4)

        def run(*_):
            barrier.wait()
            raise EPFail(NO_ENGINE)

        real.run = run
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: made.run(["pooled"], {}), range(4)))
        assert len(answers) == 4
        assert len(ort.sessions) == 2
        assert len(made.notes) == 1

    def test_closed_while_it_is_replaced(self, ort, graph):
        """A session that is closed meanwhile stays closed."""
        made = open_on(graph, tensorrt=True)
        ort.sessions[0].failures = [EPFail(NO_ENGINE)]
        ort.on_create = lambda _providers, _options: made.close()
        with pytest.raises(DeviceUnavailable, match="closed"):
            made.run(["pooled"], {})

    def test_a_failure_without_tensorrt(self, ort, graph):
        """The same error from a session without TensorRT is the device's."""
        made = open_on(graph)
        ort.sessions[0].failures = [EPFail(NO_ENGINE)]
        with pytest.raises(DeviceFailed, match="EP_FAIL"):
            made.run(["pooled"], {})
        assert len(ort.sessions) == 1

    def test_the_cache(self, ort, graph, tmp_path):
        """Engines and timings are kept in the folder that was named, which is made."""
        asked = []
        ort.on_create = lambda providers, _: asked.append(providers)
        folder = tmp_path / "a" / "engines"
        open_on(graph, tensorrt=True, tensorrt_cache=folder, device_id=1)
        assert folder.is_dir()
        assert asked[0][TENSORRT] == {
            "device_id": "1",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }

    def test_a_cache_that_cannot_be_made(self, ort, graph):
        """Without a place for engines TensorRT is left out, and the note names the place."""
        made = open_on(graph, tensorrt=True, tensorrt_cache=graph / "engines")
        assert made.providers == (CUDA, CPU)
        assert "engines" in made.notes[0]


class TestArena:
    def test_shared(self, ort, graph):
        """One arena with the card's limit is made, and later sessions on that card draw from it."""
        gpu = GpuOptions(device_id=1, memory_limit=1 << 30)
        assert share_arena(gpu) is None
        assert share_arena(gpu) is None
        assert ort.arenas == [
            (CUDA, ("Cuda", 1, 1, 0), {"device_id": "1"}, {"max_mem": 1 << 30, "arena_extend_strategy": 1})
        ]
        for card, shared in ((1, "1"), (0, "0")):
            assert open_on(graph, device_id=card).notes == ()
            assert ort.sessions[-1].options[ENV_ALLOCATORS] == shared

    def test_refused(self, ort, graph):
        """Where no arena can be shared each session has its own, and its notes say why."""
        ort.arena_error = RuntimeError("not for CUDA\n")
        assert share_arena(GpuOptions()) == "not for CUDA"
        assert not is_shared(GpuOptions())
        made = open_on(graph)
        assert made.notes == ("no shared arena: not for CUDA",)
        assert ort.sessions[-1].options[ENV_ALLOCATORS] == "0"
        assert open_on(graph, device_id=1).notes == ()

    def test_refused_by_a_session(self, ort, graph):
        """A session that fails with the shared arena is made with one of its own, and says why."""
        share_arena(GpuOptions())
        ort.on_create = lambda _, options: RuntimeError("no") if options[ENV_ALLOCATORS] == "1" else None
        made = open_on(graph)
        assert "no shared arena, it failed with one: " in made.notes[0]

    def test_full(self, ort, graph):
        """A shared arena that is full is no reason to take more memory than it may hold."""
        share_arena(GpuOptions())
        ort.on_create = lambda _, options: RuntimeError(FULL) if options[ENV_ALLOCATORS] == "1" else None
        with pytest.raises(DeviceUnavailable, match="allocate memory"):
            open_on(graph)


class TestShrinking:
    def test_the_device(self, ort, graph):
        """Only a run that is told to gives memory back, to its own card."""
        made = open_on(graph, device_id=3)
        made.run(["pooled"], {})
        made.run(["pooled"], {}, shrink=True)
        assert ort.sessions[0].runs == [None, {SHRINKAGE: "gpu:3"}]

    def test_refused(self, ort, graph):
        """A runtime that cannot shrink this arena runs the batch all the same, and the notes say so."""
        made = open_on(graph)
        text = "Did not find an arena based allocator registered in the memory arena shrink list: gpu:0"
        ort.sessions[0].failures = [InvalidArgument(text)]
        assert len(made.run(["pooled"], {}, shrink=True)) == 1
        assert made.notes == (f"its memory cannot be shrunk: {text}",)

    def test_the_caller_is_not_spared(self, ort, graph):
        """Feeds that the graph refuses are the caller's error with or without it."""
        made = open_on(graph)
        ort.sessions[0].failures = [InvalidArgument("Invalid rank for input")]
        with pytest.raises(InvalidInput):
            made.run(["pooled"], {}, shrink=True)


def test_nodes_where_nobody_counts(ort, graph):
    """A runtime that does not tell where the nodes are is asked for nothing."""
    assert open_on(graph).nodes == {}
