"""Every error this library raises, drawn once.

::

    ResilientAIError
    ├── InvalidInput (ValueError)         caller    the arguments are wrong
    ├── DeadlineExceeded (TimeoutError)   service   the call's own deadline passed
    ├── Overloaded                        service   no room now; try again after `retry_after`
    ├── ServiceClosed                     caller    the service was closed
    ├── ConfigurationError (ValueError)   caller    settings, card or installation are wrong
    ├── ModelNotFound (LookupError)       model     unknown name, or files that are nowhere to be had
    ├── ModelCorrupt                      model     files that are there but are not what they should be
    ├── DeviceUnavailable                 device    the device cannot be used at all
    ├── DeviceFailed                      device    the device failed while it ran
    └── AllBackendsFailed                 device    every device failed; `causes` has each reason

Each class answers three questions a program can branch on: `code` (stable, for machines),
`retryable` (may the same call succeed later, unchanged?) and `whose` (who has to act).
Messages are for people: what happened, and what to do next.
"""

from __future__ import annotations

from typing import ClassVar, Literal

__all__ = [
    "AllBackendsFailed",
    "ConfigurationError",
    "DeadlineExceeded",
    "DeviceFailed",
    "DeviceUnavailable",
    "InvalidInput",
    "ModelCorrupt",
    "ModelNotFound",
    "Overloaded",
    "ResilientAIError",
    "ServiceClosed",
    "Whose",
]

Whose = Literal["caller", "device", "service", "model"]


class ResilientAIError(Exception):
    """Base of every error raised on purpose by this library."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    whose: ClassVar[Whose] = "service"


class InvalidInput(ResilientAIError, ValueError):
    """Raised when an argument is wrong; no device has seen it and none is blamed."""

    code = "invalid_input"
    whose = "caller"


class DeadlineExceeded(ResilientAIError, TimeoutError):
    """Raised when a call's own deadline passed before its answer was there."""

    code = "deadline_exceeded"
    retryable = True


class Overloaded(ResilientAIError):
    """Raised at once, instead of queueing, when there is no room for the call.

    `retry_after` is the estimated number of seconds until there is room.
    """

    code = "overloaded"
    retryable = True

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceClosed(ResilientAIError):
    """Raised when the service was closed before, or while, the call ran."""

    code = "service_closed"
    whose = "caller"


class ConfigurationError(ResilientAIError, ValueError):
    """Raised when settings, a model card or the installation cannot work as they stand."""

    code = "configuration"
    whose = "caller"


class ModelNotFound(ResilientAIError, LookupError):
    """Raised when a model's name is unknown or its files cannot be had from any source."""

    code = "model_not_found"
    whose = "model"


class ModelCorrupt(ResilientAIError):
    """Raised when a model's files are there but are not what they should be."""

    code = "model_corrupt"
    whose = "model"


class DeviceUnavailable(ResilientAIError):
    """Raised when a device cannot be used at all: absent, not installed, or shut out."""

    code = "device_unavailable"
    retryable = True
    whose = "device"


class DeviceFailed(ResilientAIError):
    """Raised when a device failed while it ran a batch.

    The text of the device's own error is kept in the message and as `__cause__`.
    """

    code = "device_failed"
    retryable = True
    whose = "device"


class AllBackendsFailed(ResilientAIError):
    """Raised when every device that may serve the call has failed.

    `causes` holds one error per device, in the order they were tried.
    """

    code = "all_backends_failed"
    retryable = True
    whose = "device"

    def __init__(self, message: str, causes: tuple[BaseException, ...] = ()) -> None:
        super().__init__(message)
        self.causes = causes
