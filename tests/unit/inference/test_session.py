"""Sessions are on the device they claim to be on, and their errors say whose fault it is."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graph_kit import write_failing_graph, write_graph
from resilient_ai._inference import runtime as module
from resilient_ai._inference.session import GpuOptions, Session, gpu_is_installed, runtime_version
from resilient_ai.errors import (
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
)
from serving_kit import run_python

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "model.onnx", "pooled", "logits")


def feeds(rows=2, longest=3, **others):
    ids = np.arange(1, rows * longest + 1).reshape(rows, longest)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), **others}


class TestRun:
    def test_what_the_graph_says_of_itself(self, graph):
        """Inputs, outputs and the provider really used can be asked for."""
        session = Session(graph, threads=1)
        assert session.providers == ("CPUExecutionProvider",)
        assert dict(session.inputs) == {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
        assert session.outputs["pooled"] == ("rows", 4)
        session.close()

    def test_outputs_in_the_order_asked_for(self, graph):
        """The named outputs come in the order of their names."""
        session = Session(graph, threads=1)
        logits, pooled = session.run(["logits", "pooled"], feeds())
        assert logits.tolist() == [[1], [4]]
        assert pooled.tolist() == [[1, 2, 3, -4], [4, 8, 12, -16]]

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"input_ids": np.ones((1, 2), np.int64)},
            feeds() | {"input_ids": np.ones((2, 3), np.float32)},
            feeds() | {"input_ids": np.ones(3, np.int64)},
            feeds(other=np.ones(1)),
        ],
    )
    def test_wrong_feeds(self, graph, wrong):
        """Feeds that the graph refuses are the caller's error, not the device's."""
        session = Session(graph, threads=1)
        with pytest.raises(InvalidInput):
            session.run(["pooled"], wrong)

    def test_an_unknown_output(self, graph):
        """So is the name of an output that is not there."""
        with pytest.raises(InvalidInput):
            Session(graph, threads=1).run(["nothing"], feeds())

    def test_failing_while_it_runs(self, tmp_path):
        """What fails inside the graph is the device's failure, in the runtime's own words."""
        session = Session(write_failing_graph(tmp_path / "model.onnx"), threads=1)
        assert session.run(["pooled"], {"input_ids": np.array([[2, 3]])})[0].tolist() == [2, 3]
        with pytest.raises(DeviceFailed, match="Reshape") as caught:
            session.run(["pooled"], {"input_ids": np.array([[99]])})
        assert caught.value.__cause__ is not None

    def test_threads_share_a_session(self, graph):
        """Many threads may run one session."""
        session, barrier = Session(graph, threads=2), threading.Barrier(4)

        def work(number):
            barrier.wait()
            ids = np.full((1, 2), number)
            wanted = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            return [session.run(["logits"], wanted)[0].item() for _ in range(50)]

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(work, range(4))) == [[number] * 50 for number in range(4)]

    @pytest.mark.skipif(
        not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
        reason="this version does not tell",
    )
    def test_where_the_nodes_run(self, graph):
        """Every node is counted at the provider that runs it."""
        session = Session(graph, threads=1)
        assert list(session.nodes) == ["CPUExecutionProvider"]
        assert session.nodes["CPUExecutionProvider"] > 0
        assert session.notes == ()

    def test_giving_memory_back(self, graph):
        """A run that shrinks the arena gives the same answer as any other."""
        session = Session(graph, threads=1)
        shrunk = session.run(["pooled"], feeds(), shrink=True)[0]
        assert shrunk.tolist() == session.run(["pooled"], feeds())[0].tolist()
        assert session.notes == ()

    def test_closed(self, graph):
        """A closed session refuses to run; closing twice is nothing."""
        session = Session(graph, threads=1)
        session.close()
        session.close()
        with pytest.raises(DeviceUnavailable, match="closed"):
            session.run(["pooled"], feeds())
        with pytest.raises(DeviceUnavailable):
            _ = session.providers


class TestLoad:
    def test_a_missing_file(self, tmp_path):
        """A graph that is not there is a model that is not found."""
        with pytest.raises(ModelNotFound, match=r"model\.onnx"):
            Session(tmp_path / "model.onnx", threads=1)

    @pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x09" * 500, b"<html>404</html>"])
    def test_garbage(self, tmp_path, content):
        """A file that is no graph is a corrupt model."""
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ModelCorrupt, match=r"model\.onnx"):
            Session(tmp_path / "model.onnx", threads=1)

    @pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
    def test_a_torn_file(self, graph, kept):
        """A graph that was cut off is a corrupt model."""
        whole = graph.read_bytes()
        graph.write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(ModelCorrupt):
            Session(graph, threads=1)

    def test_a_folder(self, tmp_path):
        """A folder of that name is no graph."""
        with pytest.raises(ModelCorrupt):
            Session(tmp_path, threads=1)

    @pytest.mark.skipif(
        "onnxruntime-gpu" in [d.name for d in importlib.metadata.distributions()], reason="CPU build only"
    )
    @pytest.mark.parametrize("tensorrt", [False, True])
    def test_cuda_on_a_cpu_build(self, graph, tensorrt, recwarn):
        """Asking for a GPU that cannot be had is an error, never a quiet session on the CPU."""
        assert not gpu_is_installed()
        with pytest.raises(DeviceUnavailable):
            Session(graph, threads=1, gpu=GpuOptions(tensorrt=tensorrt))
        # Also where warnings are not errors, as in production.
        done = run_python(
            "import sys; from pathlib import Path\n"
            "from resilient_ai._inference.session import *\n"
            "try: Session(Path(sys.argv[1]), threads=1, gpu=GpuOptions())\n"
            "except Exception as e: print(type(e).__name__, e)\n",
            graph,
        )
        assert done.stdout.startswith("DeviceUnavailable")
        assert "onnxruntime-gpu" in done.stdout

    def test_gpu_options(self):
        """What is asked of the card is what the options say."""
        ((name, options),) = GpuOptions(device_id=2, memory_limit=1 << 30, allow_growth=False).providers()
        assert name == "CUDAExecutionProvider"
        assert options == {
            "device_id": "2",
            "arena_extend_strategy": "kNextPowerOfTwo",
            "gpu_mem_limit": str(1 << 30),
        }
        assert [name for name, _ in GpuOptions(tensorrt=True).providers()] == [
            "TensorrtExecutionProvider",
            "CUDAExecutionProvider",
        ]


class TestRuntime:
    def test_version(self):
        """The installed runtime's version can be told."""
        assert runtime_version().split(".")[0].isdigit()

    def test_both_distributions(self, monkeypatch):
        """Two runtimes in one folder are refused, with the commands that repair it."""
        monkeypatch.setattr(module, "_is_installed", lambda _: True)
        with pytest.raises(ConfigurationError, match="pip uninstall"):
            runtime_version()

    def test_neither_distribution(self, monkeypatch):
        """No runtime at all is said so, with the command that installs one."""
        monkeypatch.setattr(module, "_is_installed", lambda _: False)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ConfigurationError, match="pip install") as caught:
            runtime_version()
        assert isinstance(caught.value.__cause__, ImportError)

    @pytest.mark.slow
    @pytest.mark.parametrize("before", [None, "0", "1"])
    def test_the_telemetry_switch(self, before):
        """The runtime's telemetry is off unless the user has spoken, and the environment is left as it was."""
        environment = {} if before is None else {"ORT_DISABLE_TELEMETRY": before}
        done = run_python(
            "import os, sys\n"
            "if len(sys.argv) == 1: os.environ.pop('ORT_DISABLE_TELEMETRY', None)\n"
            "seen = []\n"
            "class Spy:\n"
            "    def find_spec(self, name, *_):\n"
            "        if name == 'onnxruntime': seen.append(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
            "sys.meta_path.insert(0, Spy())\n"
            "from resilient_ai._inference.session import runtime_version\n"
            "runtime_version()\n"
            "print(seen[0], os.environ.get('ORT_DISABLE_TELEMETRY'))\n",
            *([] if before is None else ["keep"]),
            **environment,
        )
        assert done.stdout.split() == [before or "1", str(before)], done.stderr


FORK = """
import os, sys, time
import numpy as np
from pathlib import Path
from resilient_ai._inference.session import Session
from resilient_ai.errors import DeviceUnavailable
graph = Path(sys.argv[1])
feeds = {name: np.ones((64, 128), np.int64) for name in ("input_ids", "attention_mask")}
old = Session(graph, threads=2)
old.run(["pooled"], feeds)
child = os.fork()
if child == 0:
    try:
        old.run(["pooled"], feeds)
    except DeviceUnavailable as exc:
        assert "fork" in str(exc)
    else:
        sys.exit(3)
    new = Session(graph, threads=2)
    assert new.run(["pooled"], feeds)[0].shape == (64, 4)
    new.close()
    del old
    sys.exit(7)
give_up = time.monotonic() + 20
while time.monotonic() < give_up:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.exit("the child hung")
assert old.run(["pooled"], feeds)[0].shape == (64, 4)
print("child ended with", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork(graph):
    """The child of a fork cannot use the old session, can use a new one, and exits as it wants to."""
    done = run_python(FORK, graph)
    assert done.stdout.strip() == "child ended with 7", done.stderr
