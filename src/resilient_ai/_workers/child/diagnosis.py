"""What an error means for the process it happened in: whether the device's context is still alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from resilient_ai._resilience.failures import Classifier
from resilient_ai.errors import DeviceFailed

__all__ = ["Canary", "Diagnosis", "Examiner"]

Canary = Callable[[], object]
"""Runs something tiny on the device; raises when that fails."""

_CANARY_LIMIT: Final = 5.0
_LONGEST_QUOTE: Final = 1000


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The error to answer with, and whether the process has to end."""

    error: BaseException
    fatal: bool


class Examiner:
    """Tells harmless errors from those after which nothing works in this process. Thread-safe.

    An out-of-memory may be a dead context in disguise, and an unknown error may be anything: after
    those the context is probed, and then used for something tiny.

    Args:
        context_fault: Tells what is wrong with the device's context, None if nothing is.
        card_total_bytes: The memory of the card, if there is one: nobody can want as much at once.
        limit: Seconds for the tiny run.
    """

    def __init__(
        self,
        context_fault: Callable[[], str | None] = lambda: None,
        *,
        card_total_bytes: int | None = None,
        limit: float = _CANARY_LIMIT,
    ) -> None:
        self._classifier = Classifier()
        self._context_fault = context_fault
        self._card_total_bytes = card_total_bytes
        self._limit = limit

    def examine(self, error: BaseException, canary: Canary | None = None) -> Diagnosis:
        """Say what an error means; may take as long as both probes may. Without a session no canary."""
        verdict = self._classifier.classify(error, card_total_bytes=self._card_total_bytes).verdict
        if not verdict.probe_first:
            return Diagnosis(error, fatal=verdict.replace_worker)
        fault = self._context_fault()
        if fault is None and canary is not None:
            fault = _canary_fault(canary, self._limit)
        if fault is None:
            return Diagnosis(error, fatal=verdict.replace_worker)
        return Diagnosis(_poisoned(error, fault), fatal=True)


def _canary_fault(canary: Canary, limit: float) -> str | None:
    """What went wrong with a run that cannot go wrong on a healthy device."""
    outcome: list[str | None] = []

    def run() -> None:
        try:
            canary()
        except BaseException as exc:  # noqa: BLE001 - whatever it was, it is the answer
            outcome.append(_quote(exc))
        else:
            outcome.append(None)

    # It cannot be stopped if it hangs; then the process ends with it.
    thread = threading.Thread(target=run, name="canary", daemon=True)
    thread.start()
    thread.join(limit)
    return outcome[0] if outcome else f"a tiny run gave no answer in {limit:g} s"


def _poisoned(error: BaseException, fault: str) -> DeviceFailed:
    """In words that the patterns of failures know."""
    poisoned = DeviceFailed(
        f"poisoned: the context probe after {_quote(error)} failed: {fault[:_LONGEST_QUOTE]}; "
        "the process must be terminated and relaunched"
    )
    poisoned.__cause__ = error
    return poisoned


def _quote(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_QUOTE]
