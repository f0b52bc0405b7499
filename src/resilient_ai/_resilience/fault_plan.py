"""When which fault happens: a plan as data, the same every time it is run.

Decisions are a pure function of the plan's seed, the number of the call, the time since the plan
began and the batch. Nothing is drawn from a shared stream, so threads cannot change the outcome.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from resilient_ai._resilience.fault_kinds import (
    ConstantRows,
    Fault,
    Hang,
    Inf,
    Nan,
    NoFault,
    OutOfMemory,
    PlanValue,
    RaiseError,
    SilentCpu,
    Slow,
    WrongShape,
    WrongValues,
    ZeroRows,
    require,
)
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Batch

__all__ = ["FaultPlan", "FaultRule", "When"]


@dataclass(frozen=True, slots=True, kw_only=True)
class When(PlanValue):
    """The calls that a rule is for: those for which everything given here holds.

    Attributes:
        calls: These calls, by number. The first call after the plan was set is number 1.
        first: This call and all later ones.
        last: This call and all earlier ones.
        every: Each call whose number this divides.
        rate: This share of the calls, chosen by the plan's seed.
        after: From so many seconds after the plan was set.
        before: Until so many seconds after the plan was set.
        flap: Seconds on, seconds off, in turns.
        min_rows: Batches of at least so many rows.
        min_tokens: Batches of at least so many real tokens.
        shape: Batches of exactly (rows, longest).
    """

    calls: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None
    every: int | None = None
    rate: float | None = None
    after: float | None = None
    before: float | None = None
    flap: tuple[float, float] | None = None
    min_rows: int | None = None
    min_tokens: int | None = None
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("first", "last", "every", "min_rows", "min_tokens"):
            number = getattr(self, name)
            require(number is None or number >= 1, f"when.{name}", number, "1 or more")
        for name in ("after", "before"):
            seconds = getattr(self, name)
            require(seconds is None or 0 <= seconds < math.inf, f"when.{name}", seconds, "0 or more seconds")
        require(all(call >= 1 for call in self.calls), "when.calls", self.calls, "numbers of 1 or more")
        require(self.rate is None or 0 <= self.rate <= 1, "when.rate", self.rate, "between 0 and 1")
        require(
            self.flap is None or all(0 < part < math.inf for part in self.flap),
            "when.flap",
            self.flap,
            "two times of more than 0 seconds",
        )

    def holds(self, *, call: int, elapsed: float, batch: Batch, chance: float) -> bool:
        """Whether this call is meant; `chance` is the call's own number in [0, 1)."""
        return (
            self._holds_for_call(call)
            and self._holds_at(elapsed)
            and self._holds_for_batch(batch)
            and (self.rate is None or chance < self.rate)
        )

    def _holds_for_call(self, call: int) -> bool:
        return (
            (not self.calls or call in self.calls)
            and (self.first is None or call >= self.first)
            and (self.last is None or call <= self.last)
            and (self.every is None or call % self.every == 0)
        )

    def _holds_at(self, elapsed: float) -> bool:
        return (
            (self.after is None or elapsed >= self.after)
            and (self.before is None or elapsed < self.before)
            and (self.flap is None or elapsed % sum(self.flap) < self.flap[0])
        )

    def _holds_for_batch(self, batch: Batch) -> bool:
        return (
            (self.min_rows is None or batch.rows >= self.min_rows)
            and (self.min_tokens is None or batch.tokens >= self.min_tokens)
            and (self.shape is None or batch.input_ids.shape == self.shape)
        )


@dataclass(frozen=True, slots=True)
class FaultRule(PlanValue):
    """One fault, and when it happens; by default on every call."""

    what: Fault
    when: When = field(default_factory=When)

    def fires(self, *, call: int, elapsed: float, batch: Batch, chance: float) -> bool:
        """Whether the fault happens on this call."""
        if isinstance(self.what, OutOfMemory) and batch.rows <= self.what.above_rows:
            return False
        return self.when.holds(call=call, elapsed=elapsed, batch=batch, chance=chance)


