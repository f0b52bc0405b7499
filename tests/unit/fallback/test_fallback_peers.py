"""Several devices that are each other's equal: who gets a batch, and what happens when one fails."""

import math
import random
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fallback_kit import (
    BATCH,
    NAN,
    ONE_ROW,
    OUT_OF_MEMORY,
    Gate,
    due,
    error,
    in_threads,
    peers,
    transient,
)

from resilient_ai._resilience.breaker import State
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._telemetry.events import BreakerMoved, DeviceFailure, FellBack
from resilient_ai.errors import (
    AllBackendsFailed,
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    InvalidInput,
)
from resilient_ai.testing import FakeBackend, batch_of


def right(answer, batch=BATCH):
    return np.array_equal(answer.values, FakeBackend("cpu").answer(batch).values)


def in_background(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -- placement ----------------------------------------------------------------------------------


def test_idle_equals_take_turns():
    """One caller's batches go to all of the cards, none of them more than its share."""
    with peers(3) as cards:
        served = [cards.run().device for _ in range(9)]
        assert Counter(served) == {"gpu:0": 3, "gpu:1": 3, "gpu:2": 3}
        assert cards.told(FellBack) == []


def test_two_batches_at_once_run_on_two_cards():
    """Each of two callers is on a card of its own: both are inside at the same time."""
    together = threading.Barrier(2, timeout=10)
    gpus = [FakeBackend(f"gpu:{card}", before=lambda _: together.wait()) for card in range(2)]
    with peers(gpus=gpus, real_time=True) as cards:
        answers = in_threads(2, lambda _: cards.run())
        assert sorted(answer.device for answer in answers) == ["gpu:0", "gpu:1"]


def test_a_busy_card_gets_nothing_while_another_is_idle():
    """While one card works, all that comes goes to the idle one, whoever's turn it would be."""
    gate = Gate()
    with peers(gpus=[FakeBackend("gpu:0", before=gate), FakeBackend("gpu:1")], real_time=True) as cards:
        first = in_background(cards.run)
        gate.wait_for()
        assert [cards.run().device for _ in range(5)] == ["gpu:1"] * 5
        gate.opened.set()
        first.join(10)


def test_the_load_is_counted_in_tokens():
    """With both busy, a batch lines up behind the smaller one, not behind the fewer."""
    gates = Gate(), Gate()
    gpus = [FakeBackend(f"gpu:{card}", before=gate) for card, gate in enumerate(gates)]
    large = batch_of(*([7] * 50 for _ in range(4)))
    with peers(gpus=gpus, real_time=True) as cards:
        threads = [in_background(lambda: cards.run(large))]
        gates[0].wait_for()
        threads.append(in_background(lambda: cards.run(ONE_ROW)))
        gates[1].wait_for()
        group = cards.manager._groups[0]
        for waiting in (1, 2):
            threads.append(in_background(lambda: cards.run(ONE_ROW)))
            placed_on(group, cards.guards[1], (1 + waiting) * ONE_ROW.input_ids.size)
        for gate in gates:
            gate.opened.set()
        for thread in threads:
            thread.join(10)
        assert cards.asked == [1, 3]


def placed_on(group, device, tokens):
    """Wait until so many tokens are counted on a device."""
    poll = threading.Event()
    for _ in range(1000):
        if group._load[device] == tokens:
            return
        poll.wait(0.01)
    pytest.fail(f"{group._load[device]} tokens on {device.name}, not {tokens}")


# -- a card that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [error("poisoned"), error("worker_died"), NAN, transient()], ids=repr)
def test_the_equal_of_a_failing_card_answers(failure):
    """One card's failure costs its own batch a second run on another card; nothing is degraded."""
    with peers() as cards:
        cards.gpus[0].fail_with(failure)
        answer = cards.run()
        assert (answer.device, answer.degraded) == ("gpu:1", False)
        assert right(answer)
        stats = cards.manager.stats()
        assert (stats.gpu_calls, stats.cpu_calls, stats.fallbacks) == (1, 0, 0)
        assert (stats.devices["gpu:0"].failures, stats.devices["gpu:1"].failures) == (1, 0)
        assert len(cards.told(DeviceFailure)) == 1
        assert cards.told(FellBack) == []


def test_a_card_that_is_out_is_passed_by():
    """With one card out of service the other has all the work, and nothing is degraded."""
    with peers() as cards:
        cards.gpus[0].fail_with(error("poisoned"))
        answers = [cards.run() for _ in range(6)]
        assert [answer.device for answer in answers] == ["gpu:1"] * 6
        assert not any(answer.degraded for answer in answers)
        assert cards.asked == [1, 6]
        assert cards.manager.device == "gpu:1"


def test_when_every_equal_failed_the_cpu_answers_degraded():
    """A lower tier serves only when no card could, and the reason is that of the first that failed."""
    with peers() as cards:
        cards.gpus[0].fail_with(error("poisoned"))
        cards.gpus[1].fail_with(error("worker_died"))
        answer = cards.run()
        assert (answer.device, answer.degraded) == ("cpu", True)
        assert right(answer)
        assert cards.told(FellBack) == [FellBack("cpu", "poisoned", BATCH.rows)]
        assert [guard.breaker.state for guard in cards.guards] == [State.OPEN, State.OPEN]


def test_the_reason_is_that_of_the_best_tier():
    """When a second tier failed as well, it is told why the first one did not serve."""
    heard = []
    gpus = [FakeBackend("gpu:0"), FakeBackend("gpu:1")]
    manager = FallbackManager([gpus, FakeBackend("simulated"), FakeBackend("cpu")])
    manager.events.subscribe(heard.append)
    for device, name in zip(manager.guarded, ("poisoned", "worker_died", "missing_library"), strict=True):
        device.backend.fail_with(error(name))
    assert manager.run(BATCH).device == "cpu"
    assert [event for event in heard if isinstance(event, FellBack)] == [
        FellBack("cpu", "poisoned", BATCH.rows)
    ]
    manager.close()


def test_all_causes_are_told():
    """`AllBackendsFailed` names every card that failed, and the CPU."""
    with peers() as cards:
        cards.gpus[0].fail_with(error("poisoned"))
        cards.gpus[1].fail_with(error("worker_died"))
        cards.cpu.fail_with(RuntimeError("the CPU is on fire"))
        with pytest.raises(AllBackendsFailed, match="on fire") as caught:
            cards.run()
        assert len(caught.value.causes) == 3


def test_a_batch_that_kills_cards_does_not_kill_them_all():
    """What two cards died of may be the batch itself: it goes to the CPU, the other cards live on."""
    with peers(4) as cards:
        for gpu in cards.gpus:
            gpu.fail_with(error("worker_died"))
        answer = cards.run()
        assert (answer.device, answer.degraded) == ("cpu", True)
        assert cards.asked == [1, 1, 0, 0]
        assert [guard.is_in_service for guard in cards.guards] == [False, False, True, True]


def test_a_card_that_refuses_is_no_try():
    """Cards that are out do not count: the last one that is well still gets the batch."""
    with peers(5) as cards:
        for guard in cards.guards[:3]:
            guard.breaker.force_open()
        cards.gpus[3].fail_with(error("worker_died"))
        answer = cards.run()
        assert (answer.device, answer.degraded) == ("gpu:4", False)


def test_a_callers_mistake_goes_to_no_second_card():
    """What is the caller's own is raised at once, also among equals."""
    with peers() as cards:
        cards.gpus[0].fail_with(InvalidInput("too long"))
        with pytest.raises(InvalidInput):
            cards.run()
        assert cards.asked == [1, 0]


def test_without_fallback_an_equal_may_still_serve():
    """`fallback="fail"` forbids the CPU, not the other card; when both are out their error is raised."""
    with peers(fallback="fail") as cards:
        cards.gpus[0].fail_with(error("poisoned"))
        assert cards.run().device == "gpu:1"
        cards.gpus[1].fail_with(error("worker_died"))
        with pytest.raises(DeviceFailed, match="worker_died"):
            cards.run()
        with pytest.raises(DeviceUnavailable, match="out of service"):
            cards.run()
        assert cards.cpu.calls == ()


def test_a_missing_better_tier_degrades_the_answers_of_equals():
    """`missing` is about a tier above the cards; their answers are degraded then."""
    with peers(missing=True) as cards:
        answer = cards.run()
        assert (answer.device, answer.degraded) == ("gpu:0", True)


def test_without_time_no_card_is_tried():
    """When the CPU needs what is left, none of the cards is asked or blamed."""
    with peers() as cards:
        for _ in range(64):
            cards.manager.last.cost.learn(int(BATCH.input_ids.size), 2.0)
        assert cards.run(due(BATCH, cards.clock() + 1.5)).device == "cpu"
        assert cards.asked == [0, 0]
        assert cards.told(FellBack)[0].reason == "no time"


def test_a_hedge_goes_to_the_other_card_first():
    """A batch that its card is slow with is answered by an idle equal; that is not degraded."""
    gate = Gate()
    with peers(
        gpus=[FakeBackend("gpu:0", before=gate), FakeBackend("gpu:1")], hedge=True, real_time=True
    ) as cards:
        for _ in range(40):
            cards.guards[0].cost.learn(int(ONE_ROW.input_ids.size), 0.001)
        answer = cards.run(ONE_ROW)
        assert (answer.device, answer.degraded) == ("gpu:1", False)
        assert cards.manager.stats().hedges == 1
        gate.opened.set()


def test_each_card_learns_its_own_memory():
    """A card that is short of memory gets smaller batches; its equal gets them whole."""

    def small(batch):
        if batch.input_ids.size > 8:
            raise RuntimeError(OUT_OF_MEMORY)

    gpus = [FakeBackend("gpu:0", before=small), FakeBackend("gpu:1")]
    with peers(gpus=gpus) as cards:
        assert [cards.run().device for _ in range(4)] == ["gpu:0", "gpu:1"] * 2
        assert cards.guards[0].ceiling.tokens < BATCH.input_ids.size
        assert cards.guards[1].ceiling.tokens == math.inf
        assert cards.asked[1] == 2


# -- a card that comes back ---------------------------------------------------------------------


def test_a_half_open_card_gets_no_users_batch():
    """While a card is on probation its equals have the work; the prober brings it back."""
    with peers(recovery_time=5.0) as cards:
        cards.gpus[0].fail_with(error("missing_library"))
        cards.run()
        cards.clock.tick(5.0)
        probe = cards.guards[0].breaker.try_acquire()
        assert cards.guards[0].breaker.state is State.HALF_OPEN
        assert [cards.run().device for _ in range(4)] == ["gpu:1"] * 4
        probe.cancel()
        cards.prober().probe_due()
        assert {cards.run().device for _ in range(4)} == {"gpu:0", "gpu:1"}
        assert cards.told(FellBack) == []


def test_a_card_on_its_way_back_shares_with_its_equal():
    """What the ramp keeps from a returning card its equal has, undegraded, until the ramp is full."""
    with peers(ramp=(0.25, 1.0), ramp_step=3) as cards:
        cards.gpus[0].fail_with(error("worker_died"))
        cards.run()
        cards.prober().probe_due()
        before = cards.asked
        answers = [cards.run() for _ in range(8)]
        assert not any(answer.degraded for answer in answers)
        assert 1 <= cards.asked[0] - before[0] < cards.asked[1] - before[1]
        for _ in range(40):
            cards.run()
        assert cards.guards[0].ramp.is_full
        assert Counter(cards.run().device for _ in range(10)) == {"gpu:0": 5, "gpu:1": 5}


def test_each_card_keeps_its_own_times():
    """Time in service and out of it is told of each card by itself, and each one's moves by name."""
    with peers() as cards:
        cards.clock.tick(3)
        cards.gpus[1].fail_with(error("missing_library"))
        for _ in range(2):
            cards.run()
        cards.clock.tick(4)
        devices = cards.manager.stats().devices
        assert devices["gpu:0"].seconds_in_state == pytest.approx({"closed": 7})
        assert devices["gpu:1"].seconds_in_state == pytest.approx({"closed": 3, "open": 4})
        assert [move.device for move in cards.told(BreakerMoved)] == ["gpu:1"]


# -- construction and many threads --------------------------------------------------------------


def test_the_order_of_all_devices_is_flat():
    """`guarded` has every card of every group in order, and the last device stands alone."""
    groups = [[FakeBackend("gpu:0"), FakeBackend("gpu:1")], FakeBackend("simulated"), FakeBackend("cpu")]
    manager = FallbackManager(groups, FallbackPolicy(ramp=(1.0,)))
    assert [device.name for device in manager.guarded] == ["gpu:0", "gpu:1", "simulated"]
    assert repr(manager) == "<FallbackManager [gpu:0:closed, gpu:1:closed, simulated:closed] then cpu>"
    for gpu in groups[0]:
        gpu.fail_with(error("poisoned"))
    answer = manager.run(BATCH)
    assert (answer.device, answer.degraded) == ("simulated", True)
    manager.close()
    assert all(backend.closed for backend in (*groups[0], groups[1], groups[2]))


def test_a_group_may_be_empty_and_the_last_place_may_not():
    """No card at all leaves the CPU as the first tier; nobody in the last place is a mistake."""
    manager = FallbackManager([[], FakeBackend("cpu")])
    assert not manager.run(BATCH).degraded
    manager.close()
    for last in ([], [FakeBackend("cpu:0"), FakeBackend("cpu:1")]):
        with pytest.raises(ConfigurationError, match="last place"):
            FallbackManager([FakeBackend("gpu"), last])
    with pytest.raises(ConfigurationError, match="name"):
        FallbackManager([[FakeBackend("gpu"), FakeBackend("gpu")], FakeBackend("cpu")])
    with pytest.raises(ConfigurationError, match="gpu:7"):
        FallbackManager([FakeBackend("gpu"), FakeBackend("cpu")], ceilings={"gpu:7": Ceiling()})


def test_many_threads_over_cards_that_fail_get_right_answers():
    """Sixteen callers, three cards that fail at random and come back: each answer is right, the books balance."""
    rng = random.Random(7)
    lock = threading.Lock()
    kinds = [error(name) for name in ("poisoned", "worker_died", "transient")]

    def sometimes_fails(_):
        with lock:
            failure = rng.choice(kinds) if rng.random() < 0.05 else None
        if failure is not None:
            raise type(failure)(*failure.args)

    gpus = [FakeBackend(f"gpu:{card}", before=sometimes_fails) for card in range(3)]
    with peers(gpus=gpus, real_time=True, slots=16, recovery_time=0.0) as cards:
        prober = cards.prober()
        batches = [replace(BATCH, priority=priority) for priority in ("interactive", "bulk")]

        def work(index):
            served = Counter()
            for number in range(40):
                answer = cards.run(batches[(index + number) % 2])
                assert right(answer)
                assert answer.degraded is (answer.device == "cpu")
                served[answer.device] += 1
                if index == 0:
                    prober.probe_due()
            return served

        outcomes = in_threads(16, work)
        assert all(isinstance(outcome, Counter) for outcome in outcomes), outcomes
        told = sum(outcomes, Counter())
        stats = cards.manager.stats()
        assert told.total() == 640
        assert (stats.gpu_calls, stats.cpu_calls, stats.fallbacks) == (
            640 - told["cpu"],
            told["cpu"],
            told["cpu"],
        )
        assert {name: device.calls for name, device in stats.devices.items() if device.calls} == dict(told)
        assert all(told[gpu.device] for gpu in gpus)
