"""From files on disk to a model that serves: graph, session, tokenizer, backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resilient_ai._inference.backend import OrtBackend
from resilient_ai._inference.session import GpuOptions, Session, gpu_is_installed
from resilient_ai._inference.tokens import TextEncoder
from resilient_ai._models.graphs import ensure_graph
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai.errors import ConfigurationError, DeviceUnavailable, ModelCorrupt
from resilient_ai.values import Backend

__all__ = ["Assembler"]


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes a `HostedModel` of an `InstalledModel`; call it with one.

    `threads` is for one run on the CPU. `max_tokens` caps every model's own limit. `gpu` None
    means that no GPU is asked for; where one is asked for and cannot be had, the CPU serves and
    `on_missing_gpu` is told why.
    """

    threads: int
    max_tokens: int
    limits: BatchLimits
    precision: str
    gpu: GpuOptions | None
    on_missing_gpu: Callable[[str], None]

    def __call__(self, installed: InstalledModel) -> HostedModel:
        self._check_precision(installed)
        card = installed.card
        encoder = TextEncoder.load(
            installed.file("tokenizer"),
            max_tokens=min(card.max_tokens, self.max_tokens),
            query_share=card.query_share,
            with_types=card.type_ids,
            vocabulary=_vocabulary(installed),
        )
        return HostedModel(card, encoder, self._backend(installed), self.limits)

    def _backend(self, installed: InstalledModel) -> Backend:
        graph, fuse = _graph(installed)
        pooling = installed.card.pooling
        if self.gpu is not None and gpu_is_installed():
            try:
                session = Session(graph, threads=1, gpu=self.gpu, fuse=fuse)
                return OrtBackend(session, device="gpu", pooling=pooling)
            except DeviceUnavailable as exc:
                self.on_missing_gpu(str(exc))
        elif self.gpu is not None:
            self.on_missing_gpu(
                'the installed ONNX Runtime has no GPU support: pip install "resilient-ai[gpu]"'
            )
        return OrtBackend(Session(graph, threads=self.threads, fuse=fuse), device="cpu", pooling=pooling)

    def _check_precision(self, installed: InstalledModel) -> None:
        if self.precision not in {"auto", "fp32"}:
            raise ConfigurationError(
                f"AI_PRECISION={self.precision} is not available: {installed.card.name!r} is there in fp32 "
                "only. Set AI_PRECISION to auto or fp32."
            )


def _graph(installed: InstalledModel) -> tuple[Path, bool]:
    """The graph to run, and whether ONNX Runtime may still rewrite it.

    Graphs built here are in their final form; published ones gain from the runtime's fusions.
    """
    if installed.body == "graph":
        return installed.file("graph"), True
    card = installed.card
    graph = ensure_graph(
        installed.folder,
        installed.cache_dir,
        family=card.family,
        pooling=card.pooling,
        head="embedding" if card.kind == "embedding" else "score",
        token_outputs=True if card.kind == "embedding" else None,
    )
    return graph, False


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
