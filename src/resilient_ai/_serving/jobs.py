"""One call on its way through the service: what it wants, what it has got so far, who waits for it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from resilient_ai._inference.batching import scatter
from resilient_ai._serving.admission import Ticket
from resilient_ai._serving.outlook import Outlook
from resilient_ai._telemetry.log import log
from resilient_ai.errors import DeadlineExceeded, ResilientAIError
from resilient_ai.values import Backend, BoolArray, FloatArray, IntArray, Priority, Task, Tokens, Vectors

__all__ = ["CallFuture", "Job", "Lane", "Progress", "Rows", "Slice", "TokenRow"]


Answer = TypeVar("Answer")

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all) after each batch, on the thread that ran it."""


@dataclass(frozen=True, eq=False)
class Lane:
    """Where rows go: calls on the same lane share batches.

    `encode` turns the items of a call into tokens; `shared` gives the ids that belong to every row:
    the query of a late-interaction rerank, or what all prompts of a query begin with. A batch holds at
    most `max_rows` rows and `token_budget` tokens, padding included, and fewer where `outlook` asks for
    fewer.
    """

    model: str
    task: Task
    backend: Backend
    encode: Callable[[Sequence[Any]], Tokens]
    token_budget: int
    max_rows: int
    shared: Callable[[], IntArray] | None = None
    outlook: Callable[[], Outlook] | None = None

    def look(self) -> Outlook:
        """What batches would meet now."""
        return Outlook(self.backend.device) if self.outlook is None else self.outlook()

    def budget_now(self) -> int:
        """The most tokens that a batch should have which is planned now."""
        return max(1, int(min(self.token_budget, self.look().tokens)))


