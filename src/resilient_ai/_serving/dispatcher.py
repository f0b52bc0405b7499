"""Merges waiting calls into batches and runs them: the heart of the straight way.

A runner thread takes a *wave* of rows from the queue (what waits on one lane, up to a limit),
encodes it, sorts it by length, cuts it into batches and runs them. Callers that arrive while a
wave runs form the next one, so they share batches without anybody waiting for company. Between
two batches a more urgent wave may go first.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from resilient_ai._inference.batching import collate, plan, shared_load
from resilient_ai._inference.buffers import BufferPool
from resilient_ai._serving.admission import CHARACTERS_PER_TOKEN, Admission, Load, Ticket, weigh
from resilient_ai._serving.jobs import Job, Lane, Slice, TokenRow, fail_all
from resilient_ai._serving.queue import JobQueue, urgency
from resilient_ai._serving.threads import start_thread
from resilient_ai._telemetry.events import CallShed, EventBus
from resilient_ai.errors import DeviceFailed, Overloaded, ResilientAIError, ServiceClosed
from resilient_ai.values import Batch, BoolArray, FloatArray, IntArray, Tokens, Vectors

__all__ = ["Dispatcher", "QueueSnapshot", "on_runner_thread"]

_RUNNER = "resilient-ai-runner-"

_WAVE_ROWS = 256
"""Enough rows for sorting by length to pay, few enough that the next caller's turn comes soon."""

_RETRY_SOON = 0.05
"""The shortest time, in seconds, after which a refused caller is told to come back."""


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """What waits and what was turned away: `calls` and `rows` now, `capacity` in calls."""

    calls: int
    rows: int
    capacity: int
    in_flight_calls: int
    rejected: int


@dataclass(frozen=True, slots=True, eq=False)
class _Wave:
    """Encoded rows of one or more jobs: row i is row `positions[i]` of `jobs[owners[i]]`."""

    lane: Lane
    jobs: tuple[Job[Any], ...]
    owners: IntArray
    positions: IntArray
    tokens: Tokens
    shared_ids: IntArray | None


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """What one job has in a batch: `count` of its rows, which `mine` selects."""

    job: Job[Any]
    mine: BoolArray | slice
    count: int


