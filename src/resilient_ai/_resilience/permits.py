"""The two answers of a breaker: a `Permit` to settle, or a `Rejection` to act on.

A permit is a promise to say how the call ended. It carries the generation it was issued in, so
that its result can be told from those of another time.
"""

# ruff: noqa: SLF001 -- a permit is one half of the breaker; the other half is private to the public only.

from __future__ import annotations

from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Never, Self

from resilient_ai._resilience.states import State

if TYPE_CHECKING:
    from resilient_ai._resilience.machine import Machine

__all__ = ["Outcome", "Permit", "Rejection"]


class Outcome(Enum):
    """How a call ended. The last two say nothing about what is protected."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"
    CANCELLED = "cancelled"


_SUCCESS = Outcome.SUCCESS


class Rejection(NamedTuple):
    """Falsy: the call may not pass.

    `retry_after` is the number of seconds after which asking again makes sense, None when only a
    person can open the way.
    """

    retry_after: float | None
    state: State

    def __bool__(self) -> Literal[False]:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Permit:
    """Truthy: the call may pass, and has to be settled once it ended.

    The first of `success`, `failure`, `ignore` and `cancel` settles; what comes later does
    nothing. Any thread may settle. At the end of a `with` block a permit that nobody settled is
    cancelled. Outside of one, a permit that is dropped stays in flight, for its call may still run:
    a probe until its lease ends. Each settlement takes the breaker's lock for a moment; leaving a
    `with` block because a generator or coroutine is being finalised does not, so that it is safe
    wherever the garbage collector may strike.
    """

    __slots__ = ("_breaker", "_issued_at", "_probe", "_settled", "generation")

    def __init__(self, breaker: Machine, generation: int, issued_at: float, probe: int = 0) -> None:
        self._settled = False
        self._breaker = breaker
        self._issued_at = issued_at
        self._probe = probe  # serial number among the probes, 0 for an ordinary call
        self.generation = generation

    @property
    def is_probe(self) -> bool:
        """Whether it was issued to find out if what is protected works again."""
        return self._probe > 0

    def success(self) -> None:
        """The call ended well."""
        self._breaker._settle(self, _SUCCESS)

    def failure(self, error: BaseException | None = None) -> None:
        """The call failed; of `error` only the name of its class is kept."""
        self._breaker._settle(self, Outcome.FAILURE, "" if error is None else type(error).__name__)

    def ignore(self) -> None:
        """The call ended in a way that says nothing about what is protected: a caller's mistake."""
        self._breaker._settle(self, Outcome.IGNORED)

    def cancel(self) -> None:
        """The call was not made, or given up before it could tell anything."""
        self._breaker._settle(self, Outcome.CANCELLED)

    def give_back(self) -> None:
        """Cancel without taking a lock; the breaker notices at its next operation."""
        if not self._settled:
            self._breaker._returned.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is GeneratorExit:
            self.give_back()
        elif not self._settled:
            self.cancel()

    def __reduce__(self) -> Never:
        raise TypeError("a permit can be neither copied nor pickled: one call, one permit, one settlement")

    def __repr__(self) -> str:
        kind = "probe" if self._probe else "call"
        return f"<Permit {kind} generation={self.generation} {'settled' if self._settled else 'unsettled'}>"
