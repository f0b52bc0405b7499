"""From files on disk to a model that serves: graph, session, tokenizer, backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import GpuOptions, Session, gpu_is_installed
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai._resilience.fault_plan import FaultPlan
from resilient_ai._resilience.faults import FaultyBackend
from resilient_ai._serving.canary import CANARY_TEXTS, canary_batches, default_limit
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai._telemetry.events import EventBus
from resilient_ai.errors import ConfigurationError, DeviceUnavailable, ModelCorrupt
from resilient_ai.values import Backend, Batch

__all__ = ["Assembler", "Devices"]


@dataclass(frozen=True, slots=True)
class Devices:
    """Which devices a model gets, best first, before the CPU that is always there.

    `gpu` None means that no GPU is asked for. `required` says that its absence is a degraded
    state. `simulated` puts a CPU session in a GPU's place. `injectable` lets faults be injected
    into the first device, those of `faults` from the start.
    """

    gpu: GpuOptions | None = None
    required: bool = False
    simulated: bool = False
    injectable: bool = False
    faults: FaultPlan | None = None


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes a `HostedModel` of an `InstalledModel`; call it with one.

    `threads` is for one run on the CPU. `max_tokens` caps every model's own limit.
    `token_outputs` keeps token vectors in the graph for late interaction. Where a GPU is asked
    for and cannot be had, the CPU serves and `on_missing_gpu` is told why.
    """

    threads: int
    max_tokens: int
    limits: BatchLimits
    precision: str
    token_outputs: bool
    devices: Devices
    policy: FallbackPolicy
    events: EventBus
    on_missing_gpu: Callable[[str], None]

    def __call__(self, installed: InstalledModel) -> HostedModel:
        self._check_precision(installed)
        card = installed.card
        max_tokens = min(card.max_tokens, self.max_tokens)
        encoder = TextEncoder.load(
            installed.file("tokenizer"),
            max_tokens=max_tokens,
            query_share=card.query_share,
            with_types=card.type_ids,
            vocabulary=_vocabulary(installed),
        )
        manager = self._manager(installed)
        prober = Prober(
            manager,
            self._canaries(card, encoder, max_tokens),
            limit=self.policy.agreement or default_limit(self.precision),
        )
        if manager.guarded:
            prober.start()
        return HostedModel(card, encoder, manager, self.limits, prober)

    def _manager(self, installed: InstalledModel) -> FallbackManager:
        graph, fuse = self._graph(installed)
        open_cpu = partial(self._cpu, graph, installed.card.pooling, fuse)
        first = (
            open_cpu("simulated")
            if self.devices.simulated
            else self._gpu(graph, installed.card.pooling, fuse)
        )
        if first is not None and self.devices.injectable:
            first = FaultyBackend(first, self.devices.faults)
        missing = first is None and self.devices.required
        backends = [open_cpu("cpu")] if first is None else [first, open_cpu("cpu")]
        return FallbackManager(backends, self.policy, missing=missing, events=self.events)

    def _cpu(self, graph: Path, pooling: str | None, fuse: bool, device: str) -> Backend:  # noqa: FBT001 - private
        return OrtBackend(Session(graph, threads=self.threads, fuse=fuse), device=device, pooling=pooling)

    def _gpu(self, graph: Path, pooling: str | None, fuse: bool) -> Backend | None:  # noqa: FBT001 - private
        if self.devices.gpu is None:
            return None
        if not gpu_is_installed():
            self.on_missing_gpu(
                'the installed ONNX Runtime has no GPU support: pip install "resilient-ai[gpu]"'
            )
            return None
        try:
            session = Session(graph, threads=1, gpu=self.devices.gpu, fuse=fuse)
        except DeviceUnavailable as exc:
            self.on_missing_gpu(str(exc))
            return None
        return OrtBackend(session, device="gpu", pooling=pooling)

    def _canaries(self, card: ModelCard, encoder: TextEncoder, max_tokens: int) -> tuple[Batch, ...]:
        reranker = card.kind == "reranker"
        pairs = list(pairwise(CANARY_TEXTS))
        return canary_batches(
            encoder.encode_pairs(pairs) if reranker else encoder.encode(CANARY_TEXTS),
            model=card.name,
            task="score" if reranker else "embed",
            longest=max_tokens,
            token_budget=self.limits.token_budget,
            max_rows=self.limits.max_rows,
        )

    def _graph(self, installed: InstalledModel) -> tuple[Path, bool]:
        """The graph to run, and whether ONNX Runtime may still rewrite it.

        Graphs built here are in their final form; published ones gain from the runtime's fusions.
        """
        if installed.body == "graph":
            return installed.file("graph"), True
        card = installed.card
        embeds = card.kind == "embedding"
        graph = ensure_graph(
            installed.folder,
            installed.cache_dir,
            family=card.family,
            pooling=card.pooling,
            head="embedding" if embeds else "score",
            token_outputs=True if embeds and self.token_outputs else None,
        )
        return graph, False

    def _check_precision(self, installed: InstalledModel) -> None:
        if self.precision not in {"auto", "fp32"}:
            raise ConfigurationError(
                f"AI_PRECISION={self.precision} is not available: {installed.card.name!r} is there in fp32 "
                "only. Set AI_PRECISION to auto or fp32."
            )


def _vocabulary(installed: InstalledModel) -> int | None:
    """How many token ids the model has rows for, as its config.json says; None where it says nothing."""
    config = next((path for path in installed.files.get("config", ()) if path.name == "config.json"), None)
    if config is None:
        return None
    try:
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError) as exc:
        raise ModelCorrupt(f"{config} is not a usable config.json: {exc}") from exc
    return size if isinstance(size, int) else None
