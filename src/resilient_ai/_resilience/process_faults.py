"""What can go wrong with the process of a worker, as `fault_kinds` has it for any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from resilient_ai._resilience.fault_values import FaultKind, require, require_one_of, require_positive

__all__ = [
    "BrokenAnswer",
    "Crash",
    "DieInPhase",
    "HoldGil",
    "Leak",
    "Noise",
    "ProcessFault",
    "StartFault",
    "StartSlowly",
]

Death = Literal["segfault", "abort", "kill", "stop", "exit"]
StartPhase = Literal["imports", "libraries", "session", "warm_up"]
Breakage = Literal["partial", "length", "garbage", "unknown_id", "replayed", "wrong_meta"]


class ProcessFault(FaultKind):
    """Base of the kinds that happen to the process of a worker, and would to the host's."""

    __slots__ = ()
    needs_process = True


class StartFault(ProcessFault):
    """Base of the kinds that happen to a worker as it starts, not to a batch."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash(ProcessFault):
    """The worker's process comes to its end as it runs a batch, or is stopped.

    "segfault", "abort" and "kill" are SIGSEGV, SIGABRT and SIGKILL. "exit" ends without a word, with
    exit code `code`. "stop" is SIGSTOP: the process is there and does nothing; continued, it answers.
    """

    how: Death = "segfault"
    code: int = 0
    kind: Literal["crash"] = "crash"

    def __post_init__(self) -> None:
        require_one_of("how", self.how, get_args(Death))
        _require_exit_code(self.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldGil(ProcessFault):
    """Native code keeps the interpreter's lock for `seconds`, so that no thread runs; then it answers."""

    seconds: float = 60.0
    kind: Literal["hold_gil"] = "hold_gil"

    def __post_init__(self) -> None:
        require_positive("seconds", self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenAnswer(ProcessFault):
    """The answer is right, and what arrives is not.

    "partial" is half of its bytes, and then the end of the process; "length" lacks its last bytes, and
    all that is sent later arrives in their place; "garbage" is noise of its length; "unknown_id" answers
    what nobody asked; "replayed" arrives twice; "wrong_meta" says nonsense of its device and its time.
    """

    how: Breakage = "partial"
    kind: Literal["broken_answer"] = "broken_answer"

    def __post_init__(self) -> None:
        require_one_of("how", self.how, get_args(Breakage))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(ProcessFault):
    """So many bytes are printed, to stdout and stderr, by Python and past it; the answer is right."""

    bytes: int = 65_536
    kind: Literal["noise"] = "noise"

    def __post_init__(self) -> None:
        require(self.bytes >= 1, "bytes", self.bytes, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak(ProcessFault):
    """The worker's memory grows by so many MiB for good; the answer is right."""

    megabytes: int = 8
    kind: Literal["leak"] = "leak"

    def __post_init__(self) -> None:
        require(self.megabytes >= 1, "megabytes", self.megabytes, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSlowly(StartFault):
    """A phase of the worker's start takes `seconds` longer."""

    phase: StartPhase = "libraries"
    seconds: float = 2.0
    kind: Literal["start_slowly"] = "start_slowly"

    def __post_init__(self) -> None:
        require_one_of("phase", self.phase, get_args(StartPhase))
        require_positive("seconds", self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class DieInPhase(StartFault):
    """A phase of the worker's start ends as in `Crash`."""

    phase: StartPhase = "libraries"
    how: Death = "segfault"
    code: int = 0
    kind: Literal["die_in_phase"] = "die_in_phase"

    def __post_init__(self) -> None:
        require_one_of("phase", self.phase, get_args(StartPhase))
        require_one_of("how", self.how, get_args(Death))
        _require_exit_code(self.code)


def _require_exit_code(code: int) -> None:
    require(0 <= code <= 255, "code", code, "an exit code from 0 to 255")  # noqa: PLR2004 - as POSIX has it
