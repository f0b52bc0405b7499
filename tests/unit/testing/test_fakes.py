"""The public fakes: time that is told, a device whose right answers are known."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_ai import testing
from resilient_ai.errors import InvalidInput, ServiceClosed
from resilient_ai.testing import FakeBackend, FakeClock, batch_of
from resilient_ai.values import Backend, Vectors

rows = st.lists(st.lists(st.integers(0, 30000), min_size=1, max_size=12), min_size=1, max_size=8)


class TestSurface:
    def test_every_name_is_there(self):
        """What the module says it has, it has."""
        assert all(hasattr(testing, name) for name in testing.__all__)

    def test_a_fake_is_a_backend(self):
        """The fake fits the seam it stands in."""
        backend: Backend = FakeBackend()
        assert backend.device == "gpu"


class TestClock:
    def test_time_passes_when_told(self):
        """Time stands still but for ticks and sleeps."""
        clock = FakeClock(5.0)
        assert (clock(), clock()) == (5.0, 5.0)
        clock.tick(1.5)
        clock.sleep(2.0)
        assert clock() == 8.5

    def test_it_can_step_back(self):
        """A negative tick steps back; a negative sleep does nothing, as sleeping cannot."""
        clock = FakeClock(5.0)
        clock.tick(-1.0)
        clock.sleep(-1.0)
        assert clock() == 4.0

    def test_no_tick_is_lost(self):
        """Ticks of many threads add up."""
        clock = FakeClock(0.0)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(clock.tick, [1.0] * 1000))
        assert clock() == 1000.0


class TestAnswers:
    @settings(max_examples=50)
    @given(rows, st.sampled_from(["embed", "pool", "score", "maxsim"]))
    def test_device_padding_and_neighbours_do_not_matter(self, ids, task):
        """A row gets the same vector on any device, alone or in any batch."""
        together = FakeBackend("gpu").run(batch_of(*ids, task=task)).values
        for row, vector in zip(ids, together, strict=True):
            alone = FakeBackend("cpu").run(batch_of(row, task=task)).values[0]
            assert np.array_equal(alone, vector)

    @settings(max_examples=50)
    @given(rows)
    def test_other_texts_other_vectors(self, ids):
        """Rows agree if and only if their ids do."""
        values = FakeBackend().run(batch_of(*ids)).values
        for one, first in zip(ids, values, strict=True):
            for other, second in zip(ids, values, strict=True):
                assert np.array_equal(first, second) is (one == other)

    def test_models_and_tasks_differ(self):
        """Another model or task is another vector space."""
        seen = [
            FakeBackend().run(batch_of([1], model=m, task=t)).values for m in "ab" for t in ("embed", "pool")
        ]
        assert len({values.tobytes() for values in seen}) == 4

    @pytest.mark.parametrize(
        ("task", "shape"), [("embed", (2, 5)), ("pool", (2, 5)), ("score", (2, 1)), ("maxsim", (2, 1))]
    )
    def test_shapes(self, task, shape):
        """Vectors have the fake's dimension, scores one value; all are float32."""
        values = FakeBackend(dimension=5).run(batch_of([1, 2], [3], task=task)).values
        assert (values.shape, values.dtype) == (shape, np.float32)

    def test_embeddings_have_norm_one(self):
        """Embeddings are unit vectors."""
        values = FakeBackend().run(batch_of([1, 2], [3])).values
        assert np.allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-6)

    def test_no_rows(self):
        """An empty batch gets an empty answer."""
        assert FakeBackend(dimension=3).run(batch_of()).values.shape == (0, 3)

    def test_own_answers(self):
        """A function takes the place of the built-in answers."""
        backend = FakeBackend("cpu", compute=lambda batch: np.full((batch.rows, 2), 7, np.float32))
        got = backend.run(batch_of([1]))
        assert (got.device, got.values.tolist()) == ("cpu", [[7.0, 7.0]])

    def test_a_dimension_of_zero_is_refused(self):
        """A vector has at least one value."""
        with pytest.raises(InvalidInput, match="dimension"):
            FakeBackend(dimension=0)


