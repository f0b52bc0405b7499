"""Answers that look right and are not: the canary that rides along."""

from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import BATCH, CANARY, ROWS, TwoDevices

from resilient_ai._serving.canary import agreement, canary_batches, default_limit
from resilient_ai._serving.validation import CorruptAnswer
from resilient_ai._serving.verifier import Verifier
from resilient_ai.testing import FakeBackend, FaultPlan, FaultyBackend, batch_of
from resilient_ai.values import Tokens, Vectors

IDS = np.array([101, 7, 102])


def one_answer_for_all_tasks(batch):
    """Like a real model: "pool" is "embed" before it is normalised."""
    values = (
        FakeBackend("cpu").answer(replace(batch, task="embed" if batch.task == "pool" else batch.task)).values
    )
    return values * 3 if batch.task == "pool" else values


def verifier(mode="every", task="embed", limit=0.999):
    right = FakeBackend("cpu").answer(batch_of(IDS, task=task)).values
    return Verifier(IDS, {task: right}, limit=limit, mode=mode)


def proved(plan=None, **options):
    """Two devices of which the first was proved, and fails by a plan from then on."""
    gpu = FaultyBackend(FakeBackend("gpu", compute=options.pop("compute", None)))
    cpu = FakeBackend("cpu", compute=gpu._inner._compute)
    two = TwoDevices(gpu, cpu, **options)
    assert two.prober(canaries=(options.pop("canary", CANARY),))._examine(two.guard) is None
    gpu.set_plan(plan)
    return two


@pytest.mark.parametrize("preset", ["wrong_values", "perturbed"])
def test_with_every_no_wrong_value_gets_out(preset):
    """However the device lies, in each of many batches of all shapes the caller gets the right values."""
    rng = np.random.default_rng(1)
    two = proved(FaultPlan.preset(preset), verify="every", recovery_time=0.0)
    prober = two.prober(canaries=(CANARY,))
    for turn in range(200):
        lengths = rng.integers(1, 20, rng.integers(1, 9))
        batch = batch_of(*(rng.integers(1, 999, length) for length in lengths))
        np.testing.assert_array_equal(two.run(batch).values, two.cpu.answer(batch).values)
        two.guard.breaker.reset()
        if turn % 50 == 0:
            prober.probe_due()
    assert two.manager.stats().failures["corrupt"] >= 150
    two.manager.close()


@pytest.mark.parametrize("task", ["embed", "pool"])
def test_wrong_vectors_are_found_for_both_kinds(task):
    """A vector before normalisation is held against the same canary as the one after it."""
    two = proved(verify="every", compute=one_answer_for_all_tasks)
    batch = replace(BATCH, task=task)
    assert two.run(batch).device == "gpu"
    two.gpu.set_plan(FaultPlan.preset("wrong_values"))
    assert two.run(batch).device == "cpu"
    two.manager.close()


def test_wrong_scores_are_found():
    """A reranker's canary is a pair with a known score."""
    canary = batch_of([101, 7, 102, 8, 102], [101, 9, 102, 3, 102], task="score")
    gpu = FaultyBackend(FakeBackend("gpu"))
    two = TwoDevices(gpu, verify="every")
    assert two.prober(canaries=(canary,))._examine(two.guard) is None
    batch = batch_of(*ROWS, task="score")
    assert two.run(batch).device == "gpu"
    assert two.gpu._inner.calls[-1].rows == 4
    gpu.set_plan(FaultPlan.preset("perturbed"))
    assert two.run(batch).device == "cpu"
    two.manager.close()


def test_late_interaction_is_followed_by_the_canary():
    """A score against a query of the moment has no known answer, so a text with one follows it."""
    two = proved(verify="every")
    batch = replace(BATCH, task="maxsim", shared_ids=np.array([1, 2]))
    assert two.run(batch).device == "gpu"
    scored, canary = two.gpu._inner.calls[-2:]
    assert (scored.task, scored.rows, canary.task, canary.rows) == ("maxsim", BATCH.rows, "embed", 1)
    two.gpu.set_plan(FaultPlan.preset("wrong_values"))
    answer = two.run(batch)
    assert answer.device == "cpu"
    np.testing.assert_array_equal(answer.values, two.cpu.answer(batch).values)
    two.manager.close()


def test_off_adds_nothing():
    """With verification off each batch is sent as it is."""
    two = proved(verify="off")
    two.run()
    assert two.gpu._inner.calls[-1].rows == BATCH.rows
    two.manager.close()


@pytest.mark.parametrize("shape", [(1, 3), (3, 4), (32, 128), (2, 2), (64, 1)])
def test_sampling_spends_one_token_in_a_hundred(shape):
    """Over many batches the tokens added, padding included, are one hundredth of those asked for."""
    sampled = verifier("sampled")
    batch = batch_of(*([1] * shape[1] for _ in range(shape[0])))
    added = 0
    turns = 4000
    for _ in range(turns):
        if sampled.wants(batch):
            added += sampled.load(batch).input_ids.size - batch.input_ids.size
    asked = turns * batch.input_ids.size
    biggest = sampled.load(batch).input_ids.size - batch.input_ids.size
    assert 0 <= 0.01 * asked - added <= biggest + 1e-6


