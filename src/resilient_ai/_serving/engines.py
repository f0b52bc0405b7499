"""Which engine runs a model on the CPU: ONNX Runtime, or OpenVINO where it proves faster and right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from resilient_ai._inference.backend import OpenVinoBackend
from resilient_ai._inference.cores import cpu_identity
from resilient_ai._inference.openvino import OpenVinoPrecision, OpenVinoSession
from resilient_ai._inference.openvino_runtime import computes_in_bf16, load_openvino, openvino_version
from resilient_ai._inference.session import runtime_version
from resilient_ai._serving.canary import default_limit
from resilient_ai._serving.choosing import stored
from resilient_ai._serving.heap import trim_heap
from resilient_ai._serving.trials import Trials, Verdict, judge, run_probes
from resilient_ai._telemetry.events import EngineChosen, EventBus
from resilient_ai._telemetry.log import log
from resilient_ai.errors import ConfigurationError, ResilientAIError
from resilient_ai.values import Backend, Batch, Task

__all__ = ["CpuEngine", "Engines", "OpenVino"]

CpuEngine = Literal["auto", "onnxruntime", "openvino"]

_LIMITS: Final = {("embed", "bf16"): 0.9995, ("score", "bf16"): 0.98}
"""How well answers must agree that are served from the first batch on, where nobody compares any more.

