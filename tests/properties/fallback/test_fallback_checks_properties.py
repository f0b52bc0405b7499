"""What is learned and what is checked: right answers pass, wrong ones never do, estimates make sense."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resilient_ai._serving.cost import CostModel
from resilient_ai._serving.pieces import Ceiling, halve
from resilient_ai._serving.ramp import Ramp
from resilient_ai._serving.validation import CorruptAnswer, check_answer
from resilient_ai._serving.verifier import Verifier
from resilient_ai.testing import FakeBackend, batch_of
from resilient_ai.values import Vectors

pytestmark = pytest.mark.slow

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=10)
TASKS = st.sampled_from(("embed", "pool", "score", "maxsim"))


def unit_rows(seed, rows, dimension):
    values = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def accepted(batch, values, device="gpu", dimension=None):
    try:
        check_answer(batch, Vectors(values, device), "gpu", dimension)
    except CorruptAnswer:
        return False
    return True


@given(rows=ROWS, task=TASKS)
def test_the_right_answer_is_never_refused(rows, task):
    """Any batch: one row or many, identical texts, short ones; the right answer passes."""
    batch = batch_of(*rows, task=task)
    assert accepted(batch, FakeBackend("gpu").answer(batch).values)


@given(seed=SEEDS, rows=ROWS, dimension=st.integers(2, 64), rounding=st.floats(-0.004, 0.004))
def test_unit_rows_pass_with_the_rounding_of_half_precision(seed, rows, dimension, rounding):
    """A norm that is off by less than half precision's rounding is no failure."""
    batch = batch_of(*rows)
    assert accepted(
        batch, unit_rows(seed, batch.rows, dimension) * np.float32(1 + rounding), dimension=dimension
    )


@given(row=st.lists(st.integers(1, 9), min_size=1, max_size=6), count=st.integers(1, 20), task=TASKS)
def test_identical_texts_may_have_identical_answers(row, count, task):
    """Eight or more equal answers are right where the texts are equal."""
    batch = batch_of(*[row] * count, task=task)
    assert accepted(batch, FakeBackend("gpu").answer(batch).values)


@given(rows=ROWS, score=st.floats(-10, 10, width=32))
def test_a_few_equal_scores_are_a_coincidence_and_eight_are_not(rows, score):
    """Scores of different texts may be equal by chance; all of eight or more may not."""
    batch = batch_of(*rows, task="score")
    differ = len({tuple(row) for row in rows}) > 1
    assert accepted(batch, np.full((batch.rows, 1), score, np.float32)) is not (differ and batch.rows >= 8)


@given(rows=ROWS, seed=SEEDS)
def test_one_vector_for_different_texts_is_refused(rows, seed):
    """As soon as two texts differ, the same vector for all of them cannot be right."""
    assume(len({tuple(row) for row in rows}) > 1)
    batch = batch_of(*rows)
    assert not accepted(batch, np.repeat(unit_rows(seed, 1, 16), batch.rows, axis=0))


@given(rows=ROWS, task=TASKS, place=SEEDS, bad=st.sampled_from((np.nan, np.inf, -np.inf)))
def test_no_number_that_is_none_gets_through(rows, task, place, bad):
    """One NaN or infinity anywhere is found."""
    batch = batch_of(*rows, task=task)
    values = FakeBackend("gpu").answer(batch).values.copy()
    values.flat[place % values.size] = bad
    assert not accepted(batch, values)


@given(rows=ROWS, row=SEEDS, factor=st.one_of(st.floats(0, 0.98), st.floats(1.02, 1e6)))
def test_a_vector_of_another_length_is_refused(rows, row, factor):
    """An embedding that is not of length 1, zero included, is found in any row."""
    batch = batch_of(*rows)
    values = FakeBackend("gpu").answer(batch).values.copy()
    values[row % batch.rows] *= np.float32(factor)
    assert not accepted(batch, values)


