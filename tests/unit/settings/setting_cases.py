"""What every setting accepts and refuses, and the three ways to write a value down."""

import json
from pathlib import Path

from hypothesis import strategies as st

from resilient_ai.settings import AISettings
from resilient_ai.settings.fields import LONGEST_MS
from resilient_ai.settings.layers import variable
from resilient_ai.settings.masking import SecretUrl

KEYS = tuple(AISettings.model_fields)
FILE_KEYS = tuple(key for key in KEYS if key != "config_file")

_name = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20)
_path = _name.filter(lambda text: not text.startswith("~")).map(Path)
_flag = st.booleans()
_milliseconds = st.integers(1, LONGEST_MS)
_plan = st.dictionaries(_name, st.integers(), max_size=2).map(json.dumps)

VALID = {
    "model_name": _name,
    "reranker_name": _name | st.just("late-interaction"),
    "model_path": _path,
    "model_mirror": st.sampled_from(
        ["https://host/models", "http://user:word@host:8080/m", "https://u@host/?t=1"]
    ),
    "offline": _flag,
    "precision": st.sampled_from(["auto", "fp32", "fp16", "bf16", "int8"]),
    "keep_models": st.integers(0, 1_000_000),
    "memory_limit_mb": st.integers(0, 2**30),
    "max_length": st.integers(1, 2**20),
    "normalize": _flag,
    "batch_size": st.integers(1, 65_536),
    "token_budget": st.integers(1, 2**24),
    "start": st.sampled_from(["auto", "fast", "steady"]),
    "spin": _flag,
    "cpu_engine": st.sampled_from(["auto", "onnxruntime", "openvino"]),
    "use_gpu": st.sampled_from(["auto", "always", "never", "simulated"]),
    "gpu_device_id": st.lists(st.integers(0, 1023), min_size=1, max_size=4, unique=True).map(
        lambda ids: ",".join(map(str, ids))
    ),
    "gpu_memory_fraction": st.floats(0, 1, exclude_min=True),
    "gpu_allow_growth": _flag,
    "use_tensorrt": st.sampled_from(["auto", "true", "false"]),
    "gpu_token_budget": st.integers(1, 2**24),
    "gpu_exclusive": _flag,
    "gpu_in_process": _flag,
    "worker_python": _path,
    "worker_phase_ms": _milliseconds,
    "worker_idle_ms": st.integers(0, LONGEST_MS),
    "parallel_workers": st.integers(1, 4096),
    "fallback": st.sampled_from(["cpu", "fail"]),
    "fallback_timeout_ms": _milliseconds,
    "error_threshold": st.integers(1, 1_000_000),
    "recovery_time_ms": st.integers(0, LONGEST_MS),
    "max_retries": st.integers(0, 100),
    "auto_retry": _flag,
    "hedge": _flag,
    "agreement": st.floats(0, 1),
    "verify": st.sampled_from(["every", "sampled", "off"]),
    "timeout_ms": st.integers(0, LONGEST_MS),
    "queue_size": st.integers(1, 1_000_000),
    "cache_size": st.integers(0, 100_000_000),
    "memory_pool_size": st.integers(1, 2**20),
    "log_level": st.sampled_from(["debug", "info", "warning", "error", "critical"]),
    "config_file": st.just(Path("given.toml")),
    "allow_fault_injection": _flag,
    "fault_plan": _plan | _name.filter(lambda text: not text.startswith(("{", "["))),
}
"""Values as the setting holds them (a mirror as its text)."""

_WRONG_NUMBER = ["", "-1", "nan", "inf", "many", True, 10**12, [1], 0.5]
_WRONG_FLAG = ["", "maybe", "t", "y", "2", 2, 1.0, [True]]
_WRONG_PATH = ["", " ", "a\0b", 7, False]
_WRONG_NAME = ["", " ", "a\nb", "\x1b[2J", 7]
_WRONG_WORD = ["", "gpu!", 3, ["auto"]]

INVALID = {
    "model_name": _WRONG_NAME,
    "reranker_name": _WRONG_NAME,
    "model_path": _WRONG_PATH,
    "model_mirror": [
        "ftp://host",
        "host",
        "https://",
        "https://host:99999",
        "https://a host",
        "https://[::1",
        5,
    ],
    "offline": _WRONG_FLAG,
    "precision": [*_WRONG_WORD, "fp64"],
    "keep_models": _WRONG_NUMBER,
    "memory_limit_mb": _WRONG_NUMBER,
    "max_length": [*_WRONG_NUMBER, 0],
    "normalize": _WRONG_FLAG,
    "batch_size": [*_WRONG_NUMBER, 0],
    "token_budget": [*_WRONG_NUMBER, 0],
    "start": [*_WRONG_WORD, "slow"],
    "spin": _WRONG_FLAG,
    "cpu_engine": [*_WRONG_WORD, "torch"],
    "use_gpu": [*_WRONG_WORD, "true", True],
    "gpu_device_id": [
        "",
        ",",
        "0,",
        "0,0",
        "00,0",
        "-1",
        "1024",
        "9" * 5000,
        "²",
        "a",
        True,
        [],
        [0, "x"],
        1.5,
    ],
    "gpu_memory_fraction": ["", "0", "1.01", "-0.1", "nan", "inf", "half", True],
    "gpu_allow_growth": _WRONG_FLAG,
    "use_tensorrt": [*_WRONG_WORD, "maybe", 2],
    "gpu_token_budget": [*_WRONG_NUMBER, 0],
    "gpu_exclusive": _WRONG_FLAG,
    "gpu_in_process": _WRONG_FLAG,
    "worker_python": ["a\0b", 7],
    "worker_phase_ms": [*_WRONG_NUMBER, 0],
    "worker_idle_ms": _WRONG_NUMBER,
    "parallel_workers": [*_WRONG_NUMBER, 0],
    "fallback": [*_WRONG_WORD, "gpu"],
    "hedge": _WRONG_FLAG,
    "agreement": ["", "1.01", "-0.1", "nan", "inf", "half", True],
    "verify": [*_WRONG_WORD, "always"],
    "fallback_timeout_ms": [*_WRONG_NUMBER, 0],
    "error_threshold": [*_WRONG_NUMBER, 0],
    "recovery_time_ms": _WRONG_NUMBER,
    "max_retries": [*_WRONG_NUMBER, 101],
    "auto_retry": _WRONG_FLAG,
    "timeout_ms": _WRONG_NUMBER,
    "queue_size": [*_WRONG_NUMBER, 0],
    "cache_size": _WRONG_NUMBER,
    "memory_pool_size": [*_WRONG_NUMBER, 0],
    "log_level": [*_WRONG_WORD, "verbose"],
    "config_file": ["a\0b", 7],
    "allow_fault_injection": _WRONG_FLAG,
    "fault_plan": ["{", "[1,", "a\0b", "[" * 100_000, 7],
}
"""Values that every way of writing them must refuse, except that an empty variable is an unset one."""


def held(value):
    """A setting's value as `VALID` spells it."""
    return value.get_secret_value() if isinstance(value, SecretUrl) else value


def as_environment(values):
    return {variable(key): _text(value) for key, value in values.items()}


def _text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_toml(values):
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def toml_value(value):
    """One value in TOML; floats keep every digit, and DEL is the one JSON does not escape."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)