Others need what a device needs beside the CPU.
"""

_WORTH_IT: Final = 1.1
"""How many times as fast a second engine must be: it takes memory, and its load takes longer."""


_SMALL: Final = 16 * 2**20
"""Bytes of a graph that is done in so little time that no trial would pay."""


@dataclass(frozen=True, slots=True)
class OpenVino:
    """The installed OpenVINO: its version, None where there is none, and what it can do here."""

    version: Callable[[], str | None] = openvino_version
    computes_in_bf16: Callable[[], bool] = computes_in_bf16

    def require(self) -> None:
        """Raise `ConfigurationError`, which says how to install it, where it is not there."""
        if self.version() is None:
            load_openvino()

    def open(
        self, graph: Path, *, threads: int, numbers: OpenVinoPrecision, pooling: str | None, precision: str
    ) -> Backend:
        session = OpenVinoSession(graph, threads=threads, precision=numbers)
        return OpenVinoBackend(session, device="cpu", pooling=pooling, precision=precision)


@dataclass(frozen=True, slots=True)
class Engines:
    """What was asked for, and what it takes to choose.

    With "auto" OpenVINO serves where it is installed, its answers agree with ONNX Runtime's, and it is
    faster; each is found out once for a graph, a CPU and their versions. In float32 it is not faster,
    so it is not asked then. `precision` is that of the settings, `agreement` the least that may serve;
    None: by precision.
    """

    engine: CpuEngine
    precision: str
    threads: int
    trials: Trials
    events: EventBus = field(default_factory=EventBus)
    openvino: OpenVino = field(default_factory=OpenVino)
    agreement: float | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def must_be_openvino(self) -> bool:
        """Whether nothing else will do."""
        return self.engine == "openvino" or self.precision == "bf16"

    @property
    def may_be_openvino(self) -> bool:
        if self.must_be_openvino:
            return True
        # Not with int8: there OpenVINO lets a vector move by 0.006 with its batch, ONNX Runtime by nothing.
        asked = self.engine == "auto" and self.precision == "auto"
        return asked and self.openvino.version() is not None

    @property
    def may_compute_in_bf16(self) -> bool:
        """Whether answers may come to be those of bfloat16."""
        return self.may_be_openvino and self.precision in {"auto", "bf16"}

    def open(
        self,
        graph: Path,
        *,
        pooling: str | None,
        probes: Callable[[], Sequence[Batch]],
        onnx: Callable[[], Backend],
    ) -> Backend:
        """Open a graph on the engine that suits it. `onnx` opens it on ONNX Runtime.

        `probes` are batches to try the engines with, as they come in service, at least one.

        Raises:
            ConfigurationError: What was asked for is not to be had; the message says why.
            ResilientAIError: What `onnx` raises.
        """
        if not self.may_be_openvino or (
            not self.must_be_openvino and sum(each.st_size for each in stored(graph)) < _SMALL
        ):
            return onnx()
        self._check()
        trial = _Trial(self, graph, pooling, probes, onnx)
        with ExitStack() as unless_chosen:
            verdict, tried = trial.outcome()
            if tried is not None:
                unless_chosen.callback(tried.close)
            if self._choose(verdict, graph) == "openvino":
                chosen = tried if tried is not None else self._open_again(trial)
                if chosen is not None:
                    unless_chosen.pop_all()
                    return chosen
        trim_heap()
        return onnx()

    def _check(self) -> None:
        """Raise `ConfigurationError` for what cannot be had whatever the graph."""
        if self.precision == "bf16" and self.engine == "onnxruntime":
            raise ConfigurationError(
                "AI_PRECISION=bf16 on the CPU is OpenVINO's; set AI_CPU_ENGINE to auto or openvino"
            )
        if self.must_be_openvino:
            self.openvino.require()
        if self.precision == "bf16" and not self.openvino.computes_in_bf16():
            raise ConfigurationError(
                "AI_PRECISION=bf16: this CPU does not compute in bfloat16. Set AI_PRECISION to auto or fp32"
            )

    def _choose(self, verdict: Verdict, graph: Path) -> Literal["onnxruntime", "openvino"]:
        if self.must_be_openvino and verdict.reason:
            what = "AI_PRECISION=bf16" if self.precision == "bf16" else "AI_CPU_ENGINE=openvino"
            raise ConfigurationError(
                f"{what} cannot be had for this model: {verdict.reason}. Set AI_CPU_ENGINE and AI_PRECISION "
                "to auto"
            )
        is_better = not verdict.reason and verdict.speedup >= _WORTH_IT
        chosen: Literal["onnxruntime", "openvino"] = (
            "openvino" if is_better or self.must_be_openvino else "onnxruntime"
        )
        self._tell(graph, verdict, chosen)
        return chosen

    def _open_again(self, trial: _Trial) -> Backend | None:
        """OpenVINO's backend where its trial was an earlier start's; None where it fails all the same."""
        try:
            return trial.open_candidate()
        except ResilientAIError as exc:
            if self.must_be_openvino:
                raise
            log.warning("OpenVINO passed its trial and fails now; ONNX Runtime serves", error=str(exc))
            return None

    def numbers(self) -> OpenVinoPrecision:
        """What OpenVINO is to compute in. Raises `ConfigurationError` where that leaves it no gain."""
        if self.precision not in {"auto", "bf16"}:
            return "f32"
        if self.openvino.computes_in_bf16():
            return "bf16"
        if self.must_be_openvino:
            return "f32"
        raise ConfigurationError("this CPU does not compute in bfloat16, and in float32 it is not faster")

    def limit(self, task: Task) -> float:
        """The least agreement that may serve."""
        if self.agreement is not None:
            return self.agreement
        numbers = "int8" if self.precision == "int8" else self.numbers()
        usual = default_limit(numbers, "reranker" if task == "score" else "embedding")
        return _LIMITS.get((task, numbers), usual)

    def _tell(self, graph: Path, verdict: Verdict, chosen: str) -> None:
        why = verdict.reason or f"OpenVINO is {verdict.speedup:.2f} times as fast"
        self.events.emit(
            EngineChosen(
                engine=chosen,
                graph=graph.name,
                reason=why,
                speedup=verdict.speedup,
                agreement=verdict.agreement,
            )
        )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One graph on both engines, one after the other: never are both in memory."""

    engines: Engines
    graph: Path
    pooling: str | None
    probes: Callable[[], Sequence[Batch]]
    onnx: Callable[[], Backend]

    def outcome(self) -> tuple[Verdict, Backend | None]:
        """The verdict, and the candidate where it was opened for it."""
        key = self._key()
        known = self.engines.trials.recall(key, unfinished=not self.engines.must_be_openvino)
        if known is not None:
            return known, None
        with self.engines.trials.under_way(key) as settle:
            verdict, backend = self._run()
            settle(verdict)
        return verdict, backend

    def open_candidate(self) -> Backend:
        engines = self.engines
        return engines.openvino.open(
            self.graph,
            threads=engines.threads,
            numbers=engines.numbers(),
            pooling=self.pooling,
            precision="int8" if engines.precision == "int8" else "",
        )

    def _run(self) -> tuple[Verdict, Backend | None]:
        probes, clock = self.probes(), self.engines.clock
        with closing(self.onnx()) as reference:
            try:
                expected = run_probes(reference, probes, clock=clock)
            except ResilientAIError as exc:  # it may still serve what is shorter, or asks for less
                return Verdict(reason=f"there is nothing to compare with: {exc}"), None
        trim_heap()
        try:
            candidate = self.open_candidate()
        except ResilientAIError as exc:
            return Verdict(reason=str(exc)), None
        try:
            found = run_probes(candidate, probes, clock=clock)
            return judge(expected, found, probes, limit=self.engines.limit(probes[0].task)), candidate
        except ResilientAIError as exc:
            candidate.close()
            return Verdict(reason=str(exc)), None
        except BaseException:
            candidate.close()
            raise

    def _key(self) -> dict[str, str]:
        engines = self.engines
        return {
            "cpu": cpu_identity(),
            "threads": str(engines.threads),
            "onnxruntime": runtime_version(),
            "openvino": str(engines.openvino.version()),
            "precision": engines.precision,
            "limit": str(engines.agreement),
            "graph": str(self.graph.absolute()),
            "stamp": _stamp(self.graph),
        }


def _stamp(graph: Path) -> str:
    """Changes when the graph does, or the file with its weights."""
    return " ".join(f"{each.st_size}:{each.st_mtime_ns}" for each in stored(graph))
