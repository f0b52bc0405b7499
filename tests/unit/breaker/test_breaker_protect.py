"""`protect`: what each way a call can end is counted as."""

import asyncio
import concurrent.futures
import functools
import math
import pickle

import pytest
from breaker_kit import enter, fail, half_open, make

from resilient_ai._resilience.breaker import State
from resilient_ai._resilience.protect import CallRejected
from resilient_ai.errors import ConfigurationError, DeviceFailed, DeviceUnavailable, InvalidInput


def counts(breaker):
    s = breaker.snapshot()
    assert s.in_flight == 0
    return {n: v for n in ("successes", "failures", "ignored", "cancelled") if (v := getattr(s, n))}


def raiser(error):
    def call():
        raise error

    return call


def araiser(error):
    async def call():
        await asyncio.sleep(0)
        raise error

    return call


ENDINGS = [
    (ValueError(), "failures"),
    (DeviceFailed("cudaErrorIllegalAddress"), "failures"),
    (TimeoutError(), "failures"),
    (ExceptionGroup("g", [ValueError()]), "failures"),
    (LookupError("mine"), "ignored"),
    (KeyError("a subclass of mine"), "ignored"),
    (InvalidInput("too long"), "ignored"),
    (asyncio.CancelledError(), "cancelled"),
    (concurrent.futures.CancelledError(), "cancelled"),
    (KeyboardInterrupt(), "cancelled"),
    (SystemExit(), "cancelled"),
    (GeneratorExit(), "cancelled"),
]
ids = [type(error).__name__ for error, _ in ENDINGS]


@pytest.mark.parametrize(("error", "counted"), ENDINGS, ids=ids)
@pytest.mark.parametrize("threshold", [1, 100])
def test_what_an_error_counts_as_in_a_function(error, counted, threshold):
    """The caller gets its own error, and only real failures count against the protected (#7, #103)."""
    breaker, _ = make(error_threshold=threshold)
    with pytest.raises(type(error)) as caught:
        breaker.protect(ignore=(LookupError,))(raiser(error))()
    assert caught.value is error
    assert counts(breaker) == {counted: 1}
    assert (breaker.state is State.OPEN) == (threshold == 1 and counted == "failures")


@pytest.mark.parametrize(("error", "counted"), ENDINGS, ids=ids)
def test_what_an_error_counts_as_in_a_coroutine_function(error, counted):
    """Awaited or plain, the same error is counted the same."""
    breaker, _ = make()
    call = breaker.protect(ignore=LookupError)(araiser(error))
    coroutine = call()
    assert counts_now(breaker) == {}  # nothing before it is awaited
    coroutine.send(None)
    with pytest.raises(type(error)):
        coroutine.send(None)
    assert counts(breaker) == {counted: 1}


def counts_now(breaker):
    s = breaker.snapshot()
    return {n: v for n in ("successes", "failures", "ignored", "cancelled") if (v := getattr(s, n))}


@pytest.mark.parametrize(("error", "counted"), ENDINGS, ids=ids)
def test_what_an_error_counts_as_in_a_block(error, counted):
    """`with` and `async with` count like functions and swallow nothing."""
    breaker, _ = make()
    with pytest.raises(type(error)), breaker.protect(ignore=(LookupError,)):
        raise error
    assert counts(breaker) == {counted: 1}

    async def block():
        async with breaker.protect(ignore=(LookupError,)):
            raise error

    with pytest.raises(type(error)):
        block().send(None)
    assert counts(breaker) == {counted: 2}


def test_failing_coroutine_functions_open_the_breaker():
    """`async def` is not counted as a success when it is merely called (pybreaker#7)."""
    breaker, _ = make(error_threshold=5)

    @breaker
    async def broken():
        await asyncio.sleep(0)
        raise OSError

    async def main():
        await asyncio.gather(*(broken() for _ in range(5)), return_exceptions=True)

    asyncio.run(main())
    assert (breaker.state, breaker.snapshot().failures) == (State.OPEN, 5)


class AsyncCallable:
    async def __call__(self):
        raise OSError

    async def method(self):
        raise OSError


async def abroken():
    raise OSError


@pytest.mark.parametrize(
    "function",
    [AsyncCallable(), AsyncCallable().method, functools.partial(abroken), lambda: abroken()],  # noqa: PLW0108 -- a plain function that returns an awaitable
    ids=["object", "method", "partial", "lambda"],
)
def test_every_kind_of_awaitable_call_counts_when_awaited(function):
    """However it is spelled, what has to be awaited is counted when it was."""
    breaker, _ = make()
    functools.update_wrapper(call := breaker.protect()(function), abroken)
    with pytest.raises(OSError):
        asyncio.run(call())
    assert counts(breaker) == {"failures": 1}


