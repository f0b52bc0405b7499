"""A breaker around a function or a block, for those who protect something of their own.

How an ending is counted::

    returns, and `is_failure(result)` is not true             success
    returns, and `is_failure(result)` is true                 failure; the caller gets the result
    raises an Exception                                       failure
    raises one of `ignore`, or an error that is the caller's  ignored
    is cancelled or interrupted, or the process is exiting    cancelled
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from resilient_ai._resilience.permits import Permit, Rejection
from resilient_ai._resilience.states import State
from resilient_ai.errors import ConfigurationError, DeviceUnavailable, ResilientAIError

if TYPE_CHECKING:
    from resilient_ai._resilience.breaker import CircuitBreaker

__all__ = ["CallRejected", "IsFailure", "Protection"]

IsFailure = Callable[[Any], bool]

_Function = TypeVar("_Function", bound=Callable[..., object])


class CallRejected(DeviceUnavailable):
    """Raised in place of a call that the breaker did not let pass; the call was not made.

    `retry_after` is in seconds, None when only a person can open the way; `state` is the breaker's.
    """

    def __init__(self, message: str, retry_after: float | None = None, state: State = State.OPEN) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.state = state


class Protection:
    """A decorator for functions and coroutine functions, and a guard for `with` and `async with`.

    A function that returns an awaitable is counted when that is awaited. Generators end at
    a time nobody can tell, so they are refused. As a guard, one object covers one block at a time;
    `breaker.protect()` in the `with` line makes a new one each time. The guard's value is the permit,
    which the block may settle itself.
    """

    __slots__ = ("_breaker", "_busy", "_ignore", "_is_failure", "_permit")

    def __init__(
        self,
        breaker: CircuitBreaker,
        *,
        ignore: tuple[type[BaseException], ...] | type[BaseException] = (),
        is_failure: IsFailure | None = None,
    ) -> None:
        self._ignore = _exception_types(ignore)
        if is_failure is not None and not callable(is_failure):
            raise ConfigurationError(f"is_failure={is_failure!r} must be a function of the result")
        self._breaker = breaker
        self._is_failure = is_failure
        self._permit: Permit | None = None
        self._busy = threading.Lock()  # taken while a block is guarded, never waited for

    # -- around a function ---------------------------------------------------------------------

    def __call__(self, function: _Function) -> _Function:
        """Wrap `function`.

        Raises:
            TypeError: It is a generator function, or not a function at all.
        """
        _refuse_generators(function)
        if _is_async(function):
            make_awaitable = cast("Callable[..., Awaitable[object]]", function)

            @functools.wraps(function)
            async def call_async(*args: object, **kwargs: object) -> object:
                permit = self._admit()
                try:
                    result = await make_awaitable(*args, **kwargs)
                except BaseException as error:
                    self._settle_error(permit, error)
                    raise
                return self._settle_result(permit, result)

            return cast("_Function", call_async)

        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            permit = self._admit()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._settle_error(permit, error)
                raise
            if inspect.isawaitable(result):
                return self._await(permit, result)
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                permit.cancel()
                raise _no_generators(function)
            return self._settle_result(permit, result)

        return cast("_Function", call)

    async def _await(self, permit: Permit, awaitable: Awaitable[object]) -> object:
        try:
            result = await awaitable
        except BaseException as error:
            self._settle_error(permit, error)
            raise
        return self._settle_result(permit, result)

    # -- around a block ------------------------------------------------------------------------

    def __enter__(self) -> Permit:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this guard is in use; write `with breaker.protect():` for each block")
        try:
            self._permit = permit = self._admit()
        except BaseException:
            self._busy.release()
            raise
        return permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit, self._permit = self._permit, None
        self._busy.release()
        if permit is None:
            return
        if error is None:
            permit.success()
        else:
            self._settle_error(permit, error)

    async def __aenter__(self) -> Permit:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    # -- what both share -----------------------------------------------------------------------

    def _admit(self) -> Permit:
        answer = self._breaker.try_acquire()
        if isinstance(answer, Rejection):
            raise _rejected(self._breaker.name, answer)
        return answer

    def _settle_result(self, permit: Permit, result: object) -> object:
        if self._is_failure is None:
            permit.success()
            return result
        try:
            failed = bool(self._is_failure(result))
        except BaseException:
            permit.cancel()
            raise
        if failed:
            permit.failure()
        else:
            permit.success()
        return result

    def _settle_error(self, permit: Permit, error: BaseException) -> None:
        if isinstance(error, GeneratorExit):
            permit.give_back()  # the garbage collector may be at work: no locks
        elif isinstance(error, self._ignore) or _is_callers(error):
            permit.ignore()
        elif isinstance(error, Exception) and not isinstance(error, CancelledError):
            permit.failure(error)
        else:
            permit.cancel()


def _rejected(name: str, answer: Rejection) -> CallRejected:
    after = "when it is enabled again" if answer.retry_after is None else f"in {answer.retry_after:.3g} s"
    return CallRejected(
        f"{name} is shut out by its circuit breaker ({answer.state.value}); the call was not made, "
        f"try again {after}; snapshot().reason of the breaker says why",
        answer.retry_after,
        answer.state,
    )


def _is_callers(error: BaseException) -> bool:
    return isinstance(error, ResilientAIError) and error.whose == "caller"


def _exception_types(
    ignore: tuple[type[BaseException], ...] | type[BaseException],
) -> tuple[type[BaseException], ...]:
    types = (ignore,) if isinstance(ignore, type) else tuple(ignore)
    for item in types:
        if not _is_exception_type(item):
            raise ConfigurationError(f"ignore={ignore!r} must be exception classes")
    return types


def _is_exception_type(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseException)


def _is_async(function: Callable[..., object]) -> bool:
    called = getattr(type(function), "__call__", None)  # noqa: B004 -- asked for, not tested for
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _refuse_generators(function: object) -> None:
    if not callable(function):
        raise TypeError(f"{function!r} is no function; put the breaker below @staticmethod and @classmethod")
    called = getattr(type(function), "__call__", None)  # noqa: B004 -- asked for, not tested for
    for candidate in (function, called):
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise _no_generators(function)


def _no_generators(function: Callable[..., object]) -> TypeError:
    name = getattr(function, "__qualname__", repr(function))
    return TypeError(
        f"{name} is a generator, and a breaker cannot tell when a generator has ended well; "
        "guard what it does for each item instead: with breaker.protect(): ..."
    )
