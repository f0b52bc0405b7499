"""What can go wrong on purpose: one frozen value per kind of fault; those of processes are beside.

They are data: `fault_plan` says when, `faults` decides, `fault_effects` and, for what only a process
of its own can suffer, the worker make them happen. A worker reads them, and may lack pydantic: this
module does without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from resilient_ai import errors
from resilient_ai._resilience.fault_values import (
    FaultKind,
    PlanValue,
    require,
    require_positive,
    require_rows,
)
from resilient_ai._resilience.process_faults import (
    BrokenAnswer,
    Crash,
    DieInPhase,
    HoldGil,
    Leak,
    Noise,
    StartFault,
    StartSlowly,
)
from resilient_ai.errors import ConfigurationError

__all__ = [
    "ERROR_CLASSES",
    "BrokenAnswer",
    "ConstantRows",
    "Crash",
    "DieInPhase",
    "Fault",
    "FaultKind",
    "Hang",
    "HoldGil",
    "Inf",
    "Leak",
    "Nan",
    "NoFault",
    "Noise",
    "OutOfMemory",
    "PlanValue",
    "RaiseError",
    "SilentCpu",
    "Slow",
    "StartFault",
    "StartSlowly",
    "WrongNorm",
    "WrongShape",
    "WrongValues",
    "ZeroRows",
    "fault_from_meta",
    "fault_meta",
    "require",
]


class InjectedError(Exception):
    """Stands in for the errors of ONNX Runtime, which derive from `Exception` as well."""


_STAND_INS: Final = ("Fail", "RuntimeException", "EPFail", "InvalidArgument", "InvalidProtobuf", "NoSuchFile")

ERROR_CLASSES: Final[dict[str, type[BaseException]]] = {
    **{name: type(name, (InjectedError,), {}) for name in _STAND_INS},
    **{
        cls.__name__: cls
        for cls in (
            Exception,
            RuntimeError,
            ValueError,
            TypeError,
            OSError,
            MemoryError,
            BrokenPipeError,
            EOFError,
            TimeoutError,
            KeyboardInterrupt,
        )
    },
    **{name: getattr(errors, name) for name in errors.__all__ if name not in ("ResilientAIError", "Whose")},
}
"""The errors that a plan may raise, by name. A closed list: a plan is data and imports nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseError(FaultKind):
    """The device raises an error with this text; `error` is a name from `ERROR_CLASSES`."""

    text: str = "injected failure of the device"
    error: str = "RuntimeError"
    kind: Literal["raise"] = "raise"

    def __post_init__(self) -> None:
        require(
            self.error in ERROR_CLASSES, "error", self.error, f"one of {', '.join(sorted(ERROR_CLASSES))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory(FaultKind):
    """Batches of more than `above_rows` rows do not fit; smaller ones are left alone."""

    above_rows: int = 0
    kind: Literal["oom"] = "oom"

    def __post_init__(self) -> None:
        require(self.above_rows >= 0, "above_rows", self.above_rows, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(FaultKind):
    """The device does not answer until it is released, or `max_seconds` have passed; then it does."""

    max_seconds: float = 60.0
    kind: Literal["hang"] = "hang"

    def __post_init__(self) -> None:
        require_positive("max_seconds", self.max_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(FaultKind):
    """The device takes `seconds` longer, and then `factor` times what it took."""

    seconds: float = 0.0
    factor: float = 1.0
    kind: Literal["slow"] = "slow"

    def __post_init__(self) -> None:
        require(0 <= self.seconds < math.inf, "seconds", self.seconds, "0 or more")
        require(1 <= self.factor < math.inf, "factor", self.factor, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nan(FaultKind):
    """The first `rows` rows are NaN; None means all."""

    rows: int | None = None
    kind: Literal["nan"] = "nan"

    def __post_init__(self) -> None:
        require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inf(FaultKind):
    """The first `rows` rows are infinite; None means all."""

    rows: int | None = None
    kind: Literal["inf"] = "inf"

    def __post_init__(self) -> None:
        require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRows(FaultKind):
    """The first `rows` rows are zero; None means all."""

    rows: int | None = None
    kind: Literal["zero_rows"] = "zero_rows"

    def __post_init__(self) -> None:
        require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantRows(FaultKind):
    """Every row is the first one."""

    kind: Literal["constant_rows"] = "constant_rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongShape(FaultKind):
    """The last row, or the last column, is missing."""

    axis: Literal["rows", "dimension"] = "rows"
    kind: Literal["wrong_shape"] = "wrong_shape"

    def __post_init__(self) -> None:
        require(self.axis in ("rows", "dimension"), "axis", self.axis, "'rows' or 'dimension'")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongValues(FaultKind):
    """The numbers are finite, of the right norm, and wrong: only a known answer finds it out.

    "rotated" moves each value one place on; "perturbed" adds seeded noise of `scale` times the
    row's norm. A row of one value (a score) has no places and no norm to keep: it is negated, or
    noise is added to it. Without a `seed` each call gets one of its own, by the seed of the plan.
    """

    how: Literal["rotated", "perturbed"] = "rotated"
    scale: float = 0.5
    seed: int | None = None
    kind: Literal["wrong_values"] = "wrong_values"

    def __post_init__(self) -> None:
        require(self.how in ("rotated", "perturbed"), "how", self.how, "'rotated' or 'perturbed'")
        require_positive("scale", self.scale)
        require(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongNorm(FaultKind):
    """Every row is `scale` times what it should be."""

    scale: float = 2.0
    kind: Literal["wrong_norm"] = "wrong_norm"

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentCpu(FaultKind):
    """The answer is right, but the CPU gave it."""

    kind: Literal["silent_cpu"] = "silent_cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFault(FaultKind):
    """Nothing goes wrong; shields calls from the rules that follow."""

    kind: Literal["none"] = "none"


Fault = (
    RaiseError
    | OutOfMemory
    | Hang
    | Slow
    | Nan
    | Inf
    | ZeroRows
    | ConstantRows
    | WrongShape
    | WrongValues
    | WrongNorm
    | SilentCpu
    | NoFault
    | Crash
    | HoldGil
    | BrokenAnswer
    | Noise
    | Leak
    | StartSlowly
    | DieInPhase
)

_KINDS: Final[dict[str, type[Fault]]] = {cls().kind: cls for cls in get_args(Fault)}


def fault_meta(fault: Fault) -> dict[str, Any]:
    """A fault as an object of JSON, for a worker; `fault_from_meta` reads it back as its equal."""
    return {item.name: getattr(fault, item.name) for item in fields(fault)}


def fault_from_meta(meta: Mapping[str, Any]) -> Fault:
    """Read what `fault_meta` wrote.

    Raises:
        ConfigurationError: The kind or a field is unknown, or a value makes no sense.
    """
    kind = meta.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigurationError(f"There is no fault of the kind {kind!r}: {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](**meta)
    except TypeError as exc:
        raise ConfigurationError(f"A fault of the kind {kind!r} cannot be read from {meta}: {exc}.") from exc