def test_a_task_cancelled_in_a_protected_call_is_neutral():
    """Clients that hang up do not open the breaker (purgatory: three did)."""
    breaker, _ = make(error_threshold=1)

    @breaker
    async def endless():
        await asyncio.Event().wait()

    async def main():
        tasks = [asyncio.create_task(endless()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(r, asyncio.CancelledError) for r in asyncio.run(main()))
    assert counts(breaker) == {"cancelled": 3}


def test_a_timeout_inside_the_protected_call_is_a_failure():
    """Who cancels decides: the call's own limit becomes TimeoutError and counts (PraisonAI#4969)."""
    breaker, _ = make(error_threshold=1)

    @breaker
    async def limited():
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(limited())
    assert breaker.state is State.OPEN


def test_one_breaker_serves_two_event_loops():
    """Nothing binds to a loop, contended or not (code_puppy#273, cpython#23420)."""
    breaker, _ = make()

    @breaker
    async def call():
        await asyncio.sleep(0)

    async def crowd():
        await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(crowd())
    asyncio.run(crowd())
    assert counts(breaker) == {"successes": 40}


def test_ignored_errors_interleaved_with_failures_do_not_hide_them():
    """Neutral is neither failure nor success (pybreaker and purgatory `exclude` never open)."""
    breaker, _ = make(error_threshold=3)
    call = breaker.protect(ignore=(ValueError,))
    for error in (OSError(), ValueError(), ValueError()) * 2 + (OSError(),):
        with pytest.raises(type(error)):
            call(raiser(error))()
    assert breaker.state is State.OPEN


def test_caller_errors_alone_never_open():
    """Twenty-one bad statements are twenty-one bad statements (cerberus#2900, sglang#25811)."""
    breaker, _ = make(error_threshold=3)
    for _ in range(21):
        with pytest.raises(InvalidInput):
            breaker(raiser(InvalidInput("no")))()
    assert (breaker.state, breaker.snapshot().ignored) == (State.CLOSED, 21)


def test_a_caller_error_as_a_probe_does_not_close():
    """400s closed half-open elsewhere (lightseek#2565)."""
    breaker, _ = half_open()
    with pytest.raises(InvalidInput):
        breaker(raiser(InvalidInput("no")))()
    assert breaker.state is State.HALF_OPEN


def test_a_result_can_be_a_failure():
    """Garbage with status 200 must not reset the count (stagehand#2952); the caller still gets it."""
    breaker, _ = make(error_threshold=2)
    call = breaker.protect(is_failure=math.isnan)(lambda: float("nan"))
    assert call() != call()
    assert breaker.state is State.OPEN

    async def acall():
        return "ok"

    healthy, _ = make()
    assert asyncio.run(healthy.protect(is_failure=lambda r: r == "bad")(acall)()) == "ok"
    assert counts(healthy) == {"successes": 1}


def test_a_predicate_that_raises_leaves_no_permit_behind():
    """Its error reaches the caller, and the call is neutral."""
    breaker, _ = half_open()
    with pytest.raises(ZeroDivisionError):
        breaker.protect(is_failure=lambda result: 1 / 0)(lambda: 1)()
    assert counts(breaker) == {"failures": 1, "cancelled": 1}
    assert breaker.state is State.HALF_OPEN


def test_a_rejected_call_is_not_made_and_each_rejection_is_a_new_error():
    """DeviceUnavailable with `retry_after`; shared instances would grow one traceback for all."""
    breaker, _ = make()
    breaker.open_for(42.5)
    called = []

    async def acall():
        called.append(1)

    errors = []
    for attempt in (breaker(lambda: called.append(1)), lambda: asyncio.run(breaker(acall)())):
        for _ in range(2):
            with pytest.raises(DeviceUnavailable, match=r"gpu is shut out .* try again in 42\.5 s") as caught:
                attempt()
            errors.append(caught.value)
    with pytest.raises(CallRejected), breaker.protect():
        called.append(1)
    assert called == []
    assert len({id(error) for error in errors}) == 4
    assert {(e.retry_after, e.state, e.code) for e in errors} == {(42.5, State.OPEN, "device_unavailable")}


def test_a_rejection_travels_between_processes():
    """Pickled and back it still says when and why."""
    breaker, _ = make()
    breaker.open_for(5)
    with pytest.raises(CallRejected) as caught:
        breaker(lambda: 1)()
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.retry_after, copied.state) == (str(caught.value), 5.0, State.OPEN)


