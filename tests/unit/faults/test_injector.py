"""Who decides: calls and starts are numbered, and what was decided is on record."""

from __future__ import annotations

import threading

from resilient_ai._resilience.fault_kinds import Crash, DieInPhase, StartSlowly
from resilient_ai._resilience.fault_plan import FaultPlan, FaultRule, When
from resilient_ai._resilience.faults import InjectedFault, Injector
from resilient_ai.testing import FakeClock, Hang, Nan, SilentCpu, WrongValues, batch_of

BATCH = batch_of([1, 2, 3], [4, 5])
SLOW = StartSlowly(phase="session")


def plan(*rules, name="p", seed=0):
    return FaultPlan(rules, name=name, seed=seed)


def test_calls_and_starts_are_numbered_apart():
    """The n-th call and the n-th start are each the n-th, whatever came in between."""
    injector = Injector(plan(FaultRule(Crash(), When(calls=(2,))), FaultRule(SLOW, When(calls=(2,)))))
    assert [injector.decide(BATCH), injector.decide_start()] == [None, None]
    assert [injector.decide(BATCH), injector.decide_start()] == [Crash(), SLOW]
    assert [injector.decide(BATCH), injector.decide_start()] == [None, None]
    assert injector.injected == (InjectedFault("p", 2, "crash"), InjectedFault("p", 2, "start_slowly"))


def test_a_new_plan_counts_anew():
    """Numbers and time begin when a plan is set; the record goes on."""
    clock = FakeClock()
    first = plan(FaultRule(SLOW, When(last=1, before=1.0)), FaultRule(Nan(), When(last=1, before=1.0)))
    injector = Injector(first, clock=clock)
    assert [injector.decide_start(), injector.decide_start()] == [SLOW, None]
    clock.tick(5.0)
    injector.set_plan(first)
    assert [injector.decide_start(), injector.decide(BATCH)] == [SLOW, Nan()]
    clock.tick(1.0)
    injector.set_plan(plan(FaultRule(SLOW, When(after=1.0)), name="late"))
    assert injector.decide_start() is None
    clock.tick(1.0)
    assert injector.decide_start() == SLOW
    assert [fault.plan for fault in injector.injected] == ["p", "p", "p", "late"]


def test_without_a_plan_nothing_is_decided():
    """No plan, no fault, for calls and for starts."""
    injector = Injector()
    assert [injector.decide(BATCH), injector.decide_start(), injector.injected] == [None, None, ()]
    injector.set_plan(plan(FaultRule(DieInPhase()), FaultRule(Nan())))
    injector.set_plan(None)
    assert [injector.decide(BATCH), injector.decide_start(), injector.injected] == [None, None, ()]


def test_noise_gets_a_seed_of_its_call():
    """Wrong values are seeded by plan and call, so that they are the same in whichever process."""
    noise = plan(FaultRule(WrongValues(how="perturbed")), seed=7)
    first, again, other = Injector(noise), Injector(noise), Injector(plan(*noise.rules, seed=8))
    seeds = [first.decide(BATCH).seed for _ in range(3)]
    assert seeds == [again.decide(BATCH).seed for _ in range(3)]
    assert len({*seeds, other.decide(BATCH).seed}) == 4
    given = WrongValues(seed=5)
    assert Injector(plan(FaultRule(given))).decide(BATCH) == given


def test_what_hangs_is_released_by_each_that_ends_its_plan():
    """A new plan, a release and closing release; closing does so for every later plan."""
    hangs = plan(FaultRule(Hang()))
    injector = Injector(hangs)
    strikes = [injector.strike(BATCH)]
    assert not strikes[0].released.is_set()
    injector.set_plan(hangs)
    strikes.append(injector.strike(BATCH))
    assert [strike.released.is_set() for strike in strikes] == [True, False]
    injector.release()
    assert strikes[1].released.is_set()
    injector.set_plan(hangs)
    injector.close()
    injector.close()
    assert injector.is_closed
    assert injector.strike(BATCH).released.is_set()
    injector.set_plan(hangs)
    assert injector.strike(BATCH).released.is_set()


def test_releasing_nothing_is_harmless():
    """Without a plan there is nothing to release."""
    injector = Injector()
    injector.release()
    assert not injector.is_closed


def test_threads_do_not_change_which_calls_and_starts_fail():
    """Eight threads that ask at once get each number once, and the faults that belong to them."""
    injector = Injector(plan(FaultRule(SilentCpu(), When(every=7)), FaultRule(SLOW, When(every=5))))
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        for _ in range(70):
            injector.decide(BATCH)
            injector.decide_start()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    struck = {
        kind: [f.call for f in injector.injected if f.kind == kind] for kind in ("silent_cpu", "start_slowly")
    }
    assert struck == {"silent_cpu": list(range(7, 561, 7)), "start_slowly": list(range(5, 561, 5))}


def test_the_repr_tells_the_state():
    """A debugger shows the plan and how much was injected."""
    injector = Injector()
    assert repr(injector) == "<Injector plan=none injected=0>"
    injector.set_plan(plan(FaultRule(Nan()), name=""))
    injector.decide(BATCH)
    assert repr(injector) == "<Injector plan=unnamed injected=1>"
