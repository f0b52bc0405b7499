"""Callers at work: threads that ask, wait, compare what they get, and ask again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from resilient_ai._adapters.drill.judge import Judge
from resilient_ai._adapters.drill.requests import REQUESTS, Request
from resilient_ai.errors import ResilientAIError

if TYPE_CHECKING:
    from resilient_ai.service import AIService
    from resilient_ai.values import Embeddings, Ranking

__all__ = ["Call", "Outcome", "Traffic"]

Outcome = Literal["right", "typed_error", "wrong", "lost"]

_LONGEST_PAUSE = 0.02
_GRACE = 1.0
"""A call may end so many seconds after its deadline before it counts as lost: threads need their turn."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its caller saw it: from when to when, what came of it, which devices served it.

    "wrong" is a wrong answer, or an error that is none of the library's; "lost" is neither answer
    nor error in time.
    """

    begun: float
    ended: float
    outcome: Outcome
    served_by: frozenset[str] = frozenset()
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


class Traffic:
    """`threads` callers on a service, until it is left; what each asks for depends on `seed` alone.

    Args:
        service: Who is asked.
        judge: Tells right answers from wrong ones.
        threads: Callers at once; each pauses a few milliseconds between its calls.
        patience: Seconds after which a call without a deadline counts as lost.
        seed: Decides who asks for what.
        requests: What is asked for.
    """

    def __init__(
        self,
        service: AIService,
        judge: Judge,
        *,
        threads: int,
        patience: float,
        seed: int = 0,
        requests: Sequence[Request] = REQUESTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._judge = judge
        self._patience = patience
        self._requests = requests
        self._clock = clock
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Call] = []  # guarded by `_lock`
        self._threads = [
            threading.Thread(
                target=self._ask_on, args=(f"{seed}/{number}",), name=f"drill-{number}", daemon=True
            )
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if kind is None:
            # Whoever is interrupted does not wait: closing the service ends what is under way.
            for thread in self._threads:
                thread.join()

    def calls(self, since: int = 0) -> list[Call]:
        """The calls that have ended so far, in the order of their ends, without the first `since`."""
        with self._lock:
            return self._calls[since:]

    def _ask_on(self, seed: str) -> None:
        chance = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
        while not self._stopped.is_set():
            call = self.ask(chance.choice(self._requests))
            with self._lock:
                self._calls.append(call)
            self._stopped.wait(chance.uniform(0.0, _LONGEST_PAUSE))

    def ask(self, request: Request) -> Call:
        """Make one call and wait for its end; never raises an `Exception`."""
        begun = self._clock()
        future: Future[Embeddings] | Future[Ranking] | None = None
        try:
            future = request.submit(self._service)
            answer = future.result(self._patience if request.timeout is None else request.timeout + _GRACE)
            ended = self._clock()
            right = self._judge.is_right(request, answer)
            return Call(begun, ended, "right" if right else "wrong", frozenset(answer.served_by))
        except ResilientAIError as exc:
            return Call(begun, self._clock(), "typed_error", error=exc.code)
        except TimeoutError:
            # Not `DeadlineExceeded`, which is one of the library's: this wait was the drill's own.
            if future is not None:
                future.cancel()
            return Call(begun, self._clock(), "lost")
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what the caller got
            return Call(begun, self._clock(), "wrong", error=repr(exc))
