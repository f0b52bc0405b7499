"""From files on disk to a model that serves: graph, session, tokenizer, backend."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from resilient_ai._inference.runtime import load_runtime
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.canary import CANARY_TEXTS, canary_batches, default_limit
from resilient_ai._serving.choosing import GraphChoice, Precision, choose_graph, require_cuda
from resilient_ai._serving.cpu import Start, open_cpu, tokens_at_once
from resilient_ai._serving.devices import Devices, no_device, warm_up_shapes
from resilient_ai._serving.encoders import make_encoder, make_gradual_encoder, vocabulary_size
from resilient_ai._serving.engines import Engines
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hints import Hints
from resilient_ai._serving.hosting import BatchLimits, Encoder, HostedModel, close_encoder
from resilient_ai._serving.pieces import Ceiling
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai._serving.threads import background
from resilient_ai._telemetry.events import EventBus
from resilient_ai._workers.host.backend import WorkerBackend
from resilient_ai._workers.messages import ModelSpec
from resilient_ai.errors import DeviceUnavailable, ResilientAIError
from resilient_ai.values import Backend, Batch

__all__ = ["Assembler"]


@dataclass(frozen=True, slots=True)
class Assembler:
    """Makes a `HostedModel` of an `InstalledModel`; call it with one.

    `threads` is for one run on the CPU, `start` how it is loaded there, `spin` whether they wait awake,
    and `engines` choose what computes. `max_tokens` caps every model's own limit. `token_outputs` keeps
    token vectors in the graph for late interaction. `hints` remember what fits into the devices' memory.
    Where a GPU is asked for and cannot be had, the CPU serves and `on_missing_gpu` is told why.
    """

    threads: int
    max_tokens: int
    limits: BatchLimits
    precision: Precision
    start: Start
    spin: bool
    engines: Engines
    token_outputs: bool
    devices: Devices
    hints: Hints
    policy: FallbackPolicy
    events: EventBus
    on_missing_gpu: Callable[[str], None]

    def __call__(self, installed: InstalledModel) -> HostedModel:
        card = installed.card
        graph = self._on_cpu(installed)
        encoder, manager = self._load(installed, graph)
        budget = max(self._token_budget if manager.guarded else 1, int(manager.last.ceiling.tokens))
        limits = BatchLimits(budget, self.limits.max_rows)
        return HostedModel(
            card,
            encoder,
            manager,
            limits,
            self._prober(card, encoder, manager, graph) if manager.guarded else None,
            nbytes=None if graph.path in installed.files.get("graph", ()) else graph.nbytes,
            shares_prefix=graph.shares_prefix,
        )

    def _load(self, installed: InstalledModel, graph: GraphChoice) -> tuple[Encoder, FallbackManager]:
        """The tokenizer and what runs the graph; a failure of either leaves nothing behind.

        Reading a tokenizer keeps Python's lock, making a session needs it only to begin: so the session
        goes first, on a thread of its own, with its runtime imported already.
        """
        load_runtime()
        read: Future[Encoder] = Future()
        making = background(
            partial(self._manager, installed, graph, read.result), f"resilient-ai-open-{installed.card.name}"
        )
        try:
            read.set_result(self._encoder(installed))
        except BaseException as exc:
            read.set_exception(exc)
            wait([making])
            _close_made(making)
            raise
        encoder = read.result()
        try:
            return encoder, making.result()
        except BaseException:
            # Who is interrupted while waiting leaves it under way.
            making.add_done_callback(_close_made)
            close_encoder(encoder)
            raise

    def _encoder(self, installed: InstalledModel) -> Encoder:
        card = installed.card
        # Pairs are long, and their prompt has control tokens that are none in texts.
        at_once = self.start == "steady" or card.kind == "reranker"
        return (make_encoder if at_once else make_gradual_encoder)(
            installed, min(card.max_tokens, self.max_tokens)
        )

    def _prober(
        self, card: ModelCard, encoder: Encoder, manager: FallbackManager, graph: GraphChoice
    ) -> Prober:
        prober = Prober(
            manager,
            self._canaries(card, encoder, self._token_budget, shares_prefix=graph.shares_prefix),
            limit=self.policy.agreement or default_limit(self._numbers, card.kind),
        )
        prober.start()
        return prober

    def _manager(
        self, installed: InstalledModel, graph: GraphChoice, encoder: Callable[[], Encoder]
    ) -> FallbackManager:
        spec = self._spec(installed)
        opening = self._opening(installed, spec)
        try:
            cpu = open_cpu(
                graph,
                threads=self.threads,
                pooling=spec.pooling,
                start=self.start,
                spin=self.spin,
                engines=self.engines,
                probes=partial(self._probes, installed.card, encoder, shares_prefix=graph.shares_prefix),
            )
        except BaseException:
            # A worker that serves another model would hold on to this one.
            for backend in opening.result():
                backend.close()
            raise
        first = opening.result()
        missing = not first and self.devices.required
        ceilings = {each.device: self._ceiling(each, spec) for each in first}
        ceilings["cpu"] = Ceiling(most=tokens_at_once(cpu, graph, self.limits.token_budget))
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
    def _numbers(self) -> str:
        """What the less precise of the devices may compute in."""
        if self.precision == "int8":
            return "int8"
        return "bf16" if self.engines.may_compute_in_bf16 else self.precision

    @property
    def _token_budget(self) -> int:
        """For one batch on the first device."""
        return self.devices.token_budget or self.limits.token_budget

    def _opening(self, installed: InstalledModel, spec: ModelSpec) -> Future[list[Backend]]:
        """The devices before the CPU, on their way: a worker takes about as long as the CPU's session."""
        open_first = partial(self._open_first, installed, spec)
        if self.devices.open is not no_device:
            return background(open_first, f"resilient-ai-devices-{spec.name}")
        # Changing threads for nothing would let the tokenizer have Python's lock before the session.
        opened: Future[list[Backend]] = Future()
        opened.set_result(open_first())
        return opened

    def _open_first(self, installed: InstalledModel, spec: ModelSpec) -> list[Backend]:
        """The devices before the CPU; what cannot be used is told, and left out where it may be."""
        try:
            if self.devices.cuda and installed.body == "graph":
                require_cuda(Path(spec.graph))
            opened = self.devices.open(spec)
        except DeviceUnavailable as exc:
            self.on_missing_gpu(str(exc))
            return []
        if self.devices.required:
            return list(opened)
        # Cards start together; each takes as long as one does.
        usable = [
            background(partial(self._is_usable, each), f"resilient-ai-{each.device}") for each in opened
        ]
        return [backend for backend, found in zip(opened, usable, strict=True) if found.result()]

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
        """The model as the devices before the CPU run it."""
        # Of int8 the GPU has the wrong kernels and no need: it runs the graph that it always would.
        graph = self._choose(installed, "auto" if self.precision == "int8" else self.precision)
        card = installed.card
        return ModelSpec(
            name=card.name,
            graph=str(graph.path.absolute()),
            task="score" if card.kind == "reranker" else "embed",
            pooling=card.pooling,
            fuse=graph.fuse,
            vocabulary=vocabulary_size(installed),
            shapes=warm_up_shapes(
                longest=min(card.max_tokens, self.max_tokens),
                token_budget=self._token_budget,
                max_rows=self.limits.max_rows,
                buckets=self.devices.buckets,
            ),
        )

    def _probes(
        self, card: ModelCard, encoder: Callable[[], Encoder], *, shares_prefix: bool
    ) -> tuple[Batch, ...]:
        """What engines are tried with on the CPU: the canaries, in batches of its size."""
        return self._canaries(card, encoder(), self.limits.token_budget, shares_prefix=shares_prefix)

    def _canaries(
        self, card: ModelCard, encoder: Encoder, token_budget: int, *, shares_prefix: bool
    ) -> tuple[Batch, ...]:
        reranker = card.kind == "reranker"
        pairs = list(pairwise(CANARY_TEXTS))
        return canary_batches(
            encoder.encode_pairs(pairs) if reranker else encoder.encode(CANARY_TEXTS),
            model=card.name,
            task="score" if reranker else "embed",
            longest=min(card.max_tokens, self.max_tokens),
            token_budget=token_budget,
            max_rows=self.limits.max_rows,
            shared=encoder.encode_shared(CANARY_TEXTS[0], CANARY_TEXTS[1:]) if shares_prefix else None,
        )

    def _choose(self, installed: InstalledModel, precision: Precision) -> GraphChoice:
        # One graph for all who may run it: a second one, as large, would be for little.
        shares = self.devices.open is not no_device or self.engines.may_be_openvino
        device: Literal["any", "cpu"] = "any" if shares or self.precision == "int8" else "cpu"
        return choose_graph(installed, precision, token_outputs=self.token_outputs, device=device)

    def _on_cpu(self, installed: InstalledModel) -> GraphChoice:
        """Half precision is slower than full on a CPU, so fp16 is for the devices before it alone."""
        return self._choose(installed, "auto" if self.precision == "fp16" else self.precision)


def _close_made(making: Future[FallbackManager]) -> None:
    """Close what was made, if anything was."""
    if making.exception() is None:
        making.result().close()