class TestScript:
    BATCH = batch_of([1, 2])

    def outcome(self, backend):
        try:
            return backend.run(self.BATCH).device
        except Exception as error:
            return type(error).__name__

    def test_outcomes_in_order(self):
        """Scripted calls end as scripted, in order, and then all goes well."""
        backend = FakeBackend()
        backend.fail_with(RuntimeError("one"), None, ValueError)
        backend.fail_with(Vectors(np.zeros((1, 2), np.float32), "cpu"))
        assert [self.outcome(backend) for _ in range(5)] == [
            "RuntimeError",
            "gpu",
            "ValueError",
            "cpu",
            "gpu",
        ]

    def test_times_and_heal(self):
        """Outcomes repeat as often as said, or until healed."""
        backend = FakeBackend()
        backend.fail_with(RuntimeError, times=2)
        assert [self.outcome(backend) for _ in range(3)] == ["RuntimeError", "RuntimeError", "gpu"]
        backend.fail_with(OSError, None, times=None)
        assert [self.outcome(backend) for _ in range(4)] == ["OSError", "gpu", "OSError", "gpu"]
        backend.heal()
        assert [self.outcome(backend) for _ in range(2)] == ["gpu", "gpu"]

    def test_a_long_script(self):
        """Thousands of scripted outcomes are as good as one."""
        backend = FakeBackend()
        for _ in range(20_000):
            backend.fail_with(None)
        backend.fail_with(RuntimeError)
        assert all(self.outcome(backend) == "gpu" for _ in range(20_000))
        assert self.outcome(backend) == "RuntimeError"

    def test_nothing_scripted_is_refused(self):
        """A script without outcomes is a mistake."""
        with pytest.raises(InvalidInput):
            FakeBackend().fail_with()

    def test_a_traceback_does_not_grow(self):
        """One error raised many times keeps a short traceback."""
        error = RuntimeError("again")
        backend = FakeBackend()
        backend.fail_with(error, times=None)
        for _ in range(50):
            self.outcome(backend)
        depth, frame = 0, error.__traceback__
        while frame is not None:
            depth, frame = depth + 1, frame.tb_next
        assert depth < 5


class TestRecord:
    def test_batches_are_kept_as_they_were(self):
        """A batch whose arrays are reused afterwards is remembered as it was."""
        batch = batch_of([1, 2])
        backend = FakeBackend()
        backend.run(batch)
        batch.input_ids[:] = 0
        assert backend.calls[0].input_ids.tolist() == [[1, 2]]

    def test_the_record_is_bounded(self):
        """Only the latest batches are remembered."""
        backend = FakeBackend(keep=2)
        for n in range(4):
            backend.run(batch_of([n]))
        assert [int(batch.input_ids[0, 0]) for batch in backend.calls] == [2, 3]

    def test_hooks_stand_around_the_answer(self):
        """A barrier in the hook holds two runs until both are inside."""
        barrier = threading.Barrier(2, timeout=10)
        done = []
        backend = FakeBackend(before=lambda _: barrier.wait(), after=lambda batch: done.append(batch.rows))
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(backend.run, batch_of([n])) for n in range(2)]
            assert [future.result(10).device for future in futures] == ["gpu", "gpu"]
        assert done == [1, 1]

    def test_closed(self):
        """A closed fake says so and runs nothing more; closing twice is harmless."""
        backend = FakeBackend()
        backend.close()
        backend.close()
        assert backend.closed
        with pytest.raises(ServiceClosed):
            backend.run(batch_of([1]))

    def test_the_repr_tells_the_state(self):
        """A debugger shows device, calls and whether it is closed."""
        backend = FakeBackend("cpu")
        backend.run(batch_of([1]))
        assert repr(backend) == "<FakeBackend device='cpu' calls=1 closed=False>"
