"""Each device gets batches of its own size: planned for it, or cut for it when they come from another."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import BATCH, Gate, error, peers, two_devices

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._resilience.breaker import State
from resilient_ai._serving.dispatcher import Dispatcher
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.last import LastDevice
from resilient_ai._serving.outlook import Outlook
from resilient_ai._serving.pieces import Ceiling, cut, join
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai.errors import DeadlineExceeded, Overloaded
from resilient_ai.testing import FakeBackend, FakeClock, batch_of
from serving_kit import EMBEDDER, ENCODER, job, right_vectors

LARGE = batch_of(*([row + 1] * 8 for row in range(8)))
PIECE = 16


def ceilings(**most):
    return {name.replace("_", ":"): Ceiling(most=tokens) for name, tokens in most.items()}


def sizes(backend):
    return [call.input_ids.size for call in backend.calls]


# -- what the next batches will meet --------------------------------------------------------------


def test_the_outlook_is_that_of_the_tier_in_service():
    """Cards that are up give their budget and their number; when none is, the CPU gives its own."""
    with peers(2, ceilings=ceilings(gpu_0=64, gpu_1=64, cpu=16), slots=2) as cards:
        assert cards.manager.outlook() == Outlook("gpu:0", 64, width=2)
        cards.guards[0].breaker.force_open()
        assert cards.manager.outlook() == Outlook("gpu:1", 64, width=1)
        cards.guards[1].breaker.force_open()
        assert cards.manager.outlook() == Outlook("cpu", 16, width=2)


def test_without_ceilings_the_outlook_has_no_limit():
    """A manager that was told of no budgets leaves the batches' size to others."""
    with two_devices() as two:
        assert two.manager.outlook() == Outlook("gpu")


def test_a_device_on_its_way_back_is_not_planned_for():
    """While most batches still go to the CPU they are of the CPU's size."""
    with peers(1, ceilings=ceilings(gpu_0=64, cpu=16), ramp=(0.1, 1.0), ramp_step=1) as cards:
        cards.gpus[0].fail_with(error("worker_died"))
        cards.run()
        cards.prober().probe_due()
        assert cards.guards[0].is_in_service
        assert cards.manager.outlook().device == "cpu"
        cards.run()
        assert cards.guards[0].ramp.is_full
        assert cards.manager.outlook().device == "gpu:0"


def test_what_did_not_fit_is_not_planned_again():
    """The outlook follows what was learned of the card's memory."""
    with peers(1, ceilings=ceilings(gpu_0=64, cpu=16)) as cards:
        cards.guards[0].ceiling.lower(64)
        assert cards.manager.outlook().tokens == 32


@pytest.fixture
def dispatcher():
    made = Dispatcher(BufferPool(1 << 24), queue_size=100)
    yield made
    made.close()


def test_batches_are_planned_for_the_device_that_serves(dispatcher):
    """One model's calls are cut to the GPU's budget while it is up, and to the CPU's when it is not."""
    gpu, cpu = FakeBackend("gpu"), FakeBackend("cpu")
    manager = FallbackManager([gpu, cpu], FallbackPolicy(verify="off"), ceilings=ceilings(gpu=96, cpu=24))
    model = HostedModel(EMBEDDER, ENCODER, manager, BatchLimits(token_budget=1000, max_rows=100))
    texts = [f"word {number}" for number in range(40)]

    def embed():
        made = job(texts, model.embedding_lane(normalize=True))
        dispatcher.submit(made)
        np.testing.assert_array_equal(
            made.future.result(20).values, right_vectors(texts, model=EMBEDDER.name)
        )

    embed()
    assert (max(sizes(gpu)), sizes(cpu)) == (96, [])
    manager.guarded[0].breaker.force_open()
    embed()
    assert sizes(cpu) == [24] * 6 + [16]
    model.close()


def test_a_lane_has_its_own_limit_as_well(dispatcher):
    """Whatever a device could take, a batch is no larger than the lane allows."""
    manager = FallbackManager([FakeBackend("cpu")], ceilings=ceilings(cpu=1000))
    lane = HostedModel(EMBEDDER, ENCODER, manager, BatchLimits(50, 100)).embedding_lane(normalize=True)
    assert lane.budget_now() == 50
    assert replace(lane, token_budget=5000).budget_now() == 1000
    assert replace(lane, outlook=None).look() == Outlook(manager.device)
    manager.close()


# -- a batch that was planned for another device ------------------------------------------------------


def test_a_large_batch_reaches_the_cpu_in_pieces():
    """What was planned for the card runs on the CPU in its own sizes, as one answer in order."""
    with peers(1, ceilings=ceilings(gpu_0=64, cpu=PIECE)) as cards:
        cards.gpus[0].fail_with(error("poisoned"))
        answer = cards.run(LARGE)
        assert (answer.device, answer.degraded) == ("cpu", True)
        np.testing.assert_array_equal(answer.values, cards.cpu.answer(LARGE).values)
        assert sizes(cards.cpu) == [PIECE] * 4
        stats = cards.manager.stats()
        assert (stats.cpu_calls, stats.fallbacks, stats.devices["cpu"].calls) == (1, 1, 1)


