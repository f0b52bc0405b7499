"""Making an int8 graph goes well as a whole, or leaves nothing and says why."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple

import numpy as np
import onnx
import pytest
from onnx import helper
from quantize_kit import error, open_graph, operators, quantized, write, write_mlp

from resilient_ai._models.quantize import quantize_graph, rewriting
from resilient_ai._models.quantize.recipes import Recipe
from resilient_ai.errors import ConfigurationError, InvalidInput, ModelCorrupt


@pytest.fixture
def source(tmp_path):
    return write_mlp(tmp_path / "mlp.onnx")


def left_in(folder):
    """What lies in a folder but for the lock, which stays."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_weights_beside_the_graph(tmp_path):
    """Weights of another file are read from there, and the result's may lie beside it; both run alike."""
    source = write_mlp(tmp_path / "mlp.onnx", external=True)
    inside = error(quantized(source, "mixed"), source)
    target = quantized(source, "mixed", inline_limit=0)
    assert target.with_name(f"{target.name}.data").is_file()
    assert error(target, source) == inside
    quantized(source, "mixed")
    assert not target.with_name(f"{target.name}.data").exists()


def test_what_is_quantized_already(tmp_path, source):
    """An int8 graph and one in half precision are no graphs to start from, and are named."""
    half = write_mlp(tmp_path / "half.onnx", half=True)
    for path, precision in ((quantized(source), "int8"), (half, "fp16")):
        with pytest.raises(ConfigurationError, match=rf"{path.name} is a graph of {precision} already"):
            quantize_graph(path, tmp_path / "again.onnx")


def test_no_matrices(tmp_path):
    """A graph without a stored matrix of some size has nothing to gain, and is named."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "small"], ["token_embeddings"]),
    ]
    path = write(tmp_path / "small.onnx", nodes, {"small": np.ones((8, 8), np.float32)})
    with pytest.raises(ConfigurationError, match=r"small\.onnx multiplies with no stored float32 matrix"):
        quantize_graph(path, tmp_path / "out.onnx")


@pytest.mark.parametrize("damage", ["missing", "cut", "shape"])
def test_damaged_weights(tmp_path, damage):
    """Weights that are missing, cut short, or fewer than a shape says are corrupt; the graph is named."""
    path = write_mlp(tmp_path / "mlp.onnx", external=True)
    weights = tmp_path / "weights.bin"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        model = onnx.load(path, load_external_data=False)
        model.graph.initializer[1].dims[0] *= 1000
        path.write_bytes(model.SerializeToString())
    before = left_in(tmp_path)
    with pytest.raises(ModelCorrupt, match=r"mlp\.onnx"):
        quantize_graph(path, tmp_path / "out.onnx")
    assert left_in(tmp_path) == before


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk(source, monkeypatch, when):
    """Where there is no room, it is said before or when it runs out, and what was there stays."""
    target = quantized(source)
    before, made = left_in(source.parent), target.read_bytes()
    if when == "before":
        usage = namedtuple("usage", "free")(1000)  # noqa: PYI024 - three fields of the real one are not read
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:

        def fail(*_):
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(rewriting.WeightFile, "add", fail)
    with pytest.raises(ConfigurationError, match=r"Free some"):
        quantized(source)
    assert left_in(source.parent) == before
    assert target.read_bytes() == made


def test_a_check_that_refuses(source):
    """What a check raises is raised, and the graph it looked at is gone."""
    seen = []

    def refuse(made):
        seen.append(operators(made))
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError, match="no"):
        quantized(source, check=refuse)
    assert "MatMulIntegerToFloat" in seen[0]
    assert left_in(source.parent) == ["mlp.onnx"]


def test_what_cannot_be_asked(source, tmp_path):
    """A recipe that is none, one that has to look and may not, one that takes nothing; a graph onto itself."""
    target = tmp_path / "out.onnx"
    with pytest.raises(ConfigurationError, match="there are: rowwise, mixed, precise"):
        quantize_graph(source, target, recipe="best")
    with pytest.raises(ConfigurationError, match="has to run the graph"):
        quantize_graph(source, target, recipe="mixed")
    nothing = Recipe(name="nothing", tolerance=1e-9, limit=1e-9)
    with pytest.raises(ConfigurationError, match=r"mlp\.onnx bears int8 in none"):
        quantize_graph(source, target, recipe=nothing, open_graph=open_graph)
    with pytest.raises(InvalidInput, match="its own"):
        quantize_graph(source, source)
    assert left_in(tmp_path) == ["mlp.onnx"]
