"""What can go wrong on purpose: one frozen value per kind of fault.

They are data: `faults` makes them happen, `fault_plan` says when.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from resilient_ai import errors
from resilient_ai.errors import ConfigurationError

__all__ = [
    "ERROR_CLASSES",
    "ConstantRows",
    "Fault",
    "Hang",
    "Inf",
    "Nan",
    "NoFault",
    "OutOfMemory",
    "PlanValue",
    "RaiseError",
    "SilentCpu",
    "Slow",
    "WrongShape",
    "WrongValues",
    "ZeroRows",
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


def require(ok: bool, field: str, value: object, rule: str) -> None:  # noqa: FBT001  it reads as a sentence
    """Raise `ConfigurationError` that names the field unless `ok`."""
    if not ok:
        raise ConfigurationError(f"fault plan: {field}={value!r} must be {rule}")


class PlanValue:
    """Base of all that a plan is made of; a field it does not know is refused when it is parsed."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseError(PlanValue):
    """The device raises an error with this text; `error` is a name from `ERROR_CLASSES`."""

    text: str = "injected failure of the device"
    error: str = "RuntimeError"
    kind: Literal["raise"] = "raise"

    def __post_init__(self) -> None:
        require(
            self.error in ERROR_CLASSES, "error", self.error, f"one of {', '.join(sorted(ERROR_CLASSES))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory(PlanValue):
    """Batches of more than `above_rows` rows do not fit; smaller ones are left alone."""

    above_rows: int = 0
    kind: Literal["oom"] = "oom"

    def __post_init__(self) -> None:
        require(self.above_rows >= 0, "above_rows", self.above_rows, "0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(PlanValue):
    """The device does not answer until it is released, or `max_seconds` have passed; then it does."""

    max_seconds: float = 60.0
    kind: Literal["hang"] = "hang"

    def __post_init__(self) -> None:
        _require_positive("max_seconds", self.max_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(PlanValue):
    """The device takes `seconds` longer, and then `factor` times what it took."""

    seconds: float = 0.0
    factor: float = 1.0
    kind: Literal["slow"] = "slow"

    def __post_init__(self) -> None:
        require(0 <= self.seconds < math.inf, "seconds", self.seconds, "0 or more")
        require(1 <= self.factor < math.inf, "factor", self.factor, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nan(PlanValue):
    """The first `rows` rows are NaN; None means all."""

    rows: int | None = None
    kind: Literal["nan"] = "nan"

    def __post_init__(self) -> None:
        _require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inf(PlanValue):
    """The first `rows` rows are infinite; None means all."""

    rows: int | None = None
    kind: Literal["inf"] = "inf"

    def __post_init__(self) -> None:
        _require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRows(PlanValue):
    """The first `rows` rows are zero; None means all."""

    rows: int | None = None
    kind: Literal["zero_rows"] = "zero_rows"

    def __post_init__(self) -> None:
        _require_rows(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantRows(PlanValue):
    """Every row is the first one."""

    kind: Literal["constant_rows"] = "constant_rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongShape(PlanValue):
    """The last row, or the last column, is missing."""

    axis: Literal["rows", "dimension"] = "rows"
    kind: Literal["wrong_shape"] = "wrong_shape"

    def __post_init__(self) -> None:
        require(self.axis in ("rows", "dimension"), "axis", self.axis, "'rows' or 'dimension'")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongValues(PlanValue):
    """The numbers are finite, of the right norm, and wrong: only a known answer finds it out.

    "rotated" moves each value one place on; "perturbed" adds seeded noise of `scale` times the
    row's norm. A row of one value (a score) has no places and no norm to keep: it is negated, or
    noise is added to it.
    """

    how: Literal["rotated", "perturbed"] = "rotated"
    scale: float = 0.5
    kind: Literal["wrong_values"] = "wrong_values"

    def __post_init__(self) -> None:
        require(self.how in ("rotated", "perturbed"), "how", self.how, "'rotated' or 'perturbed'")
        _require_positive("scale", self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentCpu(PlanValue):
    """The answer is right, but the CPU gave it."""

    kind: Literal["silent_cpu"] = "silent_cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFault(PlanValue):
    """Nothing goes wrong; shields calls from the rules that follow."""

    kind: Literal["none"] = "none"


Fault = Annotated[
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
    | SilentCpu
    | NoFault,
    Field(discriminator="kind"),
]


def _require_rows(rows: int | None) -> None:
    require(rows is None or rows >= 1, "rows", rows, "1 or more")


def _require_positive(field: str, value: float) -> None:
    require(0 < value < math.inf, field, value, "more than 0 and finite")
