"""When which fault happens: a plan as data, the same every time it is run.

Decisions are a pure function of the plan's seed, the number of the call or start, the time since the
plan began and the batch. Nothing is drawn from a shared stream, so threads cannot change the outcome.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from resilient_ai._resilience.fault_kinds import Fault, NoFault, PlanValue
from resilient_ai._resilience.fault_presets import PRESETS
from resilient_ai._resilience.fault_rules import FaultRule, When
from resilient_ai.errors import ConfigurationError
from resilient_ai.values import Batch

__all__ = ["FaultPlan", "FaultRule", "When"]


@dataclass(frozen=True, slots=True)
class FaultPlan(PlanValue):
    """Rules in order: on each call the first that fires decides, and without one nothing happens.

    Rules for faults of a worker's start are for starts alone, all others for calls alone.

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

    def decide_start(self, *, start: int, elapsed: float) -> Fault | None:
        """Say what happens on a worker's start: numbered from 1, `elapsed` seconds after the plan was set."""
        for index, rule in enumerate(self.rules):
            chance = _chance(self.seed, index, start) if rule.when.rate is not None else 0.0
            if rule.fires_at_start(start=start, elapsed=elapsed, chance=chance):
                return rule.what
        return None

    @property
    def needs_process(self) -> bool:
        """Whether it has faults that only a process of its own can suffer."""
        return any(rule.what.needs_process for rule in self.rules)

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
        if name not in PRESETS:
            raise ConfigurationError(
                f"There is no fault preset {name!r}. Choose one of: {', '.join(PRESETS)}."
            )
        return cls(PRESETS[name], name=name)

    @classmethod
    def presets(cls, *, process: bool = True) -> tuple[str, ...]:
        """The names of the plans that are ready to use: each kind of fault, and some typical errors.

        Without `process`, those that a device in the host's own process can have as well.
        """
        return tuple(name for name in PRESETS if process or not cls.preset(name).needs_process)


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
