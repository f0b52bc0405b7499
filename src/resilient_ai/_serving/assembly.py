"""From files on disk to a model that serves: graph, session, tokenizer, backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import Session
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.canary import CANARY_TEXTS, canary_batches, default_limit
from resilient_ai._serving.devices import Devices, warm_up_shapes
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hints import Hints
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai._serving.threads import background
from resilient_ai._telemetry.events import EventBus
from resilient_ai._workers.backend import WorkerBackend
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.errors import ConfigurationError, DeviceUnavailable, ModelCorrupt, ResilientAIError
from resilient_ai.values import Backend, Batch

__all__ = ["Assembler"]


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes a `HostedModel` of an `InstalledModel`; call it with one.

    `threads` is for one run on the CPU. `max_tokens` caps every model's own limit.
    `token_outputs` keeps token vectors in the graph for late interaction. `hints` remember what fits
    into the devices' memory. Where a GPU is asked for and cannot be had, the CPU serves and
    `on_missing_gpu` is told why.
    """

    threads: int
    max_tokens: int
    limits: BatchLimits
    precision: str
    token_outputs: bool
    devices: Devices
    hints: Hints
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
        budget = max(self._token_budget, self.limits.token_budget)
        limits = BatchLimits(budget if manager.guarded else self.limits.token_budget, self.limits.max_rows)
        return HostedModel(card, encoder, manager, limits, prober)

    def _manager(self, installed: InstalledModel) -> FallbackManager:
        spec = self._spec(installed)
        # A worker takes about as long to start as the session on the CPU.
        opening = background(partial(self._open_first, spec), f"resilient-ai-open-{spec.name}")
        session = Session(Path(spec.graph), threads=self.threads, fuse=spec.fuse)
        cpu = OrtBackend(session, device="cpu", pooling=spec.pooling)
        first = opening.result()
        missing = not first and self.devices.required
        ceilings = {each.device: self._ceiling(each, spec) for each in first}
        ceilings["cpu"] = Ceiling(most=self.limits.token_budget)
        return FallbackManager(
            [first, cpu] if first else [cpu],
            self.policy,
            missing=missing,
            ceilings=ceilings,
            events=self.events,
        )

    def _ceiling(self, device: Backend, spec: ModelSpec) -> Ceiling:
        """The largest batches of a device, as far as its memory is known from earlier runs."""
        card = device.state().card if isinstance(device, WorkerBackend) else None
        return self.hints.ceiling(
            device=device.device,
            card=str(card["name"]) if card else "",
            graph=Path(spec.graph),
            most=self._token_budget,
        )

    @property
    def _token_budget(self) -> int:
        """For one batch on the first device."""
        return self.devices.token_budget or self.limits.token_budget

    def _open_first(self, spec: ModelSpec) -> list[Backend]:
        """The devices before the CPU; what cannot be used is told, and left out where it may be."""
        try:
            opened = self.devices.open(spec)
        except DeviceUnavailable as exc:
            self.on_missing_gpu(str(exc))
            return []
        return [backend for backend in opened if self.devices.required or self._is_usable(backend)]

    def _is_usable(self, backend: Backend) -> bool:
        """Whether a device is there at the start; one that is there and fails may come back."""
        if not isinstance(backend, WorkerBackend):
            return True
        try:
            backend.prepare()
        except DeviceUnavailable as exc:
            self.on_missing_gpu(str(exc))
            backend.close()
            return False
        except ResilientAIError:
            return True
        return True

    def _spec(self, installed: InstalledModel) -> ModelSpec:
        graph, fuse = self._graph(installed)
        card = installed.card
        return ModelSpec(
            name=card.name,
            graph=str(graph.absolute()),
            task="score" if card.kind == "reranker" else "embed",
            pooling=card.pooling,
            fuse=fuse,
            vocabulary=_vocabulary(installed),
            shapes=warm_up_shapes(
                longest=min(card.max_tokens, self.max_tokens),
                token_budget=self._token_budget,
                max_rows=self.limits.max_rows,
                buckets=self.devices.buckets,
            ),
        )

    def _canaries(self, card: ModelCard, encoder: TextEncoder, max_tokens: int) -> tuple[Batch, ...]:
        reranker = card.kind == "reranker"
        pairs = list(pairwise(CANARY_TEXTS))
        return canary_batches(
            encoder.encode_pairs(pairs) if reranker else encoder.encode(CANARY_TEXTS),
            model=card.name,
            task="score" if reranker else "embed",
            longest=max_tokens,
            token_budget=self._token_budget,
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
