"""All that is tried on one device before a batch is given to the next: again, and in pieces."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress

from resilient_ai._resilience.failures import Failure
from resilient_ai._resilience.waiting import LaneBusy
from resilient_ai._serving.pieces import halve, join
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.retries import RetryBudget
from resilient_ai._serving.stats import Ledger
from resilient_ai._serving.tier import GuardedDevice
from resilient_ai._telemetry.events import BatchSplit, EventBus
from resilient_ai.values import Batch, Vectors

__all__ = ["Attempts"]

_FIRST_RETRY_WAIT, _LONGEST_RETRY_WAIT = 0.02, 0.5


class Attempts:
    """Runs batches on a guarded device as often, and in as many pieces, as its failures suggest.

    One budget of retries for all devices. Thread-safe.
    """

    def __init__(
        self,
        policy: FallbackPolicy,
        classify: Callable[[BaseException], Failure],
        *,
        ledger: Ledger,
        events: EventBus,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._policy = policy
        self._classify = classify
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._sleep = sleep
        self._retries = RetryBudget(policy.retry_share)

    def run(self, device: GuardedDevice, batch: Batch, give_up: float) -> Vectors:
        """Run a batch, and again where the failure may pass, until the instant `give_up`.

        A retry that finds no time any more ends with the failure it was made for: that one counts.
        """
        self._retries.earn()
        try:
            return self._run_fitting(device, batch, give_up)
        except BaseException as exc:
            if not (self._may_pass(exc) and self._may_retry(give_up)):
                raise
            failure = exc
        self._sleep(random.uniform(0, _FIRST_RETRY_WAIT))  # noqa: S311 - spreads retries, keeps no secret
        # tenacity costs more than a short batch's whole protection, so only retries see it, its import too.
        from tenacity import Retrying, retry_if_exception, wait_random_exponential  # noqa: PLC0415

        most = self._policy.max_retries
        again = Retrying(
            stop=lambda state: state.attempt_number >= most or not self._may_retry(give_up),
            wait=wait_random_exponential(multiplier=_FIRST_RETRY_WAIT, max=_LONGEST_RETRY_WAIT),
            retry=retry_if_exception(self._may_pass),
            sleep=self._sleep,
            reraise=True,
        )
        with suppress(LaneBusy):
            return again(self._repeat, device, batch, give_up)
        raise failure

    def _repeat(self, device: GuardedDevice, batch: Batch, give_up: float) -> Vectors:
        self._ledger.count("retries")
        return self._run_fitting(device, batch, give_up)

    def _may_pass(self, error: BaseException) -> bool:
        return not isinstance(error, LaneBusy) and self._classify(error).verdict.retry_same_device

    def _may_retry(self, give_up: float) -> bool:
        """Whether one more try is wanted, in time and within the budget; takes it from there."""
        wanted = self._policy.auto_retry and self._policy.max_retries > 0
        return wanted and self._clock() < give_up and self._retries.spend()

    def _run_fitting(self, device: GuardedDevice, batch: Batch, give_up: float) -> Vectors:
        """Run a batch in as many pieces as fit the device's memory."""
        size = int(batch.input_ids.size)
        if size > device.ceiling.tokens and batch.rows > 1:
            return self._run_halves(device, batch, give_up)
        try:
            return device.run(batch, give_up - self._clock())
        except BaseException as exc:
            if not self._classify(exc).verdict.split:
                raise
            if batch.rows == 1 and not device.fits_better_apart(batch):
                raise
            if batch.rows == 1:
                return device.run_apart(batch, give_up - self._clock())
        ceiling = device.ceiling.lower(size)
        self._ledger.count("splits")
        self._events.emit(BatchSplit(device.name, size, ceiling))
        return self._run_halves(device, batch, give_up)

    def _run_halves(self, device: GuardedDevice, batch: Batch, give_up: float) -> Vectors:
        return join([self._run_fitting(device, half, give_up) for half in halve(batch)])