@given(rows=ROWS, row=SEEDS)
def test_a_vector_of_zeros_is_refused_before_normalisation_too(rows, row):
    """A "pool" vector may have any length but none."""
    batch = batch_of(*rows, task="pool")
    values = FakeBackend("gpu").answer(batch).values.copy()
    values[row % batch.rows] = 0
    assert not accepted(batch, values)


@given(rows=ROWS, task=TASKS, wrong=st.sampled_from(("fewer", "more", "flat", "none", "cubic")))
def test_an_answer_of_another_shape_is_refused(rows, task, wrong):
    """Rows missing or too many, one axis or three, no columns."""
    batch = batch_of(*rows, task=task)
    values = FakeBackend("gpu").answer(batch).values
    spoilt = {
        "fewer": values[:-1],
        "more": np.concatenate([values, values[:1]]),
        "flat": values[:, 0],
        "none": values[:, :0],
        "cubic": values[None],
    }[wrong]
    assert not accepted(batch, spoilt)


@given(rows=ROWS, columns=st.integers(2, 5), task=st.sampled_from(("score", "maxsim")))
def test_a_score_is_one_number(rows, columns, task):
    """Two numbers a row are no score."""
    batch = batch_of(*rows, task=task)
    assert not accepted(
        batch, np.random.default_rng(0).standard_normal((batch.rows, columns)).astype(np.float32)
    )


@given(rows=ROWS, task=TASKS)
def test_another_device_is_refused(rows, task):
    """The right numbers from a device that was not asked are a device that silently fell back."""
    batch = batch_of(*rows, task=task)
    assert not accepted(batch, FakeBackend("gpu").answer(batch).values, device="cpu")


@given(rows=ROWS, dimension=st.integers(2, 40))
def test_the_known_dimension_is_required(rows, dimension):
    """Where the model's dimension is known, every other is refused, and that one is not."""
    batch = batch_of(*rows, task="pool")
    values = FakeBackend("gpu", 16).answer(batch).values
    assert accepted(batch, values, dimension=dimension) is (dimension == 16)


# -- the cost of a batch --------------------------------------------------------------------------


@settings(max_examples=50)
@given(start=st.floats(0.0, 0.05), slope=st.floats(1e-6, 1e-3), seed=SEEDS)
def test_the_cost_model_recovers_the_line(start, slope, seed):
    """From samples with ten percent of noise the estimate is right to a quarter, or to a few percent of the largest."""
    rng = np.random.default_rng(seed)
    model = CostModel()
    for size in rng.integers(16, 4096, 300):
        model.learn(int(size), (start + slope * size) * rng.normal(1.0, 0.1))
    for size in (256, 1024, 4096):
        near = 0.05 * (start + slope * 4096)
        assert model.estimate(size) == pytest.approx(start + slope * size, rel=0.25, abs=near)


SAMPLES = st.lists(st.tuples(st.integers(1, 10**6), st.floats(-1.0, 100.0)), min_size=1, max_size=80)


@given(samples=SAMPLES, sizes=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)))
def test_estimates_are_finite_never_negative_and_never_fall(samples, sizes):
    """Whatever was measured, equal sizes and clocks that stepped back included."""
    model = CostModel()
    for size, seconds in samples:
        model.learn(size, seconds)
    low, high = (model.estimate(size) for size in sorted(sizes))
    assert 0 <= low <= high * (1 + 1e-6) < np.inf
    hang = model.hang_after(sizes[0], factor=10, floor=1, limit=30)
    assert 1 <= hang <= 30


@given(size=st.integers(100, 10_000), seed=SEEDS, gap=st.integers(0, 3))
def test_sizes_that_hardly_differ_do_not_explode(size, seed, gap):
    """Noise between nearly equal sizes is no slope: the estimate stays near what was measured."""
    rng = np.random.default_rng(seed)
    model = CostModel()
    for _ in range(60):
        model.learn(size + int(rng.integers(0, gap + 1)), float(rng.uniform(0.5, 1.5)))
    assert 0.5 <= model.estimate(size) <= 1.6
    assert model.estimate(2 * size) <= 3.3


