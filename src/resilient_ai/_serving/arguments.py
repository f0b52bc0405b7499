"""Checks what callers hand in, before anything else sees it: their errors stay theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, get_args

from resilient_ai._models.cards import InputType
from resilient_ai._serving.jobs import Progress
from resilient_ai.errors import InvalidInput
from resilient_ai.values import Priority

__all__ = [
    "check_count",
    "check_dimensions",
    "check_input_type",
    "check_instruction",
    "check_priority",
    "check_progress",
    "check_stream",
    "check_text",
    "check_texts",
    "check_timeout",
    "check_top_k",
]


def check_texts(texts: Iterable[str], *, what: str = "texts") -> Sequence[str]:
    """Return the texts as a tuple, which nobody can change any more; name the first that is no `str`."""
    if isinstance(texts, (str, bytes, bytearray)):
        kind = type(texts).__name__
        raise InvalidInput(f"{what} must be a list of strings, not one {kind}; write [{what[:-1]}]")
    try:
        source = iter(texts)
    except TypeError as exc:
        raise InvalidInput(f"{what} must be a list of strings, not {type(texts).__name__}") from exc
    found = tuple(source)
    if set(map(type, found)) <= {str}:
        return found
    for index, text in enumerate(found):
        check_text(text, what=f"{what}[{index}]")
    return found


def check_text(text: Any, *, what: str = "text") -> str:
    if isinstance(text, str):
        return text
    remedy = (
        "decode it first, e.g. with .decode('utf-8')"
        if isinstance(text, (bytes, bytearray))
        else "leave it out"
    )
    raise InvalidInput(f"{what} is {type(text).__name__}, not a string; {remedy}")


def check_stream(texts: Any) -> Iterator[str]:
    """An iterator over what should be texts; each is checked when its chunk is."""
    if isinstance(texts, (str, bytes, bytearray)) or not isinstance(texts, Iterable):
        raise InvalidInput(f"texts must be an iterable of strings, not {type(texts).__name__}")
    return iter(texts)


def check_count(count: Any, *, what: str, most: int | None = None) -> int:
    """A whole number from 1 to `most`; numpy's integers are whole numbers too."""
    known = count.__index__() if hasattr(count, "__index__") and not isinstance(count, bool) else 0
    if known < 1 or (most is not None and known > most):
        bounds = "of at least 1" if most is None else f"from 1 to {most}"
        raise InvalidInput(f"{what} must be a whole number {bounds}, not {count!r}")
    return int(known)


def check_timeout(timeout: Any, default: float | None) -> float | None:
    """Seconds for the whole call; `default` where the caller names none."""
    if timeout is None:
        return default
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not timeout > 0  # so that NaN is refused as well
    ):
        raise InvalidInput(f"timeout must be a positive number of seconds or None, not {timeout!r}")
    return None if timeout > threading.TIMEOUT_MAX else float(timeout)


def check_priority(priority: Any) -> Priority:
    if priority not in get_args(Priority):
        raise InvalidInput(f"priority must be 'interactive' or 'bulk', not {priority!r}")
    return cast("Priority", priority)


def check_input_type(input_type: Any) -> InputType:
    if input_type not in get_args(InputType):
        raise InvalidInput(f"input_type must be 'query' or 'document', not {input_type!r}")
    return cast("InputType", input_type)


def check_instruction(instruction: Any) -> str | None:
    return None if instruction is None else check_text(instruction, what="instruction")


def check_top_k(top_k: Any) -> int | None:
    """How many documents to keep; None keeps all."""
    return None if top_k is None else check_count(top_k, what="top_k")


def check_dimensions(dimensions: Any, most: int) -> int:
    """How many leading dimensions to keep; all of them by default."""
    return most if dimensions is None else check_count(dimensions, what="dimensions", most=most)


def check_progress(progress: Any) -> Progress | None:
    if progress is not None and not callable(progress):
        raise InvalidInput(f"progress must be a function of (done, total) or None, not {progress!r}")
    return cast("Progress | None", progress)
