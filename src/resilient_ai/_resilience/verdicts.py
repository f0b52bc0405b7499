"""The classes of failure, and what the failover layer does about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

__all__ = ["GRAVITY", "VERDICTS", "FailureClass", "HealedBy", "Verdict"]


class FailureClass(StrEnum):
    """What kind of failure it was, the gravest first: of a group of errors the first one counts."""

    DEVICE_FAULT = "device_fault"
    MPS = "mps"
    ENVIRONMENT = "environment"
    POISONED = "poisoned"
    WORKER_DIED = "worker_died"
    HANG = "hang"
    DEVICE_RESET = "device_reset"
    CORRUPT = "corrupt"
    FORKED = "forked"
    SHUTDOWN = "shutdown"
    EP_BUILD = "ep_build"
    LIB_FAULT = "lib_fault"
    OOM = "oom"
    UNKNOWN = "unknown"
    TRANSIENT = "transient"
    MODEL = "model"
    CALLER = "caller"
    CANCELLED = "cancelled"


HealedBy = Literal["retry", "smaller_batch", "fresh_worker", "human"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the failover layer does about a class of failure.

    Attributes:
        healed_by: What brings the device back.
        counts: It counts against the device's breaker.
        opens_at_once: It opens the breaker without waiting for a second one.
        probe_first: The device's context has to be probed before anything else: the text may
            hide a dead one. A failed probe makes it POISONED.
        retry_same_device: The same batch may be run again on the same device.
        split: The batch should be run again in smaller pieces; it counts when one row is too large.
        replace_worker: The worker process cannot be used any more.
        fail_over: The next device may run the batch. False where it would only fail again.
    """

    healed_by: HealedBy
    counts: bool = False
    opens_at_once: bool = False
    probe_first: bool = False
    retry_same_device: bool = False
    split: bool = False
    replace_worker: bool = False
    fail_over: bool = True


_REPLACE: Final = Verdict(healed_by="fresh_worker", counts=True, opens_at_once=True, replace_worker=True)
_ILL: Final = Verdict(healed_by="human", counts=True, opens_at_once=True, replace_worker=True)
_NOT_THE_DEVICE: Final = Verdict(healed_by="human", fail_over=False)

VERDICTS: Final[Mapping[FailureClass, Verdict]] = MappingProxyType(
    {
        FailureClass.DEVICE_FAULT: _ILL,
        FailureClass.MPS: _ILL,
        FailureClass.ENVIRONMENT: Verdict(healed_by="human", counts=True, opens_at_once=True),
        FailureClass.POISONED: _REPLACE,
        FailureClass.WORKER_DIED: _REPLACE,
        FailureClass.HANG: _REPLACE,
        FailureClass.DEVICE_RESET: _REPLACE,
        FailureClass.CORRUPT: _REPLACE,
        FailureClass.FORKED: _REPLACE,
        FailureClass.SHUTDOWN: _REPLACE,  # while the service itself closes, nobody reads a verdict
        FailureClass.EP_BUILD: _REPLACE,  # by a worker that leaves the provider out
        FailureClass.LIB_FAULT: Verdict(
            healed_by="fresh_worker", counts=True, probe_first=True, replace_worker=True
        ),
        FailureClass.OOM: Verdict(healed_by="smaller_batch", probe_first=True, split=True),
        FailureClass.UNKNOWN: Verdict(
            healed_by="retry", counts=True, probe_first=True, retry_same_device=True
        ),
        FailureClass.TRANSIENT: Verdict(healed_by="retry", counts=True, retry_same_device=True),
        FailureClass.MODEL: _NOT_THE_DEVICE,
        FailureClass.CALLER: _NOT_THE_DEVICE,
        FailureClass.CANCELLED: Verdict(healed_by="retry", fail_over=False),
    }
)

GRAVITY: Final[Mapping[FailureClass, int]] = MappingProxyType(
    {failure_class: rank for rank, failure_class in enumerate(FailureClass)}
)
"""The rank of each class; the smaller, the graver."""
