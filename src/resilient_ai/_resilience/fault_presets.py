"""Plans that are ready to use, by name: each kind of fault, and some typical errors."""

from __future__ import annotations

from typing import Final

from resilient_ai._resilience.fault_kinds import (
    BrokenAnswer,
    ConstantRows,
    Crash,
    DieInPhase,
    Fault,
    Hang,
    HoldGil,
    Inf,
    Leak,
    Nan,
    NoFault,
    Noise,
    OutOfMemory,
    RaiseError,
    SilentCpu,
    Slow,
    StartSlowly,
    WrongNorm,
    WrongShape,
    WrongValues,
    ZeroRows,
)
from resilient_ai._resilience.fault_rules import FaultRule, When

__all__ = ["PRESETS"]

Rules = tuple[FaultRule, ...]

_CALLS_BETWEEN_ENDS: Final = 40
"""So many calls are enough for a fresh worker to come back, and for it to be seen to."""


def _always(what: Fault) -> Rules:
    return (FaultRule(what),)


def _at_once_and_again(what: Fault) -> Rules:
    """On the first call, however slow the device is, and again when a fresh worker has served a while."""
    return FaultRule(what, When(calls=(1,))), FaultRule(what, When(every=_CALLS_BETWEEN_ENDS))


def _first_restart(what: StartSlowly | DieInPhase) -> Rules:
    """A running worker is killed, so that there is a start that can go wrong; the one after it goes well."""
    return FaultRule(Crash(how="kill"), When(calls=(1,))), FaultRule(what, When(last=1))


_OF_ANSWERS: Final[dict[str, Rules]] = {
    "raise": _always(RaiseError()),
    "oom": _always(OutOfMemory(above_rows=4)),
    "hang": _always(Hang()),
    "slow": _always(Slow(seconds=1.0)),
    "nan": _always(Nan()),
    "inf": _always(Inf()),
    "wrong_shape": _always(WrongShape()),
    "wrong_values": _always(WrongValues()),
    "constant_rows": _always(ConstantRows()),
    "zero_rows": _always(ZeroRows()),
    "silent_cpu": _always(SilentCpu()),
    "flapping": (FaultRule(RaiseError(), When(flap=(5.0, 5.0))),),
    "none": _always(NoFault()),
    "perturbed": _always(WrongValues(how="perturbed")),
    "wrong_dimension": _always(WrongShape(axis="dimension")),
    "wrong_norm": _always(WrongNorm()),
}

_OF_ERRORS: Final[dict[str, Rules]] = {
    "poisoned": _always(
        RaiseError(
            error="Fail",
            text="[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered "
            "; GPU=0 ; hostname=injected ; file=gpu_data_transfer.cc ; line=63 ; expr=cudaMemcpyAsync(dst)",
        )
    ),
    "device_lost": _always(
        RaiseError(
            error="Fail", text="CUDA failure 999: unknown error ; GPU=0 ; expr=cudaSetDevice(injected)"
        )
    ),
    "missing_library": _always(
        RaiseError(
            text="Failed to load library libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory"
        )
    ),
    "worker_died": _always(RaiseError(error="BrokenPipeError", text="[Errno 32] Broken pipe")),
    "transient": (
        FaultRule(
            RaiseError(error="OSError", text="[Errno 11] Resource temporarily unavailable"), When(calls=(1,))
        ),
    ),
    "caller": _always(
        RaiseError(
            error="InvalidArgument",
            text="[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: input_ids "
            "Got: 3 Expected: 2 Please fix either the inputs/outputs or the model.",
        )
    ),
}

_OF_PROCESSES: Final[dict[str, Rules]] = {
    "segfault": _at_once_and_again(Crash(how="segfault")),
    "abort": _at_once_and_again(Crash(how="abort")),
    "sigkill": _at_once_and_again(Crash(how="kill")),
    "sigstop": _at_once_and_again(Crash(how="stop")),
    "silent_exit": _at_once_and_again(Crash(how="exit")),
    "hold_gil": _at_once_and_again(HoldGil()),
    "partial_frame": _at_once_and_again(BrokenAnswer(how="partial")),
    "wrong_length": _at_once_and_again(BrokenAnswer(how="length")),
    "garbage_frame": _at_once_and_again(BrokenAnswer(how="garbage")),
    "unknown_id": _at_once_and_again(BrokenAnswer(how="unknown_id")),
    "replayed_answer": _at_once_and_again(BrokenAnswer(how="replayed")),
    "wrong_meta": _at_once_and_again(BrokenAnswer(how="wrong_meta")),
    "stdout_noise": _always(Noise()),
    # Not on every call: a fast device would take gigabytes in a second or two.
    "leak": (FaultRule(Leak(), When(every=10)),),
}

_OF_STARTS: Final[dict[str, Rules]] = {
    "slow_start": _first_restart(StartSlowly(phase="libraries")),
    "die_in_imports": _first_restart(DieInPhase(phase="imports", how="exit", code=1)),
    "die_in_libraries": _first_restart(DieInPhase(phase="libraries", how="segfault")),
    "die_in_session": _first_restart(DieInPhase(phase="session", how="abort")),
    "die_in_warm_up": _first_restart(DieInPhase(phase="warm_up", how="kill")),
}

PRESETS: Final[dict[str, Rules]] = {**_OF_ANSWERS, **_OF_ERRORS, **_OF_PROCESSES, **_OF_STARTS}
