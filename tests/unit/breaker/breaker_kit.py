"""A clock that moves when told, and the few moves that every breaker test makes."""

from resilient_ai._resilience.breaker import BreakerPolicy, CircuitBreaker, Permit


class Clock:
    """Seconds that pass only by `tick`."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def make(clock=None, **policy):
    """A breaker named "gpu" and its clock."""
    clock = clock or Clock()
    return CircuitBreaker(BreakerPolicy(**policy), name="gpu", clock=clock), clock


def enter(breaker):
    """A permit that has to be there."""
    permit = breaker.try_acquire()
    assert isinstance(permit, Permit), permit
    return permit


def fail(breaker, times=1):
    for _ in range(times):
        enter(breaker).failure()


def half_open(clock=None, **policy):
    """A breaker whose recovery time has just passed after one failure; nobody has probed yet."""
    breaker, clock = make(clock, **{"error_threshold": 1, "recovery_time": 10.0, **policy})
    fail(breaker)
    clock.tick(10.0)
    return breaker, clock


def record(breaker):
    """The list that every transition of the breaker will be appended to."""
    heard = []
    breaker.subscribe(heard.append)
    return heard


def arrows(heard):
    return [(event.before.value, event.after.value) for event in heard]
