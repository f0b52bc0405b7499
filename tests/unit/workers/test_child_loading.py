"""How a worker loads a model: on what it was asked for, and used once in every shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_kit import DIM, write_failing_graph, write_graph
from resilient_ai._workers.child.loading import Loader, warm_up_batch
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.errors import DeviceFailed, ModelCorrupt, ModelNotFound
from resilient_ai.testing import FakeClock

LOADER = Loader("simulated")


def spec(graph, **options):
    return ModelSpec(name="tiny", graph=str(graph), **{"vocabulary": 100, **options})


class Phases(list):
    """Notes the phases that are announced."""

    def __call__(self, phase, **details):
        self.append((phase, details))


def test_a_model_is_loaded_and_used_in_every_shape(tmp_path):
    """The session and each shape are announced as they begin, so that each has its own limit."""
    graph = write_graph(tmp_path / "m.onnx", "pooled")
    phases = Phases()
    loaded = LOADER.load(spec(graph, shapes=((4, 16), (1, 3))), phases)
    assert phases == [
        ("session", {}),
        ("warm_up", {"shape": [4, 16]}),
        ("warm_up", {"shape": [1, 3]}),
    ]
    assert loaded.backend.device == "simulated"
    assert loaded.canary.input_ids.shape == (1, 3)


def test_the_report_says_what_is_really_used(tmp_path):
    """Providers are those of the session, the dimension that of the graph, the time that of loading."""
    graph = write_graph(tmp_path / "m.onnx", "sentence_embedding")
    clock = FakeClock()
    loaded = Loader("simulated", clock=clock).load(spec(graph), lambda *_, **__: clock.tick(1.5))
    assert loaded.report == {
        "providers": ["CPUExecutionProvider"],
        "nodes": {"CPUExecutionProvider": loaded.report["nodes"]["CPUExecutionProvider"]},
        "dimension": DIM,
        "seconds": 3.0,
        "notes": [],
    }
    assert loaded.report["nodes"]["CPUExecutionProvider"] > 0


def test_a_model_without_shapes_is_not_run(tmp_path):
    """Nothing is warmed up that was not asked for; a canary there is all the same."""
    graph = write_failing_graph(tmp_path / "m.onnx")
    phases = Phases()
    loaded = LOADER.load(spec(graph, shapes=()), phases)
    assert phases == [("session", {})]
    assert loaded.canary.input_ids.shape == (1, 8)


def test_what_fails_in_its_warm_up_is_not_loaded(tmp_path):
    """A model that cannot run is found out before anybody relies on it."""
    graph = write_failing_graph(tmp_path / "m.onnx")
    with pytest.raises(DeviceFailed, match="Reshape"):
        LOADER.load(spec(graph, shapes=((1, 3),)), Phases())


def test_what_is_no_graph_is_told_apart(tmp_path):
    """A graph that is missing and one that is broken are the model's fault, not the device's."""
    with pytest.raises(ModelNotFound):
        LOADER.load(spec(tmp_path / "none.onnx"), Phases())
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelCorrupt):
        LOADER.load(spec(tmp_path / "broken.onnx"), Phases())


@given(
    vocabulary=st.none() | st.integers(1, 300),
    rows=st.integers(1, 8),
    longest=st.integers(1, 64),
    task=st.sampled_from(["embed", "pool", "score", "maxsim"]),
)
def test_warm_up_batches_are_valid(vocabulary, rows, longest, task):
    """Ids that the model has, no padding, and a query where a query is needed."""
    batch = warm_up_batch(spec("m.onnx", vocabulary=vocabulary, task=task), rows, longest)
    assert batch.model == "tiny"
    assert batch.input_ids.shape == batch.attention_mask.shape == (rows, longest)
    assert (batch.input_ids.dtype, batch.lengths.dtype) == (np.int64, np.int64)
    assert 0 <= batch.input_ids.min() <= batch.input_ids.max() < (vocabulary or 1)
    assert (batch.attention_mask == 1).all()
    assert batch.lengths.tolist() == [longest] * rows
    assert (batch.shared_ids is not None) == (task == "maxsim")
