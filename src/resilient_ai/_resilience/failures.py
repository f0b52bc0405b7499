"""What an error from a device means, and what follows from it.

Errors are told apart by their text. The class says little: the same out-of-memory is three
different classes, depending on the version of ONNX Runtime and on how it was called. The texts
are data (`failures.toml`); what follows from each class of failure is in `verdicts`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import ClassVar, Final

from resilient_ai._resilience.verdicts import GRAVITY, VERDICTS, FailureClass, Verdict
from resilient_ai.errors import (
    AllBackendsFailed,
    ConfigurationError,
    DeviceFailed,
    DeviceUnavailable,
    ResilientAIError,
)

__all__ = [
    "VERDICTS",
    "Classifier",
    "Diagnosed",
    "Failure",
    "FailureClass",
    "FailureDetails",
    "Pattern",
    "Verdict",
    "default_patterns",
]

# Only this much of each end of a text is looked at: causes stand at the start, stack tails at the end.
_EDGE = 4096
# Only so many errors of one chain or group are looked at.
_MAX_ERRORS = 64
# No card has so much memory: who asks for it computed a size from garbage.
_ABSURD_BYTES = 2**46
# Beyond this a "GPU=" in a text is an uninitialised integer, not a device.
_MAX_GPUS = 1024


# Where the text says nothing, the name of the class may. Names, because the classes of ONNX Runtime
# and torch cannot be imported here.
_BY_NAME: Final[Mapping[str, FailureClass]] = {
    "BrokenPipeError": FailureClass.WORKER_DIED,
    "ConnectionError": FailureClass.WORKER_DIED,
    "EOFError": FailureClass.WORKER_DIED,
    "TimeoutError": FailureClass.HANG,
    "MemoryError": FailureClass.OOM,
    "OutOfMemoryError": FailureClass.OOM,
    "EPFail": FailureClass.EP_BUILD,
    "ModelLoadCanceled": FailureClass.CANCELLED,
    "InvalidArgument": FailureClass.CALLER,
    "NoSuchFile": FailureClass.MODEL,
    "NoModel": FailureClass.MODEL,
    "InvalidProtobuf": FailureClass.MODEL,
    "InvalidGraph": FailureClass.MODEL,
    "NotImplemented": FailureClass.MODEL,
    "DeviceReset": FailureClass.DEVICE_RESET,
    "Overloaded": FailureClass.TRANSIENT,
}
_CANCELLATIONS: Final = frozenset({"KeyboardInterrupt", "SystemExit", "GeneratorExit", "CancelledError"})
_WHOSE: Final[Mapping[str, FailureClass]] = {"caller": FailureClass.CALLER, "model": FailureClass.MODEL}

# How an error of another process begins: its class did not come along.
_QUOTED_NAME: Final = re.compile(r"(\w{1,40}): ")
_CUDA_CODE: Final = re.compile(r"CUDA (?:failure|error) (\d{1,9})\b")
_GPU: Final = re.compile(r"GPU=(\d{1,9})\b")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of text: an error whose text `regex` finds is of `failure_class`.

    `hint` tells a person what to do; `{group}` in it is filled from the match. A group `bytes`
    is read as the size of the memory that was asked for. The regex should have no unbounded
    repeats: it is searched in up to 8 kB that anybody may have written.

    Raises:
        ConfigurationError: The regex does not compile, or the hint names a group it lacks.
    """

    name: str
    failure_class: FailureClass
    regex: str
    hint: str = ""
    _search: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(self.regex)
            fields = {name for _, name, _, _ in Formatter().parse(self.hint) if name is not None}
        except (re.error, ValueError) as exc:
            raise ConfigurationError(f"Failure pattern {self.name!r} is not valid: {exc}.") from exc
        if missing := sorted(fields - compiled.groupindex.keys()):
            raise ConfigurationError(
                f"The hint of failure pattern {self.name!r} names groups that its regex lacks: "
                f"{', '.join(missing)}."
            )
        object.__setattr__(self, "_search", compiled)

    def match(self, text: str) -> re.Match[str] | None:
        """Find the pattern in a text."""
        return self._search.search(text)

    def hint_for(self, match: re.Match[str]) -> str:
        """Fill the hint from a match; a group that took no part in it reads "(unknown)"."""
        return self.hint.format_map(match.groupdict(default="(unknown)")) if self.hint else ""


@cache
def default_patterns() -> tuple[Pattern, ...]:
    """The patterns of `failures.toml`, in order."""
    text = (files(__package__) / "failures.toml").read_text(encoding="utf-8")
    return tuple(
        Pattern(row["name"], FailureClass(row["class"]), row["regex"], row["hint"])
        for row in tomllib.loads(text)["pattern"]
    )