def test_a_forced_rejection_does_not_invent_a_time():
    """Only a person can open the way, so `retry_after` is None."""
    breaker, _ = make()
    breaker.force_open()
    with pytest.raises(CallRejected, match="enabled") as caught:
        breaker(lambda: 1)()
    assert caught.value.retry_after is None


def generator():
    yield 1


async def agenerator():
    yield 1


class GeneratorCallable:
    def __call__(self):
        yield 1


@pytest.mark.parametrize(
    "function", [generator, agenerator, GeneratorCallable(), functools.partial(generator)]
)
def test_generators_are_refused_where_they_are_decorated(function):
    """A breaker cannot tell when one has ended well, and says so."""
    breaker, _ = make()
    with pytest.raises(TypeError, match="generator"):
        breaker(function)


def test_a_function_that_returns_a_generator_is_refused_when_called():
    """It could not be known before; no permit is left behind."""
    breaker, _ = make()
    with pytest.raises(TypeError, match="generator"):
        breaker(lambda: generator())()  # noqa: PLW0108 -- a plain function that returns one
    assert counts(breaker) == {"cancelled": 1}


def test_what_is_no_function_is_refused():
    """A classmethod object and None get a clear TypeError."""
    breaker, _ = make()
    for thing in (None, classmethod(lambda cls: 1)):
        with pytest.raises(TypeError, match="no function"):
            breaker(thing)


@pytest.mark.parametrize("bad", [{"ignore": (1,)}, {"ignore": int}, {"is_failure": 3}])
def test_bad_arguments_are_refused(bad):
    """Where they are given, by name."""
    breaker, _ = make()
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        breaker.protect(**bad)


def test_the_wrapper_looks_like_the_function():
    """Name, docstring and kind survive; methods stay methods."""
    breaker, _ = make()

    class Thing:
        @breaker
        def double(self, x):
            """Twice."""
            return 2 * x

        @breaker
        async def adouble(self, x):
            return 2 * x

    assert (Thing.double.__name__, Thing.double.__doc__) == ("double", "Twice.")
    assert Thing().double(4) == 8
    assert asyncio.iscoroutinefunction(Thing.adouble)
    assert asyncio.run(Thing().adouble(x=4)) == 8


def test_the_block_may_settle_by_itself():
    """The guard's value is the permit; what the block said stands."""
    breaker, _ = make()
    with breaker.protect() as permit:
        permit.failure()
    assert counts(breaker) == {"failures": 1}


def test_one_guard_covers_one_block_at_a_time():
    """Used again after the block it is fine; inside it, the mistake is named and nothing is taken."""
    breaker, _ = make()
    guard = breaker.protect()
    with guard, pytest.raises(RuntimeError, match="in use"), guard:
        pass
    with guard:
        pass
    breaker.force_open()
    for _ in range(2):
        with pytest.raises(CallRejected), guard:
            pass
    assert counts(breaker) == {"successes": 2}


def test_an_error_leaves_no_trace_in_the_breaker():
    """Of an error only its class's name is kept: a traceback would hold tensors (pytorch#18853)."""
    breaker, _ = make(error_threshold=1)

    class Loud(Exception):
        def __str__(self):
            raise AssertionError("nobody may ask for the text under the lock")

    enter(breaker).failure(Loud())
    assert breaker.snapshot().reason == "1 failure in a row (last: Loud)"


def test_retries_inside_the_protected_call_count_once():
    """One logical call, one result (Fluidra#64, external_service#93)."""
    breaker, _ = make(error_threshold=2)

    @breaker
    def with_retries():
        for _ in range(8):
            try:
                raise OSError
            except OSError:
                continue
        raise OSError

    with pytest.raises(OSError):
        with_retries()
    assert (breaker.state, breaker.snapshot().failures) == (State.CLOSED, 1)
    fail(breaker)
    assert breaker.state is State.OPEN


def test_calls_under_the_breaker_run_side_by_side():
    """No lock is held while they run (pybreaker#3: four threads took four times as long)."""
    import threading

    breaker, _ = make()
    together = threading.Barrier(4)
    call = breaker(lambda: together.wait(10))
    crowd = [threading.Thread(target=call) for _ in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert counts(breaker) == {"successes": 4}


def test_opening_by_hand_does_not_wait_for_a_call():
    """`force_open` while a call hangs returns (pybreaker: `open()` blocks)."""
    breaker, _ = make()
    with breaker.protect():
        breaker.force_open()
        assert not breaker.try_acquire()
    assert breaker.snapshot().stale_results == 1