class Dispatcher:
    """Runs `Job`s on their lanes' backends. Thread-safe.

    `queue_size` bounds the calls that wait; `runners` is the number of threads that run batches.
    The threads start with the first job. Every job that was accepted ends: with its answer, an
    error of its own, or `ServiceClosed`.
    """

    def __init__(
        self,
        pool: BufferPool,
        *,
        queue_size: int,
        runners: int = 1,
        events: EventBus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._events = events if events is not None else EventBus()
        self._queue_size = queue_size
        self._runners = runners
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._queue = JobQueue()
        self._active: Counter[Job[Any]] = Counter()  # how many waves have rows of it
        self._closed = False
        self._rejected = 0
        self._admission = Admission()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Job[Any]) -> None:
        """Queue a job; never blocks on work. Raises `Overloaded` or `ServiceClosed` at once.

        A call that could be done only after its deadline is refused now. When the line is full, an
        interactive call takes the place of the latest bulk call.
        """
        load = _load(job)
        weight = weigh(job.items)
        ticket = job.ticket = Ticket(load, len(job.items), weight / len(job.items))
        try:
            shed = self._admit(job, load, weight)
        except Overloaded as exc:
            self._events.emit(CallShed(job.priority, exc.retry_after))
            raise
        # The ticket, not the job: a cycle of job and future would keep texts and vectors in memory.
        job.future.add_done_callback(lambda _: self._forget(ticket))
        if shed is not None:
            self._events.emit(CallShed(shed.priority, _RETRY_SOON))
            shed.fail(Overloaded("this bulk call gave way to interactive ones", _RETRY_SOON))

    def _admit(self, job: Job[Any], load: Load, weight: float) -> Job[Any] | None:
        """Queue the job, and return the one that has to go for it, if one has to."""
        with self._changed:
            if self._closed:
                raise ServiceClosed("the service is closed; create a new one")
            shed = self._make_room(job, load, weight)
            if not self._threads:
                self._start_threads()
            self._admission.arrived(load, weight)
            self._queue.put(job)
            self._changed.notify()
            return shed

    def _make_room(self, job: Job[Any], load: Load, weight: float) -> Job[Any] | None:
        """Refuse the job, or return the one that goes for it, if one must; the caller holds the lock."""
        if job.deadline is not None:
            late = self._wait(job, load, weight) - (job.deadline - self._clock())
            if late > 0:
                self._rejected += 1
                told = f"this call would end {late:.2f} s after its deadline"
                raise Overloaded(told, max(_RETRY_SOON, late))
        if len(self._queue) >= self._queue_size:
            self._queue.discard_over()
        if len(self._queue) < self._queue_size:
            return None
        self._rejected += 1
        shed = self._queue.shed() if job.priority == "interactive" else None
        if shed is None:
            retry_after = max(_RETRY_SOON, self._wait(job, load, weight))
            raise Overloaded(f"{len(self._queue)} calls wait already", retry_after)
        return shed

    def _wait(self, job: Job[Any], load: Load, weight: float) -> float:
        """Seconds until the job would be done, as far as can be told; minus infinity where nothing can."""
        outlook = job.lane.look()
        width = min(outlook.width, self._runners)
        wait = self._admission.wait(load, weight, outlook.device, self._clock(), width=width)
        return -math.inf if wait is None else wait

    def _forget(self, ticket: Ticket) -> None:
        """A job is over: what was not computed of it will not be waited for."""
        with self._changed:
            self._admission.left(ticket.load, ticket.run(ticket.rows))
            if self._closed:
                self._changed.notify_all()

    @property
    def is_live(self) -> bool:
        """Whether calls are taken and every runner is there to run them."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def snapshot(self) -> QueueSnapshot:
        with self._changed:
            return QueueSnapshot(
                len(self._queue), self._queue.rows, self._queue_size, len(self._active), self._rejected
            )

    def close(self, timeout: float = 5.0) -> None:
        """Stop. Calls that wait get `ServiceClosed`; those under way may end for `timeout` seconds.

        A batch that nobody waits for is left to itself: see `join`. May be called twice and from any
        thread, a runner's own included.
        """
        with self._changed:
            self._closed = True
            waiting = self._queue.drain()
            self._changed.notify_all()
        fail_all(waiting, ServiceClosed("the service was closed before this call's turn came"))
        if on_runner_thread():  # a wave of its own would be waited for
            self.join(timeout)
        else:
            self._outlast_callers(timeout)
        with self._changed:
            stuck = list(self._active)
        fail_all(stuck, ServiceClosed("the service was closed while this call was running"))

    def _outlast_callers(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(job.is_over for job in self._active), timeout)

    def join(self, timeout: float) -> None:
        """Wait until the runners of a closed dispatcher have ended, at most `timeout` seconds."""
        give_up = self._clock() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, give_up - self._clock()))

    def _start_threads(self) -> None:
        for number in range(self._runners):
            self._threads.append(start_thread(self._loop, f"{_RUNNER}{number}"))

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (slices := self._take()):
                    if self._closed:
                        return
                    self._changed.wait()
            self._serve(slices)

    def _take(self, **limits: int) -> list[Slice]:
        """Take a wave from the queue; the caller holds the lock."""
        slices = self._queue.take(_WAVE_ROWS, **limits)
        self._active.update(part.job for part in slices)
        return slices

    def _serve(self, slices: list[Slice]) -> None:
        """Run one wave that was taken; the runner lives on, whatever happens."""
        self._run_wave(slices)
        with self._changed:
            self._active.subtract(part.job for part in slices)
            self._active = +self._active

    def _run_wave(self, slices: list[Slice]) -> None:
        """Whatever goes wrong ends the wave's own jobs and no others."""
        try:
            self._encode_and_run(slices)
        except BaseException as exc:  # noqa: BLE001 - a runner must not die with callers waiting
            fail_all([part.job for part in slices], exc)

    def _encode_and_run(self, slices: list[Slice]) -> None:
        try:
            wave = _encode(slices)
        except ResilientAIError:
            if len(slices) == 1:
                raise
            # One caller's bad text is no other caller's business: each goes on alone.
            for part in slices:
                self._run_wave([part])
            return
        level, lane = urgency(wave.jobs[0]), wave.lane
        lengths = wave.tokens.lengths + shared_load(lane.task, wave.shared_ids)
        for rows in plan(lengths, token_budget=lane.budget_now(), max_rows=lane.max_rows):
            self._let_pass(level)
            self._run_batch(wave, rows)

    def _let_pass(self, level: int) -> None:
        """Serve one wave of calls more urgent than `level`, if any wait."""
        if level == 0:
            return
        with self._changed:
            slices = self._take(before=level)
        if slices:
            self._serve(slices)

    def _run_batch(self, wave: _Wave, rows: IntArray) -> None:
        if self._closed:
            fail_all(wave.jobs, ServiceClosed("the service was closed while this call was running"))
        over = np.array([job.is_over for job in wave.jobs])
        rows = rows[~over[wave.owners[rows]]]
        if not rows.size:
            return
        shares = _shares(wave, rows)
        jobs = [share.job for share in shares]
        started = self._clock()
        try:
            with self._collate(wave, rows, jobs) as batch:
                answer = wave.lane.backend.run(batch)
            # By the device's own time: beside other runners a batch waits its turn, too.
            self._learn(shares, answer.device, answer.seconds or self._clock() - started)
            _distribute(wave, rows, shares, answer)
        except BaseException as exc:  # noqa: BLE001 - the other batches of the wave may still go well
            fail_all(jobs, exc)

    def _collate(self, wave: _Wave, rows: IntArray, jobs: list[Job[Any]]) -> AbstractContextManager[Batch]:
        deadlines = [job.deadline for job in jobs if job.deadline is not None]
        return collate(
            wave.tokens,
            rows,
            self._pool,
            model=wave.lane.model,
            task=wave.lane.task,
            shared_ids=wave.shared_ids,
            due=min(deadlines, default=None),
            deadline=max(deadlines) if len(deadlines) == len(jobs) else None,
            priority=jobs[0].priority,
        )

    def _learn(self, shares: list[_Share], device: str, seconds: float) -> None:
        """Note what a batch cost, and that its rows need not be waited for any more."""
        with self._changed:
            weight = sum(
                share.job.ticket.run(share.count) for share in shares if share.job.ticket is not None
            )
            load = _load(shares[0].job)
            self._admission.left(load, weight)
            self._admission.learn(load, device, weight, seconds, self._clock())


