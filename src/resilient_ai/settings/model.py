"""`AISettings`: every setting, its default, its bounds and its one description."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, ValidationInfo, field_validator

from resilient_ai.errors import ConfigurationError
from resilient_ai.settings.fields import (
    LONGEST_MS,
    DeviceIds,
    Flag,
    Location,
    MaybeFlag,
    Mirror,
    Name,
    OptionalLocation,
    OptionalPlan,
    Real,
    Whole,
    fraction,
    setting,
    share,
    whole,
    word,
)
from resilient_ai.settings.layers import Layer, Reading, UnknownVariable, read_layers
from resilient_ai.settings.problems import configuration_error
from resilient_ai.settings.report import SettingReport, report_setting, report_unknown

__all__ = ["LATE_INTERACTION", "AISettings"]

LATE_INTERACTION = "late-interaction"
"""The reranker that needs no model of its own."""


_MODEL = "the name of a model in the catalogue"
_PATH = "a path"


class AISettings(BaseModel):
    """All settings, checked and frozen; equal when their values are, wherever those came from.

    `AISettings()` reads the AI_* variables of the environment and the TOML file; keyword
    arguments win over both. Building reads the environment and at most one file and changes
    nothing; an instance may be shared between threads, copied and pickled.

    Raises:
        ConfigurationError: At construction, once, with every problem of every source.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        # The error that pydantic raises stays in the traceback, and values may be secret.
        hide_input_in_errors=True,
        # Names that start with model_ are plain settings here.
        protected_namespaces=(),
    )

    # Models
    model_name: Name = setting("qwen3emb", "The embedding model.", allowed=_MODEL)
    reranker_name: Name = setting(
        "qwen3_reranker",
        "The reranking model; late-interaction reranks with the embedding model, without a second one.",
        allowed=f"{_MODEL}, or late-interaction",
    )
    model_path: Location = setting(
        Path("./models"), "The folder that models are kept in and downloaded to.", allowed=_PATH
    )
    model_mirror: Mirror = setting(
        None,
        "The base URL of an HTTP mirror that models are fetched from first. It may carry credentials "
        "before its host; they are masked wherever it is shown.",
        allowed="an http or https URL with a host",
        secret=True,
    )
    offline: Flag = setting(False, "Fetch nothing; use only what is in the model folder.")
    precision: Annotated[Literal["auto", "fp32", "fp16", "bf16", "int8"], word] = setting(
        "auto",
        "The numbers a model computes with; auto takes what suits the device. fp16 is for GPUs, bf16 for "
        "CPUs with OpenVINO, int8 for CPUs with a graph from resilient-ai models quantize.",
    )
    keep_models: Whole = whole(
        0,
        0,
        1_000_000,
        "Most models kept in memory; for one more, the one used longest ago leaves. 0: any number.",
    )
    memory_limit_mb: Whole = whole(
        0,
        0,
        2**30,
        "Most megabytes of weights kept in memory; beyond it the models used longest ago leave, until four "
        "fifths of it are in use. 0: any number.",
    )
    max_length: Whole = whole(
        512, 1, 2**20, "Most tokens of a text; what is longer is cut. Never above the model's own limit."
    )
    normalize: Flag = setting(True, "Scale every vector to length 1.")
    batch_size: Whole = whole(32, 1, 65_536, "Most rows in one batch.")
    token_budget: Whole = whole(
        512,
        1,
        2**24,
        "Most tokens in one batch on the CPU, padding included (rows x longest). OpenVINO takes four times "
        "as many with small models, and twice as many with large ones.",
    )
    start: Annotated[Literal["auto", "fast", "steady"], word] = setting(
        "auto",
        "What a model's start on the CPU is traded for. steady: weights are packed for the kernels first. "
        "fast: they are mapped from their file, at once and shared by processes, and runs take longer. "
        "auto: large models start fast and are packed while they serve.",
    )
    spin: Flag = setting(
        True,
        "Keep the cores of a run on the CPU busy while its threads wait for one another, and for some "
        "milliseconds after it: faster on cores of one's own, slower where other processes want them.",
    )
    cpu_engine: Annotated[Literal["auto", "onnxruntime", "openvino"], word] = setting(
        "auto",
        "What computes on the CPU. auto: OpenVINO where it is installed, its answers agree and it is faster, "
        "which is tried once; else ONNX Runtime. openvino: that or an error.",
    )

    # Devices
    use_gpu: Annotated[Literal["auto", "always", "never", "simulated"], word] = setting(
        "auto",
        "auto: the GPU if one is usable at start, else the CPU. always: a missing GPU is a degraded "
        "state. never: the CPU alone. simulated: a CPU process stands in for the GPU, for tests and drills.",
    )
    gpu_device_id: DeviceIds = setting(
        "0",
        "The number of the card to use, or several with commas between.",
        allowed="a card number, or several with commas between, like 0,1",
    )
    gpu_memory_fraction: Real = fraction(0.8, "The share of the card's free memory that may be used.")
    gpu_allow_growth: Flag = setting(
        True, "Take memory of the card as it is needed; false takes larger pieces ahead of need."
    )
    use_tensorrt: MaybeFlag = setting("auto", "Run on TensorRT; auto takes it where it is installed.")
    gpu_token_budget: Whole = whole(
        16_384, 1, 2**24, "Most tokens in one batch on a GPU, padding included (rows x longest)."
    )
    gpu_exclusive: Flag = setting(
        False, "Let only one process of this machine have a worker on a card; the others use the CPU."
    )
    gpu_in_process: Flag = setting(
        False,
        "Run the GPU inside this process instead of in a worker. Less safe: a crash ends the process, a hang "
        "cannot be ended, and a poisoned context stays.",
    )
    worker_python: OptionalLocation = setting(
        None,
        "The Python interpreter of the worker, when it is not this one: one with onnxruntime-gpu, say.",
        allowed="the path of a Python interpreter",
    )
    worker_phase_ms: Whole = whole(
        120_000, 1, LONGEST_MS, "Milliseconds that one phase of a worker's start may take."
    )
    worker_idle_ms: Whole = whole(
        0, 0, LONGEST_MS, "Milliseconds after which a worker that nobody uses is ended; 0: never."
    )
    parallel_workers: Whole = whole(
        4, 1, 4096, "Most CPU threads the model may use; never more than the cores this process may use."
    )

    # Failing over
    fallback: Annotated[Literal["cpu", "fail"], word] = setting(
        "cpu", "What serves when the GPU fails: the CPU, or nothing (calls fail)."
    )
    fallback_timeout_ms: Whole = whole(
        30_000, 1, LONGEST_MS, "Milliseconds the GPU may take for one batch before it counts as hung."
    )
    error_threshold: Whole = whole(
        3, 1, 1_000_000, "Failures in a row after which the GPU is taken out of service."
    )
    recovery_time_ms: Whole = whole(
        300_000, 0, LONGEST_MS, "Longest wait, in milliseconds, before a failed GPU is tried again."
    )
    max_retries: Whole = whole(
        2, 0, 100, "Most repetitions of a batch on the same device after a passing failure."
    )
    auto_retry: Flag = setting(True, "Repeat a batch after a passing failure; false fails over at once.")

    hedge: Flag = setting(
        False,
        "Give a small interactive batch that takes longer on the GPU than usual to the CPU, if that is idle.",
    )
    agreement: Real = share(
        0.0,
        "The least agreement with ONNX Runtime on the CPU that another device or engine may serve with: the "
        "cosine of vectors, or 1 less the difference of scores. 0: as the precision allows.",
    )
    verify: Annotated[Literal["every", "sampled", "off"], word] = setting(
        "sampled",
        "How a GPU that answers wrongly is found out. every: each batch carries a row with a known answer. "
        "sampled: about one token in a hundred is spent on such rows. off: only answers that cannot be "
        "right are caught.",
    )

    # Serving
    timeout_ms: Whole = whole(
        0, 0, LONGEST_MS, "Deadline of a call that names none, in milliseconds; 0: none."
    )
    queue_size: Whole = whole(
        1024, 1, 1_000_000, "Most calls that wait; the next is refused at once as Overloaded."
    )
    cache_size: Whole = whole(1000, 0, 100_000_000, "Vectors kept for texts seen before; 0 keeps none.")
    memory_pool_size: Whole = whole(
        512, 1, 2**20, "Most megabytes of host memory for token matrices, receive buffers and outputs."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], word] = setting(
        "warning", "The least severe message that is logged."
    )
    config_file: OptionalLocation = setting(
        Path("config/resilient_ai.toml"),
        "The TOML file to read. It must exist if it is named; the default is read if it exists.",
        allowed="the path of a TOML file",
    )

    # Drills
    allow_fault_injection: Flag = setting(
        False, "Permit faults to be injected on purpose; for tests and drills, never in production."
    )
    fault_plan: OptionalPlan = setting(
        None,
        "The faults to inject: JSON, or the path of a JSON file. Needs AI_ALLOW_FAULT_INJECTION=true.",
        allowed="JSON or the path of a JSON file, together with AI_ALLOW_FAULT_INJECTION=true",
    )

    _read: Reading = PrivateAttr()

    def __init__(
        self,
        *,
        _environ: Mapping[str, str] | None = None,
        _cwd: Path | None = None,
        **values: object,
    ) -> None:
        fields = type(self).model_fields
        reading = read_layers(
            values,
            os.environ if _environ is None else _environ,
            Path.cwd() if _cwd is None else _cwd,
            known=fields,
            default_file=fields["config_file"].default,
        )
        try:
            # Names that are no setting go along, so that validation lists them with the rest.
            super().__init__(**reading.merged())
        except ValidationError as exc:
            raise configuration_error(exc.errors(include_url=False), reading, fields) from exc
        if reading.problems:
            raise configuration_error((), reading, fields)
        self._read = reading

    @classmethod
    def load(
        cls, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None, **values: object
    ) -> Self:
        """`AISettings(**values)` with another environment or working folder than the process's."""
        return cls(_environ=environ, _cwd=cwd, **values)

    @field_validator("fault_plan")
    @classmethod
    def _check_permission(cls, plan: str | None, info: ValidationInfo) -> str | None:
        # A flag that is itself wrong is not in `data`, and is its own problem.
        if plan is not None and not info.data.get("allow_fault_injection", True):
            raise ValueError("fault injection is not permitted")
        return plan

    def with_models(self, *, model_name: str, reranker_name: str) -> Self:
        """The same settings with other models, which count as keywords."""
        names = {"model_name": model_name, "reranker_name": reranker_name}
        made = self.model_copy(update=names)
        layers = (Layer("keyword", names), *self._read.layers)
        made._read = replace(self._read, layers=layers)  # noqa: SLF001 - its own class
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AISettings):
            return NotImplemented
        return dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(dict(self).items()))

    @property
    def unknown(self) -> tuple[UnknownVariable, ...]:
        """AI_* variables of the environment that are no settings, perhaps another program's."""
        return self._read.unknown

    @property
    def loaded_file(self) -> Path | None:
        """The file that was read, absolute; None if there was none."""
        return self._read.file

    def report(self) -> tuple[SettingReport, ...]:
        """One line a setting, in the order of the fields, then one for each of `unknown`."""
        fields = type(self).model_fields
        known = (report_setting(key, getattr(self, key), fields[key], self._read) for key in fields)
        return (*known, *map(report_unknown, self.unknown))

    @property
    def default_timeout(self) -> float | None:
        """Seconds that a call gets which names no deadline of its own; None for no limit."""
        return self.timeout_ms / 1000 or None

    @property
    def reranking_model(self) -> str:
        """The model that scores: `reranker_name`, or the embedding model by late interaction."""
        return self.model_name if self.late_interaction else self.reranker_name

    @property
    def late_interaction(self) -> bool:
        """Whether the embedding model reranks, with its vectors of tokens."""
        return self.reranker_name == LATE_INTERACTION

    @property
    def models(self) -> tuple[str, ...]:
        """The models that serve, by the names they were given: one or two."""
        return tuple(dict.fromkeys((self.model_name, self.reranking_model)))

    @property
    def gpu_timeout(self) -> float:
        """`fallback_timeout_ms` in seconds."""
        return self.fallback_timeout_ms / 1000

    @property
    def recovery_time(self) -> float:
        """`recovery_time_ms` in seconds."""
        return self.recovery_time_ms / 1000

    @property
    def worker_phase(self) -> float:
        """`worker_phase_ms` in seconds."""
        return self.worker_phase_ms / 1000

    @property
    def worker_idle(self) -> float | None:
        """`worker_idle_ms` in seconds; None for a worker that stays."""
        return self.worker_idle_ms / 1000 or None

    @property
    def gpu_device_ids(self) -> tuple[int, ...]:
        """The numbers in `gpu_device_id`, in the user's order."""
        return tuple(map(int, self.gpu_device_id.split(",")))

    @property
    def mirror_url(self) -> str | None:
        """`model_mirror` with its credentials, for whoever opens the connection; do not show it."""
        return self.model_mirror.get_secret_value() if self.model_mirror else None

    def fault_plan_json(self) -> str | None:
        """The text of the fault plan, read from its file if `fault_plan` is a path; None if unset.

        Raises:
            ConfigurationError: If the file cannot be read.
        """
        if self.fault_plan is None or self.fault_plan.lstrip().startswith(("{", "[")):
            return self.fault_plan
        try:
            return Path(self.fault_plan).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, RuntimeError) as exc:
            raise ConfigurationError(
                f"The fault plan {self.fault_plan!r} cannot be read ({exc}); "
                "give AI_FAULT_PLAN the path of a JSON file, or JSON that starts with { or ["
            ) from exc