@dataclass(frozen=True, slots=True)
class FaultPlan(PlanValue):
    """Rules in order: on each call the first that fires decides, and without one nothing happens.

    As JSON::

        {"seed": 7, "rules": [{"what": {"kind": "nan", "rows": 1}, "when": {"every": 3}}]}

    Raises:
        ConfigurationError: A field makes no sense; the message names it.
    """

    rules: tuple[FaultRule, ...] = ()
    seed: int = 0
    name: str = ""

    def decide(self, *, call: int, elapsed: float, batch: Batch) -> Fault | None:
        """Say what happens on a call: numbered from 1, `elapsed` seconds after the plan was set."""
        for index, rule in enumerate(self.rules):
            chance = _chance(self.seed, index, call) if rule.when.rate is not None else 0.0
            if rule.fires(call=call, elapsed=elapsed, batch=batch, chance=chance):
                return None if isinstance(rule.what, NoFault) else rule.what
        return None

    def to_json(self) -> str:
        """Write the plan as JSON; `parse` reads it back as an equal plan."""
        return json.dumps(_plain(self), ensure_ascii=False)

    @classmethod
    def parse(cls, text_or_path: str | Path) -> FaultPlan:
        """Read a plan from JSON, or from the file of that name.

        Raises:
            ConfigurationError: The file cannot be read, or a field is unknown, missing or makes no
                sense; the message names the field.
        """
        text = str(text_or_path)
        if isinstance(text_or_path, Path) or not text.lstrip().startswith("{"):
            text = _read(Path(text_or_path))
        try:
            return _adapter().validate_json(text, strict=True)
        except ValidationError as exc:
            raise ConfigurationError(f"The fault plan is not valid: {_explain(exc)}.") from exc

    @classmethod
    def preset(cls, name: str) -> FaultPlan:
        """A plan that is ready to use; `presets` has the names.

        Raises:
            ConfigurationError: There is none of that name.
        """
        if name not in _PRESETS:
            raise ConfigurationError(
                f"There is no fault preset {name!r}. Choose one of: {', '.join(_PRESETS)}."
            )
        return cls((_PRESETS[name],), name=name)

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """The names of the plans that are ready to use: each kind of fault, and some typical errors."""
        return tuple(_PRESETS)


def _chance(seed: int, rule: int, call: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{rule}/{call}".encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") >> 3) / 2**53


@cache
def _adapter() -> TypeAdapter[FaultPlan]:
    return TypeAdapter(FaultPlan)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"The fault plan {str(path)!r} cannot be read: {exc}.") from exc


def _explain(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    )


def _plain(value: object) -> Any:
    """The JSON form of a plan's values; what is as by default is left out."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, PlanValue):
        return value
    return {
        item.name: _plain(getattr(value, item.name))
        for item in fields(value)  # type: ignore[arg-type]  # every subclass is a dataclass
        if item.name == "kind" or getattr(value, item.name) != _default(item)
    }


def _default(item: Field[Any]) -> object:
    return item.default if item.default_factory is MISSING else item.default_factory()


_PRESETS: Final[dict[str, FaultRule]] = {
    "raise": FaultRule(RaiseError()),
    "oom": FaultRule(OutOfMemory(above_rows=4)),
    "hang": FaultRule(Hang()),
    "slow": FaultRule(Slow(seconds=1.0)),
    "nan": FaultRule(Nan()),
    "inf": FaultRule(Inf()),
    "wrong_shape": FaultRule(WrongShape()),
    "wrong_values": FaultRule(WrongValues()),
    "constant_rows": FaultRule(ConstantRows()),
    "zero_rows": FaultRule(ZeroRows()),
    "silent_cpu": FaultRule(SilentCpu()),
    "flapping": FaultRule(RaiseError(), When(flap=(5.0, 5.0))),
    "none": FaultRule(NoFault()),
    "perturbed": FaultRule(WrongValues(how="perturbed")),
    "wrong_dimension": FaultRule(WrongShape(axis="dimension")),
    "poisoned": FaultRule(
        RaiseError(
            error="Fail",
            text="[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered "
            "; GPU=0 ; hostname=injected ; file=gpu_data_transfer.cc ; line=63 ; expr=cudaMemcpyAsync(dst)",
        )
    ),
    "device_lost": FaultRule(
        RaiseError(
            error="Fail", text="CUDA failure 999: unknown error ; GPU=0 ; expr=cudaSetDevice(injected)"
        )
    ),
    "missing_library": FaultRule(
        RaiseError(
            text="Failed to load library libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory"
        )
    ),
    "worker_died": FaultRule(RaiseError(error="BrokenPipeError", text="[Errno 32] Broken pipe")),
    "transient": FaultRule(
        RaiseError(error="OSError", text="[Errno 11] Resource temporarily unavailable"), When(calls=(1,))
    ),
    "caller": FaultRule(
        RaiseError(
            error="InvalidArgument",
            text="[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: input_ids "
            "Got: 3 Expected: 2 Please fix either the inputs/outputs or the model.",
        )
    ),
}