@dataclass(frozen=True, slots=True)
class FailureDetails:
    """What the text says beyond its class, None where it does not say.

    `requested_bytes` is the memory that was asked for, `cuda_code` the number of the CUDA
    runtime's error, `gpu` the device's index.
    """

    requested_bytes: int | None = None
    cuda_code: int | None = None
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One error, understood.

    `text` is the error's text, its middle left out when it is long; `hint` says what a person
    should do ("" when there is nothing); `pattern` names the pattern that told, None when the
    class of the error did or nothing.
    """

    failure_class: FailureClass
    text: str
    hint: str = ""
    pattern: str | None = None
    details: FailureDetails = FailureDetails()

    @property
    def verdict(self) -> Verdict:
        """What the failover layer does about it."""
        return VERDICTS[self.failure_class]


class Diagnosed(DeviceFailed):
    """Raised where it is known what kind of failure it is: its text only tells what to do about it."""

    failure_class: ClassVar[FailureClass] = FailureClass.UNKNOWN


class Classifier:
    """Tell what errors mean. Immutable after construction, so safe to share between threads.

    Args:
        patterns: What to look for, in order; None means `default_patterns()`.
        extra: More patterns, looked for before those.
        absurd_bytes: An out-of-memory for this size or more means that the size is garbage, so
            the device is taken for poisoned. None switches this off.
    """

    def __init__(
        self,
        patterns: Iterable[Pattern] | None = None,
        extra: Iterable[Pattern] = (),
        *,
        absurd_bytes: int | None = _ABSURD_BYTES,
    ) -> None:
        self._patterns = (*extra, *(default_patterns() if patterns is None else patterns))
        self._absurd_bytes = absurd_bytes

    def classify(self, error: BaseException, *, card_total_bytes: int | None = None) -> Failure:
        """Say what an error means; never raises, whatever the error is like.

        Looks from the error inwards through its causes until one is understood. Of a group the
        gravest member counts. `card_total_bytes` is the memory of the card, if known: asking for
        as much at once is absurd.
        """
        failure = self._inwards(error, card_total_bytes, set())
        if failure.failure_class is FailureClass.UNKNOWN and isinstance(error, DeviceUnavailable):
            # Only now: what stands behind a wrapper tells more than the wrapper.
            return Failure(FailureClass.ENVIRONMENT, failure.text)
        return failure

    def classify_text(self, text: str, *, card_total_bytes: int | None = None) -> Failure:
        """Say what a text means that is no exception: a log line, the last words of a process."""
        text = _excerpt(text)
        for pattern in self._patterns:
            if match := pattern.match(text):
                details = _details(text, match)
                absurd = self._is_absurd(details.requested_bytes, card_total_bytes)
                is_garbage = absurd and pattern.failure_class is FailureClass.OOM
                return Failure(
                    failure_class=FailureClass.POISONED if is_garbage else pattern.failure_class,
                    text=text,
                    hint=pattern.hint_for(match) if not is_garbage else _GARBAGE_HINT,
                    pattern=pattern.name,
                    details=details,
                )
        return Failure(FailureClass.UNKNOWN, text)

    def _inwards(self, error: BaseException, card: int | None, seen: set[int]) -> Failure:
        outermost = None
        current: BaseException | None = error
        while current is not None and id(current) not in seen and len(seen) < _MAX_ERRORS:
            seen.add(id(current))
            failure = self._gravest(current, card, seen)
            if failure.failure_class is not FailureClass.UNKNOWN:
                return failure
            outermost = outermost or failure
            current = _behind(current)
        return outermost or Failure(FailureClass.UNKNOWN, "")

    def _gravest(self, error: BaseException, card: int | None, seen: set[int]) -> Failure:
        """Judge one error, and if it is a group its members too."""
        own = self._alone(error, card)
        judged = [
            self._inwards(member, card, seen)
            for member in _members(error)
            if id(member) not in seen and len(seen) < _MAX_ERRORS
        ]
        if own.failure_class is not FailureClass.UNKNOWN or not judged:
            judged.append(own)
        return min(judged, key=lambda failure: GRAVITY[failure.failure_class])

    def _alone(self, error: BaseException, card: int | None) -> Failure:
        if isinstance(error, Diagnosed):
            told = self.classify_text(_text(error), card_total_bytes=card)
            known = error.failure_class
            return told if told.failure_class is known else Failure(known, told.text)
        names = {cls.__name__ for cls in type(error).__mro__}
        if promised := _by_promise(error, names):
            # The text of these may quote what a caller wrote, so it is not read.
            return Failure(promised, _excerpt(_text(error)))
        failure = self.classify_text(_text(error), card_total_bytes=card)
        if failure.failure_class is FailureClass.UNKNOWN:
            if quoted := _QUOTED_NAME.match(failure.text):
                names.add(quoted[1])
            for name in _BY_NAME.keys() & names:
                return Failure(_BY_NAME[name], failure.text)
        return failure

    def _is_absurd(self, requested: int | None, card: int | None) -> bool:
        limits = [limit for limit in (self._absurd_bytes, card) if limit is not None]
        return requested is not None and any(requested >= limit for limit in limits)


_GARBAGE_HINT: Final = (
    "The device asked for an impossible amount of memory: its state is garbage and its worker is replaced."
)


def _by_promise(error: BaseException, names: set[str]) -> FailureClass | None:
    """The class of an error whose type alone settles it."""
    if isinstance(error, ResilientAIError):
        return _WHOSE.get(error.whose)
    return FailureClass.CANCELLED if names & _CANCELLATIONS else None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  a foreign __str__ may do anything; the class still tells
        return ""


def _excerpt(text: str) -> str:
    if len(text) <= 2 * _EDGE:
        return text
    return f"{text[:_EDGE]}\n[...]\n{text[-_EDGE:]}"


def _details(text: str, match: re.Match[str]) -> FailureDetails:
    size = match.groupdict().get("bytes")
    code = _CUDA_CODE.search(text)
    gpu = _GPU.search(text)
    return FailureDetails(
        requested_bytes=int(size) if size else None,
        cuda_code=int(code[1]) if code else None,
        gpu=int(gpu[1]) if gpu and int(gpu[1]) < _MAX_GPUS else None,
    )


def _members(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
    elif isinstance(error, AllBackendsFailed):
        yield from error.causes


def _behind(error: BaseException) -> BaseException | None:
    """The error that stands behind another, as a traceback would show it."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__