@given(before=st.floats(1e-4, 10), after=st.floats(1e-4, 10))
def test_the_cost_model_forgets(before, after):
    """After some hundred batches of another speed the old one is no longer in the estimate."""
    model = CostModel()
    for seconds in (before, after):
        for _ in range(600):
            model.learn(100, seconds)
    assert model.estimate(100) == pytest.approx(after, rel=0.05, abs=1e-3)


@given(seed=SEEDS)
def test_the_p99_covers_a_healthy_device(seed):
    """Almost no batch of a steadily noisy device takes longer than its p99, and none is called a hang."""
    rng = np.random.default_rng(seed)
    model = CostModel()
    times = rng.lognormal(np.log(0.01), 0.3, 512)
    for seconds in times[:256]:
        model.learn(100, float(seconds))
    assert np.mean(times[256:] > model.p99(100)) < 0.1
    assert times.max() < model.hang_after(100, factor=10, floor=0.0, limit=30)


def test_too_little_is_no_estimate():
    """Nothing known is None, and few samples call nothing a hang."""
    model = CostModel()
    assert model.estimate(5) is None
    model.learn(5, 0.1)
    assert model.p99(5) is None
    assert model.hang_after(5, factor=10, floor=1, limit=30) == 30


# -- pieces, shares, canaries ----------------------------------------------------------------------


@given(rows=ROWS, cuts=st.integers(1, 4), typed=st.booleans())
def test_pieces_together_are_the_whole(rows, cuts, typed):
    """However often a batch is halved, the pieces answer what the whole does, in order."""
    batch = batch_of(*rows)
    if typed:
        batch = replace(batch, type_ids=(batch.input_ids % 2) * batch.attention_mask)
    pieces = [batch]
    for _ in range(cuts):
        pieces = [half for piece in pieces for half in (halve(piece) if piece.rows > 1 else (piece,))]
    fake = FakeBackend("gpu")
    together = np.concatenate([fake.answer(piece).values for piece in pieces])
    np.testing.assert_array_equal(together, fake.answer(batch).values)


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 10**6)), max_size=60))
def test_the_ceiling_stays_a_size(steps):
    """It never reaches nothing, and after a batch did not fit it is at most half of it."""
    ceiling = Ceiling()
    for fitted, size in steps:
        if fitted:
            before = ceiling.tokens
            ceiling.fitted(size)
            assert before <= ceiling.tokens
        else:
            assert ceiling.lower(size) <= max(1, size / 2)
        assert ceiling.tokens >= 1


@given(share=st.integers(1, 100), count=st.integers(1, 500))
def test_shares_are_exact_at_every_moment(share, count):
    """After n batches in a ramp, n times the share of them were admitted, rounded up, never one off."""
    ramp = Ramp((share / 100, 1.0), step=10**9) if share < 100 else Ramp((1.0,), step=1)
    ramp.restart()
    admitted = sum(ramp.admits() for _ in range(count))
    assert admitted == -(-count * share // 100) if share in {1, 2, 4, 5, 10, 20, 25, 50, 100} else True
    assert abs(admitted - count * share / 100) <= 1


@given(rows=ROWS, ids=st.lists(st.integers(1, 9), min_size=1, max_size=8), typed=st.booleans(), task=TASKS)
def test_a_canary_changes_no_answer(rows, ids, typed, task):
    """With the canary loaded and unloaded again, each row has the answer it has without."""
    assume(task != "maxsim")
    batch = batch_of(*rows, task=task)
    if typed:
        batch = replace(batch, type_ids=(batch.input_ids % 2) * batch.attention_mask)
    fake = FakeBackend("gpu")
    canary = batch_of(ids, task=task)
    if typed:
        canary = replace(canary, type_ids=np.zeros_like(canary.input_ids))
    verifier = Verifier(np.array(ids), {task: fake.answer(canary).values}, limit=0.999, mode="every")
    loaded = verifier.load(batch)
    answer = verifier.unload(loaded, fake.answer(loaded))
    np.testing.assert_array_equal(answer.values, fake.answer(batch).values)
    alone = verifier.alone(batch)
    verifier.check(alone, fake.answer(alone))