class TokenRow(NamedTuple):
    """What a device said of each token of one row: ids (n,), and values float32 (n, width)."""

    ids: IntArray
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Everything the devices gave for one call, in the order of its items.

    `tokens` is empty but for calls that ask for what is said of each token.
    """

    values: FloatArray
    token_counts: IntArray
    truncated: BoolArray
    served_by: tuple[str, ...]
    degraded: bool
    elapsed_ms: float
    tokens: tuple[TokenRow, ...] = ()


class CallFuture(Future[Answer]):
    """A future that can be cancelled until its answer is there, also while its rows are in a batch.

    Rows that are under way are computed to the end with their batch and then dropped; rows that
    still wait are never computed.
    """

    def cancel(self) -> bool:
        won = super().cancel()
        with self._condition:
            if self._state == "CANCELLED":
                # Wakes `concurrent.futures.wait` and `as_completed`, which plain `cancel` does not; twice
                # would be an error, and nothing but this lock keeps a second `cancel` from coming between.
                self.set_running_or_notify_cancel()
        return won


class Job(Generic[Answer]):
    """One call.

    It is routed once, before it is queued. Runners that have different rows of it may add them at
    the same time, and `future` may be touched by anyone at any time.
    """

    def __init__(
        self,
        *,
        deadline: float | None = None,
        priority: Priority = "interactive",
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ticket: Ticket | None = None  # the dispatcher's, guarded by its lock
        self.future: CallFuture[Answer] = CallFuture()
        self.deadline = deadline
        self.priority: Priority = priority
        self.taken = 0
        self.items: Sequence[Any] = ()
        self._started = clock()
        self._clock = clock
        self._progress = progress
        self._lock = threading.Lock()
        # Guarded by `_lock`.
        self._done = 0
        self._values: FloatArray | None = None
        self._tokens: dict[int, TokenRow] = {}
        self._devices: list[str] = []
        self._degraded = False

    def route(self, lane: Lane, items: Sequence[Any], finish: Callable[[Rows], Answer]) -> None:
        """Say where the rows go. `finish` makes the caller's answer of them, on the runner's thread."""
        self.lane = lane
        self.items = items
        self._finish = finish
        self._token_counts = np.zeros(len(items), np.int64)
        self._truncated = np.zeros(len(items), np.bool_)
        self._device_codes = np.zeros(len(items), np.int16)

    @property
    def is_over(self) -> bool:
        """Nobody waits any more: answered, failed, cancelled or expired."""
        return self.future.done()

    @property
    def remaining(self) -> int:
        return len(self.items) - self.taken

    def take(self, most: int) -> Slice:
        """Hand out the next rows of this job."""
        start = self.taken
        self.taken = min(len(self.items), start + most)
        return Slice(self, start, self.taken)

    def note_tokens(self, part: Slice, tokens: Tokens, first: int, *, shared: int = 0) -> None:
        """Keep what `part` learned from encoding: its rows start at row `first` of `tokens`.

        `shared` counts the tokens that stand before every row.
        """
        size = part.stop - part.start
        self._token_counts[part.start : part.stop] = tokens.lengths[first : first + size] + shared
        self._truncated[part.start : part.stop] = tokens.truncated[first : first + size]

    def add_tokens(self, row: int, tokens: TokenRow) -> None:
        """Take over what was said of one row's tokens; before `add` does so with the row itself."""
        with self._lock:
            self._tokens[row] = tokens

    def add(self, rows: IntArray, values: FloatArray, answer: Vectors) -> None:
        """Take over computed rows; the last ones finish the job."""
        if self.is_over:
            return
        with self._lock:
            if self._values is None:
                self._values = np.empty((len(self.items), values.shape[1]), np.float32)
            scatter(values, rows, self._values)
            if answer.device not in self._devices:
                self._devices.append(answer.device)
            self._device_codes[rows] = self._devices.index(answer.device)
            self._degraded |= answer.degraded
            self._done += len(rows)
            done = self._done
        self._report_progress(done)
        if done == len(self.items):
            self.complete(self._values)

    def fail(self, error: BaseException) -> None:
        """End the job with an error unless it is over already."""
        _settle(self.future.set_exception, error)

    def expire(self) -> None:
        if not self.is_over:
            waited = self._clock() - self._started
            self.fail(
                DeadlineExceeded(
                    f"the call's deadline passed after {waited:.3f} s with {self._done} of {len(self.items)} "
                    "rows done; allow more time, send less at once, or look at health() for a slow device"
                )
            )

    def complete(self, values: FloatArray) -> None:
        """Make the answer of `values` (items, dim) and hand it over."""
        rows = Rows(
            values=values,
            token_counts=self._token_counts,
            truncated=self._truncated,
            served_by=tuple(self._devices[code] for code in self._device_codes),
            degraded=self._degraded,
            elapsed_ms=(self._clock() - self._started) * 1000,
            tokens=tuple(self._tokens[row] for row in sorted(self._tokens)),
        )
        try:
            answer = self._finish(rows)
        except Exception as exc:  # noqa: BLE001 - whatever it was, the caller must get an answer
            self.fail(exc if isinstance(exc, ResilientAIError) else internal_error(exc))
            return
        _settle(self.future.set_result, answer)

    def _report_progress(self, done: int) -> None:
        if self._progress is None:
            return
        try:
            self._progress(done, len(self.items))
        except BaseException as exc:  # noqa: BLE001 - the callback is the caller's; all rows are still good
            self._progress = None
            log.warning("progress callback failed and is not called again", error=repr(exc))


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The rows `start` to `stop` of one job."""

    job: Job[Any]
    start: int
    stop: int

    @property
    def items(self) -> Sequence[Any]:
        return self.job.items[self.start : self.stop]


def fail_all(jobs: Iterable[Job[Any]], error: BaseException) -> None:
    """Fail every job, each with an error object of its own: shared ones mix up their tracebacks."""
    known = error if isinstance(error, ResilientAIError) else internal_error(error)
    for job in jobs:
        job.fail(_own(known))


def _own(error: ResilientAIError) -> ResilientAIError:
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class whose constructor wants more than its message
        return internal_error(error)
    own.__cause__ = error.__cause__
    return own


def _settle(settle: Callable[[Any], None], outcome: Any) -> None:
    """Give a future its outcome. The first one stands, and a waiter's callback hurts nobody else."""
    try:
        settle(outcome)
    except InvalidStateError:
        pass
    except BaseException as exc:
        # SystemExit and its like, from a callback. Our threads must live on; the main one is the host's.
        if threading.current_thread() is threading.main_thread():
            raise
        log.warning("a callback of a call's future failed", error=repr(exc))


def internal_error(cause: BaseException) -> ResilientAIError:
    """Wrap what should not have happened, so that callers still get an error of the tree."""
    error = ResilientAIError(f"internal error: {cause!r}; please report it with this traceback")
    error.__cause__ = cause
    return error
