"""Brings devices back: proves them with canaries, in the background, before users' work goes there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from resilient_ai._resilience.breaker import Rejection, State
from resilient_ai._resilience.failures import Failure, FailureClass
from resilient_ai._resilience.waiting import LaneBusy, never
from resilient_ai._serving.canary import agreement
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.patience import CanaryPatience
from resilient_ai._serving.threads import start_thread
from resilient_ai._serving.tier import GuardedDevice
from resilient_ai._serving.validation import CorruptAnswer, check_answer
from resilient_ai._serving.verifier import Verifier
from resilient_ai._telemetry.events import AgreementMeasured, Probed
from resilient_ai._telemetry.log import log
from resilient_ai.values import Batch, FloatArray

__all__ = ["Prober"]


class Prober:
    """Proves a manager's guarded devices against its last one, the reference. Thread-safe.

    A device is proved before it first serves and each time its breaker lets a probe in: right
    answers to a small and to a maximal batch, from the device asked for, within the limit of first
    runs, agreeing with the reference to at least `limit`. Meanwhile the reference itself is
    exercised now and then, so that failing over is never its first use.
    """

    def __init__(
        self,
        manager: FallbackManager,
        canaries: Sequence[Batch],
        *,
        limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._canaries = tuple(canaries)
        self._limit = limit
        self._clock = clock
        self._expected: list[FloatArray] = []
        self._canary_limits = CanaryPatience(manager.policy)
        self._news = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._reference_due = clock() + manager.policy.probe_interval
        for device in manager.guarded:
            device.breaker.subscribe(lambda _: self._news.set())

    def start(self) -> None:
        """Prove every device now, on this thread, and then keep watch on a thread of its own."""
        for device in self._manager.guarded:
            failure = self._examine(device)
            if failure is not None:
                device.trip(failure)
        self._thread = start_thread(self._watch, "resilient-ai-prober")

    def close(self, timeout: float = 1.0) -> None:
        """Stop watching; a probe under way is waited for, but no longer than `timeout` seconds."""
        self._closed = True
        self._news.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def probe_due(self) -> float:
        """Probe what is due; return the seconds until something is due again."""
        waits = [self._attend(device) for device in self._manager.guarded]
        now = self._clock()
        if now >= self._reference_due:
            self._exercise_reference()
            self._reference_due = now + self._manager.policy.probe_interval
        return min([*waits, self._reference_due - now])

    def _attend(self, device: GuardedDevice) -> float:
        """Probe a device whose breaker lets a probe in; return the seconds until it may be due."""
        if device.breaker.state not in {State.OPEN, State.HALF_OPEN}:
            return self._manager.policy.probe_interval
        permit = device.breaker.try_acquire()
        if isinstance(permit, Rejection):
            # Half open, and yet no place: somebody is about to give the probe back, untold.
            return (permit.retry_after if permit.state is State.OPEN else None) or _SOON
        with permit:
            failure = self._examine(device)
            if failure is None:
                device.return_to_service(permit)
            elif not self._closed:  # or closing it is what it failed with
                permit.failure()
                device.trip(failure, permit.generation)
        return _SOON

    def _examine(self, device: GuardedDevice) -> Failure | None:
        """Run the canaries; None when every answer is right."""
        started = self._clock()
        failure = self._failure_of_reference() or self._failure_of(device)
        if self._closed:
            return failure
        elapsed = (self._clock() - started) * 1000
        reason = "" if failure is None else f"{failure.failure_class.value}: {failure.text}"
        self._manager.events.emit(Probed(device.name, failure is None, reason, elapsed))
        return failure

    def _failure_of_reference(self) -> Failure | None:
        """Why there is nothing to compare with, if so: the device is not to blame, but stays unproved."""
        try:
            self._right_answers()
        except Exception as exc:  # noqa: BLE001 - told, and tried again with the next probe
            name = self._manager.reference.device
            return Failure(FailureClass.UNKNOWN, f"{name}, the reference, failed with the canaries: {exc}")
        return None

    def _failure_of(self, device: GuardedDevice) -> Failure | None:
        try:
            self._compare(device)
        except LaneBusy as exc:
            failure = Failure(FailureClass.HANG, str(exc))
        except Exception as exc:  # noqa: BLE001 - whatever a device raises is its verdict
            failure = self._manager.classify(exc)
        else:
            return None
        if failure.failure_class is FailureClass.HANG:
            self._canary_limits.hung(device.name)
        return failure

    def _compare(self, device: GuardedDevice) -> None:
        agreements, seconds = [], []
        patience = _PATIENCE * self._manager.policy.gpu_timeout
        device.lane.prepare()
        for number, (canary, expected) in enumerate(zip(self._canaries, self._right_answers(), strict=True)):
            hang_after = self._canary_limits.of(device.name, number)
            answer = device.lane.run_within(canary, patience=patience, hang_after=hang_after, leave_if=never)
            check_answer(canary, answer, device.name)
            seconds.append(answer.seconds)
            agreements.append(agreement(canary.task, answer.values[: len(expected)], expected))
        measured = float(np.min(agreements))  # NaN stays NaN, and is not enough
        device.agreement = measured
        self._manager.events.emit(AgreementMeasured(device.name, measured, self._limit))
        if not measured >= self._limit:
            raise CorruptAnswer(
                f"agreement with {self._manager.reference.device} is {measured:.6f}, below {self._limit}: "
                "its vectors cannot be compared with those already served"
            )
        self._canary_limits.passed(device.name, seconds)
        device.dimension = self._dimension()
        if device.verifier is None:
            device.verifier = self._verifier()

    def _dimension(self) -> int | None:
        """The length of the model's vectors; None for scores."""
        is_embedder = self._canaries[0].task in {"embed", "pool"}
        return self._right_answers()[0].shape[1] if is_embedder else None

    def _verifier(self) -> Verifier:
        """What rides along in users' batches: the first row of the small canary."""
        canary, expected = self._canaries[0], self._right_answers()[0]
        ids = canary.input_ids[0, : canary.lengths[0]]
        # An L2-normalised vector and the same before normalisation differ in length only, which
        # the cosine does not see.
        tasks = ("embed", "pool", "multi") if canary.task == "embed" else (canary.task,)
        beginning = next((each.shared_ids for each in self._canaries if each.shared_ids is not None), ids[:0])
        assert np.array_equal(beginning, ids[: len(beginning)]), "the canaries have no pair in common"
        return Verifier(
            ids,
            dict.fromkeys(tasks, expected[:1]),
            limit=self._limit,
            mode=self._manager.policy.verify,
            shared=len(beginning),
        )

    def _right_answers(self) -> list[FloatArray]:
        if not self._expected:
            self._expected = [self._answer_of_reference(_compared(each)) for each in self._canaries]
        return self._expected

    def _answer_of_reference(self, canary: Batch) -> FloatArray:
        reference = self._manager.reference
        answer = reference.run(canary)
        check_answer(canary, answer, reference.device)
        return answer.values

    def _exercise_reference(self) -> None:
        """Run the small canary on the reference and look whether it still gives its own answer."""
        try:
            self._compare_reference()
        except Exception as exc:  # noqa: BLE001 - told, and tried again next time
            log.error(
                "the last device failed its canary", device=self._manager.reference.device, error=repr(exc)
            )

    def _compare_reference(self) -> None:
        before = self._right_answers()[0]
        canary = _compared(self._canaries[0])
        measured = agreement(canary.task, self._answer_of_reference(canary), before)
        if not measured >= self._limit:
            raise CorruptAnswer(f"agreement with its own first answer is {measured:.6f}, below {self._limit}")

    def _watch(self) -> None:
        while True:
            self._news.clear()
            # After the clearing, or a `close` between the two would be missed.
            if self._closed:
                return
            self._news.wait(self._probe_or_tell())

    def _probe_or_tell(self) -> float:
        try:
            return self.probe_due()
        except BaseException as exc:  # noqa: BLE001 - a backend may raise anything, and watch must go on
            log.error("a probe ended in an unusual way; it is tried again", error=repr(exc))
            return _LATER


def _compared(canary: Batch) -> Batch:
    """The rows of a canary whose right answers are worth the reference's time: all of a small one."""
    rows = max(1, _COMPARED // canary.input_ids.shape[1])
    if rows >= canary.rows:
        return canary
    types = canary.type_ids
    return replace(
        canary,
        input_ids=canary.input_ids[:rows],
        attention_mask=canary.attention_mask[:rows],
        lengths=canary.lengths[:rows],
        type_ids=None if types is None else types[:rows],
    )


_COMPARED = 512
"""Tokens. The largest batch of a GPU may take a CPU minutes, and one of its rows tells as much."""

_PATIENCE = 1.5
"""How often the limit of a first run may pass until the lane has come to the canary and is done."""

_LATER = 1.0
_SOON = 0.05
"""How long to wait where the breaker does not say: the lease of another probe, a state in between."""
