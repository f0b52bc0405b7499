"""A service over fakes whose first device can be made to fail, and calls as traffic notes them."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np

from resilient_ai._adapters.drill.traffic import Call
from resilient_ai._serving.calls import EmbedCall, RerankCall
from resilient_ai._serving.canary import CANARY_TEXTS, canary_batches
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._serving.policy import FallbackPolicy
from resilient_ai._serving.prober import Prober
from resilient_ai.testing import FakeBackend, FaultyBackend
from resilient_ai.values import Embeddings
from serving_kit import DIMENSION, ENCODER, LIMITS, engine

MODEL = "fake-embedder"


class FakeService:
    """An engine over a faulty fake and a fake CPU, with the few methods of a service the drill uses."""

    def __init__(self, settings, folder, *, first=True, cpu=None):
        self.settings = settings
        self._first = first
        self._cpu = cpu or FakeBackend("cpu", DIMENSION)
        self._engine = engine(folder, load=self._host, runners=3, cache_size=0)
        self.registry = self._engine.registry

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._engine.close()

    def subscribe(self, observer):
        return lambda: None

    def load(self):
        self._engine.load(MODEL)

    def health(self):
        return SimpleNamespace(warnings=("it is a fake",))

    def submit_embed(self, texts, *, timeout=None):
        call = EmbedCall(texts, "document", None, None, normalize=True, cache=self._engine.cache)
        return self._submit(call, timeout)

    def submit_rerank(self, query, documents, *, timeout=None):
        return self._submit(RerankCall(query, documents, None, None, raw_scores=False), timeout)

    def _submit(self, call, timeout):
        return self._engine.submit(MODEL, call, timeout=timeout, priority="interactive", progress=None)

    def _host(self, card):
        policy = FallbackPolicy(
            recovery_time=0.05, verify=self.settings.verify, ramp=(0.5, 1.0), ramp_step=1, hang_floor=0.05
        )
        devices = [FaultyBackend(FakeBackend("simulated", DIMENSION)), self._cpu]
        manager = FallbackManager(devices if self._first else devices[1:], policy)
        canaries = canary_batches(
            ENCODER.encode(CANARY_TEXTS),
            model=card.name,
            task="embed",
            longest=64,
            token_budget=512,
            max_rows=32,
        )
        prober = Prober(manager, canaries, limit=0.9999)
        if self._first:
            prober.start()
        return HostedModel(card, ENCODER, manager, LIMITS, prober)


def call(begun, ended, outcome="right", served_by=("cpu",), error=""):
    return Call(begun, ended, outcome, frozenset(served_by), error)


def embeddings(vectors, served_by="cpu"):
    values = np.asarray(vectors, np.float32)
    rows = len(values)
    return Embeddings(
        vectors=values,
        model=MODEL,
        dimensions=values.shape[1],
        token_counts=np.ones(rows, np.int64),
        truncated=np.zeros(rows, np.bool_),
        served_by=(served_by,) * rows,
        degraded=False,
        elapsed_ms=1.0,
    )


def done(answer):
    future = Future()
    future.set_result(answer)
    return future
