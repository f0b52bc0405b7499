"""Admission: calls that would be late are refused, and nothing else is."""

import pytest

from resilient_ai._serving.admission import _SAFETY, Admission, Load, weigh

SINGLE = Load(0, "model", "embed", full=10.0)
BULK = Load(2, "model", "embed", full=10.0)


@pytest.fixture
def admission():
    """An admission that has learned: one unit of weight takes one second on the CPU, a tenth on the GPU."""
    admission = Admission()
    for moment in range(100):
        admission.learn(SINGLE, "cpu", 10.0, 10.0, now=-1000.0 + moment)
        admission.learn(SINGLE, "gpu", 10.0, 1.0, now=-1000.0 + moment)
    return admission


def test_nothing_is_predicted_before_something_was_learned():
    """Without experience nobody is refused."""
    assert Admission().wait(SINGLE, 10.0, "cpu", now=0.0) is None


def test_the_wait_is_work_ahead_plus_own(admission):
    """What waits and what is asked for both take their time, with room to spare."""
    admission.arrived(SINGLE, 30.0)
    assert admission.wait(SINGLE, 10.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 40, rel=0.01)


def test_the_device_that_serves_now_counts(admission):
    """When the GPU is lost, the same queue takes ten times as long at once."""
    admission.arrived(SINGLE, 30.0)
    fast, slow = (admission.wait(SINGLE, 10.0, device, now=0.0) for device in ("gpu", "cpu"))
    assert slow == pytest.approx(10 * fast)


def test_less_urgent_work_is_not_waited_for(admission):
    """A single query does not wait for bulk work, bulk work waits for the queries."""
    admission.arrived(BULK, 1000.0)
    admission.arrived(SINGLE, 10.0)
    admission.learn(BULK, "cpu", 10.0, 10.0, now=-900.0)
    assert admission.wait(SINGLE, 10.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 20, rel=0.01)
    assert admission.wait(BULK, 10.0, "cpu", now=0.0) > 1000


def test_more_urgent_work_to_come_is_reckoned_with(admission):
    """Bulk work gets what the queries of the last seconds left of the device."""
    admission.learn(BULK, "cpu", 10.0, 10.0, now=-900.0)
    alone = admission.wait(BULK, 10.0, "cpu", now=0.0)
    admission.learn(SINGLE, "cpu", 2.5, 2.5, now=0.0)
    assert admission.wait(BULK, 10.0, "cpu", now=0.0) == pytest.approx(2 * alone, rel=0.05)
    assert admission.wait(BULK, 10.0, "cpu", now=1000.0) == pytest.approx(alone, rel=0.05)


def test_work_that_left_is_not_waited_for(admission):
    """Done and cancelled work no longer counts, and never counts below nothing."""
    admission.arrived(SINGLE, 30.0)
    admission.left(SINGLE, 20.0)
    assert admission.wait(SINGLE, 0.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 10, rel=0.01)
    admission.left(SINGLE, 1000.0)
    assert admission.wait(SINGLE, 0.0, "cpu", now=0.0) == 0


def test_the_cost_follows_the_device(admission):
    """A device that becomes slower is believed within a few dozen batches."""
    for moment in range(40):
        admission.learn(SINGLE, "cpu", 10.0, 20.0, now=-900.0 + moment)
    assert admission.wait(SINGLE, 10.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 20, rel=0.05)


def test_weight_grows_with_text_up_to_what_is_read():
    """Longer texts weigh more, pairs weigh both halves, endless ones no more than what can be used."""
    assert weigh(["a"]) < weigh(["a" * 100]) < weigh([("a" * 100, "b" * 100)])
    assert weigh(["a" * 10_000_000]) == weigh(["a" * 100_000])
    assert weigh(["a"] * 7) == 7 * weigh(["a"])


def test_nothing_is_guessed_from_lone_queries():
    """From single queries, dear for their size, nothing follows for a call of thousands of rows."""
    admission = Admission()
    lone, large = (Load(urgency, "model", "embed", full=2048.0) for urgency in (0, 1))
    for _ in range(50):
        admission.learn(lone, "cpu", 20.0, 0.002, now=0.0)
    assert admission.wait(lone, 20.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 0.002)
    assert admission.wait(large, 100_000.0, "cpu", now=0.0) is None
    admission.learn(large, "cpu", 2000.0, 0.03, now=0.0)
    assert 0.5 < admission.wait(large, 100_000.0, "cpu", now=0.0) < 10


def test_work_ahead_is_shared_by_equal_devices(admission):
    """Two cards are through with what waits in half the time; the call's own batch is on one of them."""
    admission.arrived(SINGLE, 30.0)
    one, two = (admission.wait(SINGLE, 10.0, "cpu", now=0.0, width=width) for width in (1, 2))
    assert (one, two) == (pytest.approx(_SAFETY * 40, rel=0.01), pytest.approx(_SAFETY * 25, rel=0.01))


def test_what_a_full_batch_weighs_may_change(admission):
    """Work is the same work when another device serves, and is told by what is a full batch there."""
    on_gpu, on_cpu = (Load(1, "model", "embed", full) for full in (100_000.0, 40.0))
    admission.arrived(on_gpu, 30.0)
    admission.arrived(on_cpu, 70.0)
    assert [load.full for load in admission._outstanding] == [40.0]
    assert admission.wait(on_gpu, 1000.0, "cpu", now=0.0) is None
    assert admission.wait(on_cpu, 1000.0, "cpu", now=0.0) == pytest.approx(_SAFETY * 1100, rel=0.01)
    admission.left(on_gpu, 100.0)
    assert admission.wait(on_cpu, 0.0, "cpu", now=0.0) == 0
