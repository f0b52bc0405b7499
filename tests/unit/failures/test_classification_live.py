"""Genuine errors of the ONNX Runtime that is installed, produced on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from resilient_ai._resilience.failures import Classifier, FailureClass

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

CPU = ["CPUExecutionProvider"]
LARGE = 1 << 26  # elements: 256 MiB


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    ort.set_default_logger_severity(4)
    yield
    ort.set_default_logger_severity(2)


def model(nodes, inputs, output):
    """Serialise a small graph with one output `y`."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()


@pytest.fixture(scope="module")
def add():
    float32 = onnx.TensorProto.FLOAT
    return model(
        [onnx.helper.make_node("Add", ["a", "b"], ["y"])], [("a", float32, [2]), ("b", float32, [2])], [2]
    )


@pytest.fixture(scope="module")
def expand():
    """A graph whose second input says how much memory it takes."""
    return model(
        [
            onnx.helper.make_node("Expand", ["x", "shape"], ["wide"]),
            onnx.helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=0),
        ],
        [("x", onnx.TensorProto.FLOAT, [1]), ("shape", onnx.TensorProto.INT64, [1])],
        [],
    )


def unoptimised():
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def failure_of(call, **known):
    with pytest.raises(Exception) as caught:
        call()
    return Classifier().classify(caught.value, **known)


def feed(elements):
    return {"x": np.ones(1, np.float32), "shape": np.array([elements], np.int64)}


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)},
        {"a": np.zeros((2, 1), np.float32), "b": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.int64), "b": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(2, np.float32)},
    ],
    ids=["dimensions", "rank", "type", "missing", "unknown"],
)
def test_bad_inputs_are_the_callers(add, inputs):
    """Inputs that do not fit the model blame no device."""
    session = ort.InferenceSession(add, providers=CPU)
    assert failure_of(lambda: session.run(None, inputs)).failure_class is FailureClass.CALLER


def test_bad_inputs_through_io_binding(add):
    """The same through IOBinding, where the class of the error is another."""
    session = ort.InferenceSession(add, providers=CPU)
    binding = session.io_binding()
    binding.bind_cpu_input("a", np.zeros((2, 1), np.float32))
    binding.bind_cpu_input("b", np.zeros(2, np.float32))
    binding.bind_output("y")
    failure = failure_of(lambda: session.run_with_iobinding(binding))
    assert failure.failure_class is FailureClass.CALLER


def test_a_corrupt_model(tmp_path):
    """A file that is no model is the model's fault, and the hint says to fetch it again."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model" * 100)
    failure = failure_of(lambda: ort.InferenceSession(path, providers=CPU))
    assert failure.failure_class is FailureClass.MODEL
    assert "fetch it again" in failure.hint


def test_a_missing_model(tmp_path):
    """A file that is not there is the model's fault."""
    failure = failure_of(lambda: ort.InferenceSession(tmp_path / "none.onnx", providers=CPU))
    assert (failure.failure_class, failure.pattern) == (FailureClass.MODEL, "model-missing")


def test_termination_is_ours(add):
    """A run that we ended is no failure."""
    session = ort.InferenceSession(add, providers=CPU)
    options = ort.RunOptions()
    options.terminate = True
    inputs = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    assert failure_of(lambda: session.run(None, inputs, options)).failure_class is FailureClass.CANCELLED


def test_strict_mode_without_a_gpu(add):
    """A session that would run on the CPU though that was forbidden is an environment to be mended."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    failure = failure_of(lambda: ort.InferenceSession(add, options))
    assert failure.failure_class is FailureClass.ENVIRONMENT


def test_out_of_memory(expand):
    """A real failed allocation is understood, size and all, and the session lives on."""
    session = ort.InferenceSession(expand, unoptimised(), providers=CPU)
    failure = failure_of(lambda: session.run(None, feed(1 << 45)))
    assert failure.details.requested_bytes == 1 << 47
    assert failure.failure_class is FailureClass.POISONED
    assert session.run(None, feed(8))[0] == 8


def test_out_of_memory_through_io_binding(expand):
    """The same through IOBinding, where it is a builtin RuntimeError."""
    session = ort.InferenceSession(expand, unoptimised(), providers=CPU)
    binding = session.io_binding()
    for name, value in feed(1 << 45).items():
        binding.bind_cpu_input(name, value)
    binding.bind_output("y")
    failure = failure_of(lambda: session.run_with_iobinding(binding))
    assert (failure.pattern, failure.details.requested_bytes) == ("arena-full", 1 << 47)


def limited_session(expand):
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(
        memory, ort.OrtArenaCfg({"max_mem": 64 << 20, "arena_extend_strategy": 1})
    )
    options = unoptimised()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(expand, options, providers=CPU)


def test_the_limit_of_an_arena(expand):
    """An arena at its limit is out of memory, and a smaller batch works."""
    session = limited_session(expand)
    failure = failure_of(lambda: session.run(None, feed(LARGE)))
    assert (failure.failure_class, failure.pattern) == (FailureClass.OOM, "arena-limit")
    assert failure.details.requested_bytes == 4 * LARGE
    assert session.run(None, feed(1024))[0] == 1024