def test_sampling_finds_a_liar_within_about_a_hundred_rows():
    """A device that begins to answer wrongly is out after about so many rows of like length."""
    two = proved(FaultPlan.preset("wrong_values"), verify="sampled")
    wrong = 0
    while two.run().device == "gpu":
        wrong += BATCH.rows
        assert wrong < 200
    two.manager.close()


def test_the_row_is_taken_out_and_nothing_else():
    """Order, count and values of the batch's own rows are as without the canary."""
    each = verifier()
    loaded = each.load(BATCH)
    assert loaded.rows == BATCH.rows + 1
    answer = FakeBackend("gpu").answer(loaded)
    given = each.unload(loaded, answer)
    np.testing.assert_array_equal(given.values, FakeBackend("gpu").answer(BATCH).values)


def test_loading_keeps_every_field_of_the_batch():
    """Mask, lengths, types and the rest stay true for the rows that were there."""
    types = np.ones_like(BATCH.input_ids)
    batch = replace(BATCH, type_ids=types, due=1.0, deadline=2.0, priority="bulk")
    loaded = verifier().load(batch)
    rows, width = batch.input_ids.shape
    np.testing.assert_array_equal(loaded.input_ids[:rows, :width], batch.input_ids)
    np.testing.assert_array_equal(loaded.attention_mask[:rows, :width], batch.attention_mask)
    np.testing.assert_array_equal(loaded.type_ids[:rows, :width], types)
    assert loaded.attention_mask[rows].sum() == loaded.lengths[rows] == 3
    assert loaded.type_ids[rows].sum() == 0
    assert (loaded.due, loaded.deadline, loaded.priority) == (1.0, 2.0, "bulk")


def test_a_canary_longer_than_the_batch_widens_it():
    """Rows shorter than the canary are padded under a zero mask, and answered as before."""
    each = verifier()
    batch = batch_of([5], [6])
    loaded = each.load(batch)
    assert loaded.input_ids.shape == (3, 3)
    given = each.unload(loaded, FakeBackend("gpu").answer(loaded))
    np.testing.assert_array_equal(given.values, FakeBackend("gpu").answer(batch).values)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: np.roll(values, 1, axis=1),
        lambda values: values * np.nan,
        lambda values: values[:, :-1],
        lambda values: -values,
        np.zeros_like,
    ],
)
def test_a_wrong_canary_is_a_corrupt_answer(spoil):
    """Rotated, NaN, too short, negated or zero: none of them passes."""
    each = verifier()
    loaded = each.load(BATCH)
    answer = FakeBackend("gpu").answer(loaded)
    with pytest.raises(CorruptAnswer, match="canary"):
        each.unload(loaded, Vectors(spoil(answer.values), "gpu"))


def test_a_pool_answer_of_another_dimension_is_found_without_a_canary():
    """Once a device is proved its dimension is known: vectors of another length are corrupt."""
    two = proved(FaultPlan.preset("wrong_dimension"), verify="off", compute=one_answer_for_all_tasks)
    assert two.run(replace(BATCH, task="pool")).device == "cpu"
    two.manager.close()


def test_agreement_is_the_worst_row():
    """One row that disagrees is enough; another shape agrees not at all."""
    a = np.eye(4, dtype=np.float32)
    b = a.copy()
    b[2] = a[3]
    assert agreement("embed", a, a) == pytest.approx(1.0)
    assert agreement("embed", b, a) == pytest.approx(0.0)
    assert agreement("embed", a[:3], a) == 0.0
    scores = np.array([[0.0], [2.0]], np.float32)
    assert agreement("score", scores, scores) == 1.0
    assert agreement("score", scores, -scores) < 0.5


def test_limits_go_by_precision():
    """The coarser the arithmetic, the lower the limit; what is unknown gets the strictest."""
    assert default_limit("fp32") > default_limit("fp16") > default_limit("int8")
    assert default_limit("bf8") == default_limit("fp32")
    assert default_limit("int8", "reranker") < default_limit("int8")


def test_the_largest_canary_is_the_largest_shape_ever_sent():
    """The second batch has the longest rows, and as many as a batch may hold."""
    ids = np.arange(1, 31)
    tokens = Tokens(ids, np.array([0, 10, 30]), np.zeros(2, np.bool_))
    small, largest = canary_batches(
        tokens, model="m", task="embed", longest=64, token_budget=512, max_rows=32
    )
    assert small.input_ids.shape == (2, 20)
    assert largest.input_ids.shape == (8, 64)
    assert largest.attention_mask.all()
    assert len({row.tobytes() for row in largest.input_ids}) == 8
    (_, few) = canary_batches(tokens, model="m", task="embed", longest=64, token_budget=512, max_rows=3)
    assert few.rows == 3
    (_, one) = canary_batches(tokens, model="m", task="embed", longest=64, token_budget=10, max_rows=3)
    assert one.rows == 1