def test_a_lower_card_runs_pieces_of_its_own_size():
    """A guarded device in the middle has its budget too; cutting for it is no failure and no split."""
    gpu, simulated = FakeBackend("gpu"), FakeBackend("simulated")
    manager = FallbackManager(
        [gpu, simulated, FakeBackend("cpu")], ceilings={"simulated": Ceiling(most=PIECE)}
    )
    gpu.fail_with(error("poisoned"))
    answer = manager.run(LARGE)
    assert answer.device == "simulated"
    np.testing.assert_array_equal(answer.values, gpu.answer(LARGE).values)
    assert max(sizes(simulated)) == PIECE
    assert (manager.stats().splits, manager.guarded[1].ceiling.tokens) == (0, PIECE)
    manager.close()


def test_urgent_work_waits_for_a_piece_and_not_for_a_batch():
    """An interactive batch goes between two pieces of a bulk batch that came first."""
    gate = Gate()
    last = LastDevice(FakeBackend("cpu", before=gate), ceiling=Ceiling(most=PIECE))
    bulk = threading.Thread(target=last.run, args=(replace(LARGE, priority="bulk"),))
    bulk.start()
    gate.wait_for()
    urgent = threading.Thread(target=last.run, args=(BATCH,))
    urgent.start()
    wait_until(lambda: last.bulkhead._line)
    gate.opened.set()
    for thread in (bulk, urgent):
        thread.join(10)
    assert [call.rows for call in last.backend.calls] == [2, 3, 2, 2, 2]
    last.close()


def wait_until(holds):
    poll = threading.Event()
    for _ in range(1000):
        if holds():
            return
        poll.wait(0.01)
    pytest.fail("it did not come about")


def test_a_full_line_does_not_turn_away_who_was_inside():
    """A batch that began is not refused between its pieces, however long the line has become."""
    gate = Gate()
    last = LastDevice(FakeBackend("cpu", before=gate), ceiling=Ceiling(most=PIECE))
    outcomes = []

    def run(batch):
        try:
            outcomes.append(last.run(batch).values.shape[0])
        except Overloaded as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=run, args=(LARGE,))]
    threads[0].start()
    gate.wait_for()
    for waiting in range(1, 9):
        threads.append(threading.Thread(target=run, args=(BATCH,)))
        threads[-1].start()
        wait_until(lambda waiting=waiting: len(last.bulkhead._line) == waiting)
    with pytest.raises(Overloaded):
        last.run(BATCH)
    gate.opened.set()
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == [3] * 8 + [8]
    last.close()


def test_the_deadline_is_looked_at_before_each_piece():
    """When the last caller has left, the rest of the pieces is not computed."""
    clock = FakeClock()
    cpu = FakeBackend("cpu", before=lambda _: clock.tick(1.0))
    last = LastDevice(cpu, ceiling=Ceiling(most=PIECE), clock=clock)
    with pytest.raises(DeadlineExceeded):
        last.run(replace(LARGE, deadline=clock() + 1.5))
    assert len(cpu.calls) == 2
    assert last.has_room


def test_the_seconds_are_those_of_all_pieces():
    """The answer's time is that of its pieces together; each piece is learned by its own size."""
    clock = FakeClock()
    last = LastDevice(
        FakeBackend("cpu", before=lambda _: clock.tick(0.5)), ceiling=Ceiling(most=PIECE), clock=clock
    )
    assert last.estimate(64) is None
    assert last.run(LARGE).seconds == pytest.approx(2.0)
    assert last.estimate(PIECE) == pytest.approx(0.5)
    assert last.estimate(64) == pytest.approx(2.0)
    assert last.estimate(64 + PIECE // 2) == pytest.approx(2.25)


def test_the_cards_time_ends_before_the_cpu_must_begin_all_pieces():
    """What is kept back for the CPU is the time of all the pieces it would run."""
    with peers(1, ceilings=ceilings(cpu=PIECE)) as cards:
        for size in [PIECE, PIECE // 2] * 32:  # what counts is how many, not how large
            cards.manager.last.cost.learn(size, 1.0)
        now = cards.clock()
        assert cards.manager._give_up(replace(LARGE, due=now + 10), now) == pytest.approx(now + 6)


def test_a_piece_that_fails_is_the_batchs_failure():
    """Half an answer is none: the error comes back, and the device's place is free again."""
    with peers(1, ceilings=ceilings(cpu=PIECE)) as cards:
        cards.guards[0].breaker.force_open()
        assert cards.guards[0].breaker.state is State.FORCED_OPEN
        cards.cpu.fail_with(None, RuntimeError("the CPU is on fire"))
        with pytest.raises(Exception, match="on fire"):
            cards.run(LARGE)
        assert len(cards.cpu.calls) == 2
        assert cards.manager.last.has_room
        assert cards.manager.stats().cpu_calls == 0


# -- cutting ------------------------------------------------------------------------------------------


def test_pieces_are_as_wide_as_their_longest_row():
    """Cutting leaves out padding that only other rows needed, so later pieces hold more rows."""
    batch = batch_of([1] * 8, [2] * 8, [3] * 2, [4] * 2, [5] * 2)
    assert [piece.input_ids.shape for piece in cut(batch, 16)] == [(2, 8), (3, 2)]


def test_a_row_that_is_too_long_is_a_piece():
    """One row is never cut, however little a device may get."""
    assert [piece.input_ids.shape for piece in cut(batch_of([1] * 8, [2] * 3), 4)] == [(1, 8), (1, 3)]


def test_what_fits_is_not_copied():
    """A batch within the limit is its own only piece, and a single answer stays what it is."""
    (only,) = cut(BATCH, BATCH.input_ids.size)
    assert only is BATCH
    answer = FakeBackend("cpu").run(BATCH)
    assert join([answer]) is answer
