"""Where the time of a graph goes: each kind of operation's share, and what its products reach.

python benchmarks/speed.py --only minilm --profile
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speed.bench import Bench

__all__ = ["OpTime", "profile_model", "profile_reranker", "summarise"]

_PRODUCTS = frozenset(
    {"MatMul", "FusedMatMul", "Gemm", "MatMulIntegerToFloat", "MatMulInteger", "MatMulNBits"}
)

_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})


@dataclass(frozen=True, slots=True)
class OpTime:
    """All nodes of one operation: how often they ran, for how long, and how much they multiplied."""

    operation: str
    runs: int
    seconds: float
    flop: float

    @property
    def gflops(self) -> float | None:
        return self.flop / self.seconds / 1e9 if self.flop and self.seconds else None


def summarise(events: Iterable[Mapping[str, Any]]) -> list[OpTime]:
    """The operations of ONNX Runtime's profile, the longest first."""
    runs: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    flop: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        said = event["args"]
        name = said["op_name"]
        runs[name] += 1
        seconds[name] += event["dur"] / 1e6
        flop[name] += _flop(name, said)
    found = [OpTime(name, runs[name], seconds[name], flop[name]) for name in runs]
    return sorted(found, key=lambda each: -each.seconds)


def _flop(name: str, said: Mapping[str, Any]) -> float:
    """Of one run, padding included; 0 for what is no product."""
    inputs, outputs = (_shapes(said.get(key, [])) for key in ("input_type_shape", "output_type_shape"))
    if not inputs or not outputs:
        return 0.0
    if name in _PRODUCTS:
        return 2.0 * math.prod(outputs[0]) * inputs[0][-1]
    if name in _ATTENTIONS and len(outputs[0]) == 3:
        batch, length, hidden = outputs[0]
        pairs = 4.0 * batch * length * length * hidden
        if name == "Attention" and len(inputs[1]) == 2:  # the fused one, with the projections in it
            return pairs + 2.0 * batch * length * math.prod(inputs[1])
        return pairs / 2 if name == "GroupQueryAttention" else pairs
    return 0.0


def _shapes(said: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    return [next(iter(each.values())) for each in said]


def profile_model(bench: Bench, root: Path, model: str, texts: Sequence[str]) -> None:
    """The embedder's fp32 and int8 graphs in a service, on these texts."""
    _profile(bench, {"root": root, "model_name": model}, model, "embed", (list(texts),))


def profile_reranker(bench: Bench, root: Path, model: str, query: str, documents: Sequence[str]) -> None:
    options = {"root": root, "model_name": "all-MiniLM-L6-v2", "reranker_name": model}
    _profile(bench, options, model, "rerank", (query, list(documents)))


def _profile(bench: Bench, options: dict[str, Any], model: str, method: str, given: tuple[Any, ...]) -> None:
    from speed.bench import INT8, OURS, ours
    from speed.contestants import Unavailable
    from speed.guests import Guest, GuestFailed

    for name in (OURS, INT8):
        invitation = ours(name, **options)
        profiled = type(invitation)(name, "speed.profile:Profiled", invitation.options)
        try:
            with Guest(profiled) as guest:
                guest.hold(method=method, given=given, folder=str(bench.folder))
                found: list[OpTime] = guest.answer("profile", "method", "given", "folder")
        except (Unavailable, GuestFailed) as exc:
            bench.absent(f"profile of {name}", str(exc).strip().splitlines()[-1])
            continue
        whole = sum(each.seconds for each in found)
        rows = [
            {
                "operation": each.operation,
                "runs": each.runs,
                "seconds": each.seconds,
                "share": each.seconds / whole,
                "GFLOP/s": each.gflops,
            }
            for each in found
            if each.seconds > whole / 1_000
        ]
        bench.report.table(f"Profile: {model}, {name}", rows)


class Profiled:
    """A service whose one session tells how long each node takes; a contestant of its own."""

    def __init__(self, **options: Any) -> None:
        from speed.contestants.ours import Ours

        self._ours = Ours(**options)

    def profile(self, method: str, given: tuple[Any, ...], folder: str) -> list[OpTime]:
        from resilient_ai._inference import session

        (only,) = session._sessions
        recipe = only._recipe
        values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
        getattr(self._ours, method)(*given)
        only._session = _profiling(type(recipe), folder)(**values).make()
        getattr(self._ours, method)(*given)
        path = Path(only._session.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return summarise(events)


def _profiling(kind: Any, folder: str) -> Any:
    """The library's own way to a session, with a profile written on the side."""

    class Profiling(kind):
        def _options(self, runtime: Any) -> Any:
            options = kind._options(self, runtime)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            return options

    return Profiling