def on_runner_thread() -> bool:
    """Whether the present thread runs batches, so that waiting for one here might be for ever."""
    return threading.current_thread().name.startswith(_RUNNER)


def _load(job: Job[Any]) -> Load:
    lane = job.lane
    return Load(urgency(job), lane.model, lane.task, lane.budget_now() * CHARACTERS_PER_TOKEN)


def _encode(slices: list[Slice]) -> _Wave:
    lane = slices[0].job.lane
    sizes = [part.stop - part.start for part in slices]
    tokens = lane.encode([item for part in slices for item in part.items])
    shared_ids = None if lane.shared is None else lane.shared()
    first, before = 0, len(shared_ids) if shared_ids is not None and lane.task == "score" else 0
    for part, size in zip(slices, sizes, strict=True):
        part.job.note_tokens(part, tokens, first, shared=before)
        first += size
    return _Wave(
        lane=lane,
        jobs=tuple(part.job for part in slices),
        owners=np.repeat(np.arange(len(slices)), sizes),
        positions=np.concatenate([np.arange(part.start, part.stop) for part in slices]),
        tokens=tokens,
        shared_ids=shared_ids,
    )


def _shares(wave: _Wave, rows: IntArray) -> list[_Share]:
    """Who has which rows of a batch."""
    if len(wave.jobs) == 1:
        return [_Share(wave.jobs[0], slice(None), rows.size)]
    owners = wave.owners[rows]
    masks = ((wave.jobs[owner], owners == owner) for owner in np.unique(owners))
    return [_Share(job, mine, int(np.count_nonzero(mine))) for job, mine in masks]


def _distribute(wave: _Wave, rows: IntArray, shares: list[_Share], answer: Vectors) -> None:
    """Hand each job its rows of a batch."""
    if answer.values.shape[:-1] != rows.shape:
        raise DeviceFailed(f"{answer.device} answered {rows.size} rows with values {answer.values.shape}")
    if answer.tokens is not None:
        _distribute_tokens(wave, rows, answer.tokens)
    for share in shares:
        share.job.add(wave.positions[rows[share.mine]], answer.values[share.mine], answer)


def _distribute_tokens(wave: _Wave, rows: IntArray, tokens: FloatArray) -> None:
    """Hand each job what was said of its rows' tokens, which stand row after row.

    Copies, for a row that is kept must not keep its whole batch.
    """
    ends = np.cumsum(wave.tokens.lengths[rows])
    for row, end in zip(rows.tolist(), ends.tolist(), strict=True):
        ids = wave.tokens.row(row)
        said = TokenRow(ids.copy(), tokens[end - len(ids) : end].copy())
        wave.jobs[wave.owners[row]].add_tokens(int(wave.positions[row]), said)
