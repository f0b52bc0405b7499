"""Foreign errors as the library's own, with who is to blame and what can be done."""

from __future__ import annotations

from resilient_ai._resilience.failures import Failure, FailureClass
from resilient_ai.errors import DeviceFailed, InvalidInput, ModelCorrupt, ResilientAIError

__all__ = ["as_device_error", "as_own_error"]


def as_own_error(error: BaseException, failure: Failure) -> BaseException:
    """What is not the device's doing, as an error that says whose it is; one's own stay as they are."""
    kinds = {FailureClass.CALLER: InvalidInput, FailureClass.MODEL: ModelCorrupt}
    kind = kinds.get(failure.failure_class)
    # A device may have been told to fail with what reads like a caller's fault; the text decides.
    is_settled = isinstance(error, ResilientAIError) and error.whose != "device"
    if is_settled or kind is None:
        return error
    own = kind(failure.text)
    own.__cause__ = error
    return own


def as_device_error(error: BaseException, failure: Failure) -> ResilientAIError:
    """The error as the library's own, with the hint, keeping the device's text and traceback."""
    text = f"{failure.text} ({failure.hint})" if failure.hint else failure.text
    own = DeviceFailed(f"{failure.failure_class.value}: {text}")
    own.__cause__ = error
    return own
