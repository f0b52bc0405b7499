"""What is known of values by what made them spares passes over them, and costs no exactness."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from quantize_kit import (
    HIDDEN,
    WIDE,
    WORDS,
    answers,
    error,
    open_graph,
    operators,
    quantized,
    write,
    write_block,
)

from resilient_ai._inference.openvino import OpenVinoSession
from resilient_ai._inference.openvino_runtime import openvino_version
from resilient_ai._models.quantize import RECIPES
from resilient_ai._models.quantize.integers import quantize_columns
from resilient_ai._models.quantize.knowledge import treatments
from resilient_ai._models.quantize.outliers import EVEN, PLAIN, FixedSum, Treatment, product_error
from resilient_ai._models.quantize.source import SourceGraph


def known_of(path):
    return treatments(SourceGraph.open(path))


@given(seed=st.integers(0, 10_000), apart=st.sets(st.integers(0, 23), max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_shift_of_a_row_changes_nothing(seed, apart):
    """The integers of a leveled matrix add up to 0, and with its offset it gives the products it gave."""
    rng = np.random.default_rng(seed)
    weights, total = rng.uniform(0.5, 2, 24), rng.normal()
    rows, matrix = rng.normal(size=(6, 24)), rng.normal(size=(24, 9)) + 0.3
    rows[:, 0] += (total - rows @ weights) / weights[0]
    scales = rng.uniform(0.5, 1.5, 24).astype(np.float32)
    columns = np.array(sorted(apart), np.int64)
    scales[columns] = 0
    way = Treatment(fixed_sum=FixedSum(weights.astype(np.float32), total), columns=columns, scales=scales)
    leveled, offset = way.leveled(matrix)
    np.testing.assert_allclose(rows @ leveled + offset, rows @ matrix, atol=1e-3)
    assert not way.integers_of(leveled)[0].sum(axis=0, dtype=int).any()


def test_levelling_costs_a_rounding():
    """Made to add up to 0, integers move by one at most, and no more of them than it takes."""
    matrix = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    matrix -= matrix.mean(axis=0)
    rounded, scales = quantize_columns(matrix)
    leveled, same = quantize_columns(matrix, level=True)
    np.testing.assert_array_equal(scales, same)
    moved = np.abs(leveled.astype(int) - rounded)
    assert moved.max() == 1
    np.testing.assert_array_equal(moved.sum(axis=0), np.abs(rounded.sum(axis=0, dtype=int)))
    np.testing.assert_allclose(leveled * scales, matrix, atol=0.75 * scales.max())


def test_what_operators_tell(tmp_path):
    """Behind a normalisation rows have a fixed sum, behind GELU a floor; of other values nothing is known."""
    path = write_block(tmp_path / "block.onnx")
    known = known_of(path)
    normed, active = known["normed"], known["active"]
    assert known["x"] is PLAIN
    assert normed.fixed_sum is not None
    values = open_graph(path)(["token_embeddings"], {"input_ids": np.arange(WORDS)[None]})[0]
    assert values.shape == (1, WORDS, HIDDEN)
    grid = np.linspace(-3, 1, 4001)
    assert active.floor is not None
    assert active.floor < min(0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in grid)
    assert active.floor < (0.5 * grid * (1 + np.tanh(0.79788456 * (grid + 0.044715 * grid**3)))).min()


@pytest.mark.parametrize("gain", [0.0, 0.01, -1.0])
def test_a_gain_that_cannot_be_divided_by(tmp_path, gain):
    """Where a gain is 0, tiny beside the others, or of another sign, nothing is made of the sum."""
    gains = np.ones(HIDDEN)
    gains[5] = gain
    path = write_block(tmp_path / "block.onnx", gain=gains)
    assert known_of(path)["normed"] is PLAIN
    assert error(quantized(path), path) < 0.02


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-30, 1e-3, 1.0, 50.0]))
@settings(max_examples=40, deadline=None)
def test_nothing_is_cut_off(seed, size):
    """Whatever is known of a value, its integers reach every row's extremes: no value moves by a step."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(8, 32)) * size).astype(np.float32)
    floored = np.maximum(rows, np.float32(-0.17))
    identity = np.eye(32, dtype=np.float32)
    for way, values in ((PLAIN, rows), (EVEN, rows), (Treatment(zero=40, floor=-0.17), floored)):
        span = max(float(np.ptp(values)), 2 * float(np.abs(values).max()), way.least_span)
        step = span / min(way.levels, 127) / max(float(np.linalg.norm(values, axis=1).min()), 1e-38)
        assert product_error(values, identity, way) <= step * math.sqrt(32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_bias_takes_the_offset(tmp_path, recipe):
    """Nothing is added that was not before: where a bias follows, the offset is in it."""
    path = write_block(tmp_path / "block.onnx")
    target = quantized(path, recipe)
    columns = operators(target).count("MatMul")
    assert operators(target).count("Add") == operators(path).count("Add") + columns
    assert error(target, path) < 0.015


def test_a_product_that_others_read(tmp_path):
    """Where a product has more readers than the one with the bias, the offset is added to it itself."""
    path = write_block(tmp_path / "block.onnx", readers=2)
    target = quantized(path)
    assert operators(target).count("Add") == operators(path).count("Add") + 1
    assert error(target, path) < 0.015


def test_a_product_that_another_multiplies(tmp_path):
    """A product that is added to a vector and multiplied too holds its offset for both."""
    rng = np.random.default_rng(3)
    tensors = {
        "table": rng.normal(size=(WORDS, HIDDEN)),
        "gain": rng.uniform(0.5, 1.5, HIDDEN),
        "shift": rng.normal(size=HIDDEN),
        "first": (rng.normal(size=(HIDDEN, WIDE)) + 0.2) / 8,
        "second": rng.normal(size=(WIDE, WIDE)) / 8,
        "bias": rng.normal(size=WIDE),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "first"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["biased"]),
        helper.make_node("MatMul", ["wide", "second"], ["narrow"]),
        helper.make_node("Add", ["narrow", "biased"], ["token_embeddings"]),
    ]
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    path = write(tmp_path / "twice.onnx", nodes, tensors)
    assert error(quantized(path), path) < 0.015


@pytest.mark.parametrize("recipe", RECIPES)
@given(ids=st.lists(st.lists(st.integers(0, WORDS - 1), min_size=3, max_size=3), min_size=2, max_size=6))
@settings(max_examples=15, deadline=None)
def test_rows_stay_alone(blocks, recipe, ids):
    """What a token gets is the same to the last bit alone and in any company."""
    run = blocks[recipe]
    together = run(["token_embeddings"], {"input_ids": np.array(ids)})[0]
    alone = [run(["token_embeddings"], {"input_ids": np.array([row])})[0][0] for row in ids]
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    source = write_block(tmp_path_factory.mktemp("blocks") / "block.onnx")
    return {name: open_graph(quantized(source, name)) for name in RECIPES}


@pytest.mark.slow
@pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("recipe", RECIPES)
def test_openvino_runs_it(tmp_path, recipe):
    """The second engine loads such a graph and computes the same, but for its own rounding."""
    path = write_block(tmp_path / "block.onnx")
    target = quantized(path, recipe)
    ids = np.arange(60)[None]
    found = OpenVinoSession(target, threads=1).run(["token_embeddings"], {"input_ids": ids})[0][0]
    exact = answers(path, ids)
    shares = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert shares.max() < 0.03
