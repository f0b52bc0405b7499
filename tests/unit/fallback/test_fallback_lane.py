"""The thread of a device that may hang: patience, hangs, and what becomes of late answers."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import BATCH, ONE_ROW, Gate, hanging, in_threads

from resilient_ai._resilience.waiting import DeviceHung, LaneBusy
from resilient_ai._serving.lane import ThreadLane
from resilient_ai.errors import ServiceClosed
from resilient_ai.testing import FakeBackend, FakeClock
from resilient_ai.values import Vectors

SOON = 0.05
LONG = 20.0


@pytest.fixture
def stuck():
    """A lane whose device hangs until the gate is opened, which happens at the end at the latest."""
    backend, gate = hanging()
    lane = ThreadLane(backend)
    yield lane, backend, gate
    gate.opened.set()
    lane.close()


def run_in_thread(lane, batch=BATCH, *, patience=LONG, hang_after=LONG):
    """Start a run; returns its thread and the list that its outcome is put into."""
    outcome = []

    def work():
        try:
            outcome.append(lane.run_within(batch, patience=patience, hang_after=hang_after))
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


def test_an_answer_comes_with_the_devices_own_time():
    """The seconds are those of the device: a batch that waited in line is no slower for it."""
    clock = FakeClock()
    lane = ThreadLane(FakeBackend("gpu", before=lambda _: clock.tick(2.0)), clock=clock)
    answer = lane.run_within(BATCH, patience=LONG, hang_after=LONG)
    seconds = answer.seconds
    assert seconds == pytest.approx(2.0)
    np.testing.assert_array_equal(answer.values, FakeBackend("gpu").answer(BATCH).values)
    lane.close()


def test_time_in_line_is_not_the_devices():
    """Of two batches at once the second waits for the first; its own time does not say so."""
    clock = FakeClock()
    gate = Gate()

    def before(batch):
        if batch.rows == 3:
            gate(batch)
            clock.tick(5.0)

    lane = ThreadLane(FakeBackend("gpu", before=before), clock=clock)
    first, _ = run_in_thread(lane)
    gate.wait_for()
    second, outcome = run_in_thread(lane, ONE_ROW)
    gate.opened.set()
    first.join()
    second.join()
    assert outcome[0].seconds == 0.0
    lane.close()


def test_a_hang_is_told_as_one_and_the_thread_written_off(stuck):
    """A device that does not answer in `hang_after` hangs, and the next batch gets a fresh thread."""
    lane, _backend, gate = stuck
    with pytest.raises(DeviceHung):
        lane.run_within(BATCH, patience=LONG, hang_after=SOON)
    assert lane.lost_threads == 1
    assert lane.under_way() is None
    gate.opened.set()
    assert lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG).values.shape == (1, 16)


def test_short_patience_says_nothing_about_the_device(stuck):
    """A caller whose time ends first hears `LaneBusy`; the thread stays and the batch is seen as under way."""
    lane, _, gate = stuck
    with pytest.raises(LaneBusy):
        lane.run_within(BATCH, patience=SOON, hang_after=LONG)
    assert lane.lost_threads == 0
    gate.wait_for()
    assert lane.under_way()[0] == BATCH.input_ids.size


def test_without_patience_nothing_is_sent():
    """A batch for which there is no time left does not reach the device at all."""
    backend = FakeBackend("gpu")
    lane = ThreadLane(backend)
    with pytest.raises(LaneBusy):
        lane.run_within(BATCH, patience=0.0, hang_after=LONG)
    assert backend.calls == ()
    lane.close()


def test_equal_limits_make_a_hang_not_a_matter_of_time(stuck):
    """When patience and the limit of a hang end together, the verdict is the one that says more."""
    lane, _, _ = stuck
    with pytest.raises(DeviceHung):
        lane.run_within(BATCH, patience=0.3, hang_after=0.3)


def test_who_waits_behind_a_hung_batch_is_sent_away_at_once(stuck):
    """The verdict on one batch frees all that wait behind it, long before their own time is up."""
    lane, _, gate = stuck
    first, outcome = run_in_thread(lane, hang_after=0.3)
    gate.wait_for()
    waiting = [run_in_thread(lane, ONE_ROW) for _ in range(5)]
    started = time.monotonic()
    for thread, _ in waiting:
        thread.join(10)
        assert not thread.is_alive()
    assert time.monotonic() - started < 5.0
    first.join(10)
    assert isinstance(outcome[0], DeviceHung)
    assert all(isinstance(told[0], LaneBusy) for _, told in waiting)


def test_who_waits_in_the_hung_batch_is_sent_away_when_the_lane_is_renewed(stuck):
    """A caller with a long patience does not wait for a thread that another has written off."""
    lane, _, gate = stuck
    thread, outcome = run_in_thread(lane)
    gate.wait_for()
    lane.renew()
    thread.join(10)
    assert isinstance(outcome[0], LaneBusy)


def test_nobody_lines_up_behind_a_lost_thread():
    """Threads that enter while others write the lane off all end soon: with an answer or sent away."""
    gates = [Gate() for _ in range(3)]
    todo = iter(gates)
    lock = threading.Lock()

    def before(_):
        with lock:
            gate = next(todo, None)
        if gate is not None:
            gate.opened.wait(30)

    lane = ThreadLane(FakeBackend("gpu", before=before))

    def work(_):
        return lane.run_within(ONE_ROW, patience=LONG, hang_after=0.1)

    started = time.monotonic()
    outcomes = in_threads(24, work)
    assert time.monotonic() - started < 10.0
    hung = [outcome for outcome in outcomes if isinstance(outcome, DeviceHung)]
    assert 1 <= len(hung) <= 3
    assert all(isinstance(outcome, (DeviceHung, LaneBusy, Vectors)) for outcome in outcomes)
    for gate in gates:
        gate.opened.set()
    lane.close()


def test_a_lost_thread_ends_when_its_call_returns(stuck):
    """Nothing is left running once the device lets go."""
    lane, _, gate = stuck
    with pytest.raises(DeviceHung):
        lane.run_within(BATCH, patience=LONG, hang_after=SOON)
    worker = lane._lost[0]
    gate.opened.set()
    worker.thread.join(10)
    assert lane.lost_threads == 0


def test_a_late_answer_goes_nowhere(stuck):
    """The answer of a batch that was given up disturbs neither the next batch nor its own caller."""
    lane, backend, gate = stuck
    with pytest.raises(DeviceHung):
        lane.run_within(BATCH, patience=LONG, hang_after=SOON)
    lost = lane._lost[0]
    gate.opened.set()
    answer = lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG)
    lost.thread.join(10)
    np.testing.assert_array_equal(answer.values, backend.answer(ONE_ROW).values)


def test_a_withdrawn_batch_is_not_run(stuck):
    """A batch that its caller gave up in line is skipped when its turn comes."""
    lane, backend, gate = stuck
    thread, _ = run_in_thread(lane)
    gate.wait_for()
    with pytest.raises(LaneBusy):
        lane.run_within(ONE_ROW, patience=SOON, hang_after=LONG)
    gate.opened.set()
    thread.join(10)
    lane.run_within(BATCH, patience=LONG, hang_after=LONG)
    assert [call.rows for call in backend.calls] == [3, 3]


def test_a_hung_device_reads_arrays_of_its_own():
    """Buffers that went back to their pool and were filled anew are not what a lost thread sees."""
    seen, gate = [], Gate()

    class Reader(FakeBackend):
        def run(self, batch):
            gate(batch)
            seen.append([None if array is None else array.copy() for array in arrays(batch)])
            return super().run(batch)

    def arrays(batch):
        return (batch.input_ids, batch.attention_mask, batch.lengths, batch.type_ids, batch.shared_ids)

    batch = replace(
        BATCH,
        input_ids=BATCH.input_ids.copy(),
        attention_mask=BATCH.attention_mask.copy(),
        lengths=BATCH.lengths.copy(),
        type_ids=np.ones_like(BATCH.input_ids),
        shared_ids=np.array([5, 6]),
    )
    before = [array.copy() for array in arrays(batch)]
    lane = ThreadLane(Reader("gpu"))
    with pytest.raises(DeviceHung):
        lane.run_within(batch, patience=LONG, hang_after=SOON)
    for array in arrays(batch):
        array[...] = -1
    lost = lane._lost[0]
    gate.opened.set()
    lost.thread.join(10)
    for was, had in zip(before, seen[0], strict=True):
        np.testing.assert_array_equal(was, had)
    lane.close()


def test_closing_with_a_hung_thread_is_quick(stuck):
    """`close` waits its timeout and no longer, and whoever is inside hears that it was closed."""
    lane, _, gate = stuck
    thread, outcome = run_in_thread(lane)
    gate.wait_for()
    behind, told = run_in_thread(lane, ONE_ROW)
    while lane._worker.tickets.empty():
        time.sleep(0.001)
    started = time.monotonic()
    lane.close(timeout=0.1)
    assert time.monotonic() - started < 5.0
    thread.join(10)
    behind.join(10)
    assert isinstance(outcome[0], ServiceClosed)
    assert isinstance(told[0], ServiceClosed)
    with pytest.raises(ServiceClosed):
        lane.run_within(BATCH, patience=LONG, hang_after=LONG)


@pytest.mark.parametrize("escape", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_that_a_backend_raises_kills_the_lane(escape):
    """An exception that is no `Exception` reaches its caller, and the thread lives on."""
    backend = FakeBackend("gpu")
    lane = ThreadLane(backend)
    lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG)
    thread = lane._worker.thread
    backend.fail_with(escape)
    with pytest.raises(escape):
        lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG)
    lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG)
    assert lane._worker.thread is thread
    lane.close()


def test_an_idle_lane_is_not_renewed():
    """`renew` replaces a thread that is stuck, not one that waits for work."""
    lane = ThreadLane(FakeBackend("gpu"))
    lane.run_within(ONE_ROW, patience=LONG, hang_after=LONG)
    lane.renew()
    assert lane.lost_threads == 0
    lane.close()
    lane.close()


def test_an_idle_thread_keeps_no_batch_alive():
    """What a batch and its answer took is free again as soon as the caller drops them."""
    import gc
    import weakref

    answers = []
    lane = ThreadLane(FakeBackend("gpu", compute=lambda _: answers[-1]))
    answers.append(np.ones((3, 16), np.float32))
    given = weakref.ref(answers[0])
    lane.run_within(BATCH, patience=LONG, hang_after=LONG)
    answers.clear()
    deadline = time.monotonic() + 5
    while given() is not None and time.monotonic() < deadline:
        gc.collect()
    assert given() is None
    lane.close()
