"""Products on integers: rows on their own, and channels that are treated apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_kit import HIDDEN, WORDS, answers, error, open_graph, operators, quantized, write_mlp

from resilient_ai._models.quantize.outliers import Treatment, choose_treatment, product_error
from resilient_ai._models.quantize.recipes import RECIPES, Recipe

LARGE = 100.0


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The int8 graphs of one model by recipe, loaded."""
    source = write_mlp(tmp_path_factory.mktemp("graphs") / "mlp.onnx", large_values=LARGE)
    return {name: open_graph(quantized(source, name)) for name in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES)
@given(rows=st.lists(st.lists(st.integers(0, WORDS - 1), min_size=4, max_size=4), min_size=2, max_size=9))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_know_its_neighbours(graphs, recipe, rows):
    """What a text gets is the same to the last bit alone and in any company."""
    run = graphs[recipe]
    together = run(["token_embeddings"], {"input_ids": np.array(rows)})[0]
    alone = [run(["token_embeddings"], {"input_ids": np.array([row])})[0][0] for row in rows]
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize("kind", ["large_values", "large_weights"])
def test_outliers_cost_nothing_where_they_are_treated(tmp_path, kind):
    """A few channels a hundred times as large ruin plain int8, and not `mixed`, which sets them apart."""
    plain = write_mlp(tmp_path / "plain.onnx")
    outlying = write_mlp(tmp_path / "outlying.onnx", **{kind: LARGE})
    usual = error(quantized(plain, "mixed"), plain)
    assert usual < 0.015
    assert error(quantized(outlying, "rowwise"), outlying) > 5 * usual
    assert error(quantized(outlying, "mixed"), outlying) < 1.3 * usual


@given(seed=st.integers(0, 10_000), columns=st.sets(st.integers(0, 15), max_size=6))
@settings(max_examples=50, deadline=None)
def test_scales_cancel_out(seed, columns):
    """Values by their scales, times the weights of a treatment, and the columns beside, are the product."""
    rng = np.random.default_rng(seed)
    x, matrix = rng.normal(size=(5, 16)), rng.normal(size=(16, 7))
    apart = np.array(sorted(columns), np.int64)
    scales = rng.uniform(0.1, 10, 16).astype(np.float32)
    scales[apart] = 0
    way = Treatment(columns=apart, scales=scales)
    found = (x * scales) @ way.weights_of(matrix) + x[:, apart] @ matrix[apart]
    np.testing.assert_allclose(found, x @ matrix, atol=1e-4)


def test_as_little_as_is_enough():
    """Nothing is set apart where nothing has to be; a product that stays bad is not taken over."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(64, HIDDEN)).astype(np.float32)
    weight = rng.normal(size=(HIDDEN, 32)).astype(np.float32)
    easy = choose_treatment(samples, weight, Recipe(name="easy", tolerance=0.05))
    assert easy is not None
    assert (easy.zero, easy.columns.size) == (128, 0)
    hard = samples.copy()
    hard[:, 7] *= LARGE
    treated = choose_treatment(hard, weight, Recipe(name="hard", tolerance=0.02, columns=(1, 2, 4)))
    assert treated is not None
    assert 7 in treated.columns
    assert product_error(hard, weight, treated) < 0.02
    assert choose_treatment(samples, weight, Recipe(name="no", tolerance=1e-6, limit=1e-5)) is None


def test_what_int8_holds_badly_stays(tmp_path):
    """A recipe with a low limit leaves the product that exceeds it in float32, and takes the others."""
    source = write_mlp(tmp_path / "mlp.onnx", large_weights=LARGE)
    strict = Recipe(name="strict", tolerance=0.01, columns=(), limit=0.013)
    target = quantized(source, strict)
    assert operators(target).count("MatMul") == 1
    assert operators(target).count("MatMulIntegerToFloat") == 1
    assert error(target, source) < error(quantized(source, "rowwise"), source) / 3


def test_tables_become_bytes(tmp_path):
    """A large table of embeddings is kept as int8 with a scale a row, a quarter of its size."""
    source = write_mlp(tmp_path / "mlp.onnx", words=5000)
    target = quantized(source)
    assert target.stat().st_size < 0.3 * source.stat().st_size
    assert operators(target).count("Gather") == 2
    assert error(target, source) < 0.02
    assert np.isfinite(answers(target, [0])).all()
