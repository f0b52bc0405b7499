"""What the breaker costs, beside three others written in Python.

    python benchmarks/breaker.py [--rounds 15] [--calls 20000]

All contestants take turns in every round, so that a busy machine disturbs them alike; the median of
the rounds is reported, and its ratio to pybreaker's. "closed" is one protected call of a function
that returns None, "rejection" one call turned away. Where the library gives a choice, both are shown:
ours in two steps (`try_acquire`, `success`; a rejection is a value) and decorated (a rejection
is an exception, like everywhere else).
"""

import argparse
import contextlib
import importlib
import statistics
import sys
import time

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, FailureRate


def nothing():
    return None


def ours():
    """Yield (name, kind, what to call)."""
    rate = FailureRate(window=100, rate=0.5)
    timed = FailureRate(seconds=60, rate=0.5, slow_call_duration=1.0, slow_call_rate=0.5)
    for name, policy in {
        "resilient_ai": BreakerPolicy(),
        "resilient_ai, rate of 100 calls": BreakerPolicy(trip_rule=rate),
        "resilient_ai, rate and slowness of 60 s": BreakerPolicy(trip_rule=timed),
    }.items():
        breaker = CircuitBreaker(policy)

        def two_steps(breaker=breaker):
            permit = breaker.try_acquire()
            if permit:
                nothing()
                permit.success()

        yield name, "closed", two_steps
    yield "resilient_ai, decorated", "closed", CircuitBreaker()(nothing)
    shut = CircuitBreaker()
    shut.open_for(1e6)
    decorated = shut(nothing)
    yield "resilient_ai", "rejection", shut.try_acquire
    yield "resilient_ai, decorated", "rejection", lambda: refused(decorated)


def refused(call):
    with contextlib.suppress(Exception):
        call()


def pybreaker(module):
    closed, shut = module.CircuitBreaker(), module.CircuitBreaker(reset_timeout=10**6)
    shut.open()
    yield "pybreaker", "closed", closed(nothing)
    call = shut(nothing)
    yield "pybreaker", "rejection", lambda: refused(call)


def purgatory(module):
    factory = module.SyncCircuitBreakerFactory(default_threshold=1, default_ttl=1e6)
    yield "purgatory", "closed", factory("closed")(nothing)

    def broken():
        raise OSError

    refused(factory("shut")(broken))
    call = factory("shut")(nothing)
    yield "purgatory", "rejection", lambda: refused(call)


def circuitbreaker(module):
    yield "circuitbreaker", "closed", module.CircuitBreaker(name="closed")(nothing)
    shut = module.CircuitBreaker(name="shut", failure_threshold=1, recovery_timeout=10**6)

    def broken():
        raise OSError

    refused(shut(broken))
    call = shut(nothing)
    yield "circuitbreaker", "rejection", lambda: refused(call)


def contestants():
    yield "(the call alone)", "closed", nothing
    yield from ours()
    for build in (pybreaker, purgatory, circuitbreaker):
        try:
            module = importlib.import_module(build.__name__)
        except ImportError:
            package = {"purgatory": "purgatory-circuitbreaker"}.get(build.__name__, build.__name__)
            print(f"{build.__name__} is left out: pip install {package}", file=sys.stderr)
            continue
        yield from build(module)


def measure(call, calls):
    """Nanoseconds per call."""
    turns = range(calls)
    begin = time.perf_counter_ns()
    for _ in turns:
        call()
    return (time.perf_counter_ns() - begin) / calls


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=20_000)
    options = parser.parse_args()
    entries = list(contestants())
    times = {entry[:2]: [] for entry in entries}
    for _ in range(options.rounds):
        for name, kind, call in entries:
            times[name, kind].append(measure(call, options.calls))
    medians = {key: statistics.median(values) for key, values in times.items()}
    for kind in ("closed", "rejection"):
        base = medians.get(("pybreaker", kind))
        print(f"\n{kind:<42}{'median ns':>10}{'/ pybreaker':>13}")
        for (name, of), median in medians.items():
            if of == kind:
                print(f"  {name:<40}{median:>10.0f}{f'{median / base:.2f}' if base else '-':>13}")


if __name__ == "__main__":
    main()
