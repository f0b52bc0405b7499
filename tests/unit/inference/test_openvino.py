"""OpenVINO gives the answers of ONNX Runtime, and refuses what it would answer wrongly."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graph_kit import write_graph
from resilient_ai._inference import openvino_runtime
from resilient_ai._inference.backend import OpenVinoBackend, OrtBackend
from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai._inference.session import Session
from resilient_ai.errors import (
    ConfigurationError,
    DeviceUnavailable,
    InvalidInput,
    ModelCorrupt,
    ModelNotFound,
)
from resilient_ai.testing import batch_of

pytest.importorskip("onnxruntime")

needs_openvino = pytest.mark.skipif(
    openvino_runtime.openvino_version() is None, reason="OpenVINO is not installed"
)
ROWS = batch_of([3, 5, 7], [2])
ALL = ("sentence_embedding", "pooled", "token_embeddings")


def feeds_of(*rows):
    batch = batch_of(*rows)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "model.onnx", *ALL)


@pytest.fixture
def session(graph):
    return OpenVinoSession(graph, threads=1)


@needs_openvino
class TestAnswers:
    @pytest.mark.parametrize("half", [False, True])
    @pytest.mark.parametrize("task", ["embed", "pool"])
    def test_as_onnx_runtime(self, tmp_path, half, task):
        """A backend gives the same vectors on either engine."""
        graph = write_graph(tmp_path / "model.onnx", *ALL, half=half)
        batch = batch_of([3, 5, 7], [2], task=task)
        ours = OpenVinoBackend(OpenVinoSession(graph, threads=1), device="cpu").run(batch)
        theirs = OrtBackend(Session(graph, threads=1), device="cpu").run(batch)
        np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)

    def test_what_it_tells_of_a_graph(self, graph, session):
        """Inputs and outputs have the names and types that ONNX Runtime tells."""
        other = Session(graph, threads=1)
        assert session.inputs == other.inputs
        assert {name: shape[-1] for name, shape in session.outputs.items()} == dict.fromkeys(ALL, 4)
        assert session.outputs.keys() == other.outputs.keys()

    def test_answers_are_the_callers(self, session):
        """An answer does not change when the session runs again."""
        first = session.run(["pooled"], feeds_of([3], [4]))[0]
        session.run(["pooled"], feeds_of([30], [40]))
        np.testing.assert_array_equal(first[:, 0], [3, 4])

    def test_outputs_in_order(self, session):
        """Outputs come in the order they were asked for."""
        tokens, pooled = session.run(["token_embeddings", "pooled"], feeds_of([3, 5]))
        assert (tokens.shape, pooled.shape) == ((1, 2, 4), (1, 4))

    def test_many_threads(self, session):
        """Eight threads at once get the answers to their own batches."""
        together = threading.Barrier(8)

        def ask(number):
            together.wait(10)
            return [session.run(["pooled"], feeds_of([number] * length))[0][0, 0] for length in range(1, 40)]

        with ThreadPoolExecutor(8) as pool:
            for number, found in zip(range(8), pool.map(ask, range(8)), strict=True):
                assert found == [number] * 39


@needs_openvino
class TestRefusals:
    @pytest.mark.parametrize(
        "feeds",
        [
            {"input_ids": np.ones((2, 3), np.int64)},
            {**feeds_of([1, 2]), "other": np.ones((1, 2), np.int64)},
            {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((3, 3), np.int64)},
            {"input_ids": np.ones((2, 3, 1), np.int64), "attention_mask": np.ones((2, 3), np.int64)},
        ],
        ids=["missing", "unknown", "unequal", "rank"],
    )
    def test_feeds_that_do_not_fit(self, session, feeds):
        """What is not what the graph takes is the caller's error, and the session goes on."""
        with pytest.raises(InvalidInput):
            session.run(["pooled"], feeds)
        assert session.run(["pooled"], feeds_of([3]))[0][0, 0] == 3

    def test_ids_beyond_the_table(self, tmp_path):
        """Ids that the table of words does not have are refused, not taken for zeros."""
        session = OpenVinoSession(write_lookup(tmp_path / "model.onnx", rows=5), threads=1)
        found = session.run(["pooled"], {"input_ids": np.array([[0, 4]])})[0]
        np.testing.assert_array_equal(found[0, :, 0], [0, 4])
        for wrong in (5, -6):
            with pytest.raises(InvalidInput, match="knows 5"):
                session.run(["pooled"], {"input_ids": np.array([[0, wrong]])})

    def test_unknown_output(self, session):
        """An output that is not there is named, with those that are."""
        with pytest.raises(InvalidInput, match=r"nothing.*pooled"):
            session.run(["nothing"], feeds_of([3]))

    def test_closed(self, session):
        """A closed session says so; closing twice is fine."""
        session.close()
        session.close()
        with pytest.raises(DeviceUnavailable, match="closed"):
            session.run(["pooled"], feeds_of([3]))

    def test_no_graph(self, tmp_path):
        """A graph that is not there is told apart from one that cannot be loaded."""
        with pytest.raises(ModelNotFound, match="fetch"):
            OpenVinoSession(tmp_path / "none.onnx", threads=1)
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\x08\x09")
        with pytest.raises(ModelCorrupt, match="broken"):
            OpenVinoSession(broken, threads=1)


class TestWithoutThePackage:
    def test_what_to_install(self, graph, monkeypatch):
        """Without OpenVINO the error says which extra has it."""
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert openvino_runtime.openvino_version() is None
        with pytest.raises(ConfigurationError, match=r"resilient-ai\[openvino\]"):
            OpenVinoSession(graph, threads=1)


def write_lookup(path, *, rows):
    """A graph that gives for each id the row of a table, whose numbers are the id."""
    import onnx
    from onnx import TensorProto, helper

    table = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 4, axis=1)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["pooled"])],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["rows", "longest", 4])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


QUIET = """
import sys, threading
from pathlib import Path
from resilient_ai._inference.openvino import OpenVinoSession
assert "openvino" not in sys.modules
OpenVinoSession(Path(sys.argv[1]), threads=1)
assert "openvino_telemetry" not in sys.modules
assert not list(Path.home().iterdir())
assert threading.active_count() == 1
"""

FORK = """
import os, sys, time
import numpy as np
from pathlib import Path
from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai.errors import DeviceUnavailable
graph = Path(sys.argv[1])
feeds = {name: np.ones((64, 128), np.int64) for name in ("input_ids", "attention_mask")}
old = OpenVinoSession(graph, threads=2)
old.run(["pooled"], feeds)
child = os.fork()
if child == 0:
    try:
        old.run(["pooled"], feeds)
    except DeviceUnavailable as exc:
        assert "fork" in str(exc)
    else:
        sys.exit(3)
    new = OpenVinoSession(graph, threads=2)
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
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_script(script, graph, home):
    home.mkdir()
    command = [sys.executable, "-c", script, str(graph)]
    done = subprocess.run(
        command, env={"HOME": str(home)}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


@needs_openvino
@pytest.mark.slow
def test_its_import_is_quiet(graph, tmp_path):
    """OpenVINO is imported when it is needed, reports to nobody, and leaves nothing in the home folder."""
    assert run_script(QUIET, graph, tmp_path / "home") == (0, "")


@needs_openvino
@pytest.mark.slow
def test_fork(graph, tmp_path):
    """The child of a fork cannot use its parent's session, can make one of its own, and ends."""
    assert run_script(FORK, graph, tmp_path / "home") == (7, "")
