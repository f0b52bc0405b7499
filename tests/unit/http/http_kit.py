"""A real service on fake devices, and a client that speaks to it without a network."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

import httpx
import numpy as np

from resilient_ai._adapters.http.app import build_app
from resilient_ai._models.cards import ModelCard
from resilient_ai._models.installed import InstalledModel
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai.aio import AsyncAIService
from resilient_ai.settings import AISettings
from resilient_ai.testing import FakeBackend
from resilient_ai.values import Tokens

DIMENSION = 8
LONGEST = 16

EMBEDDER = ModelCard(
    name="tiny-embedder",
    kind="embedding",
    family="bert",
    dimension=DIMENSION,
    max_tokens=LONGEST,
    pooling="mean",
    aliases=("org/tiny", "tiny"),
    query_prompt="{instruction}: {text}",
    default_instruction="find",
)
RERANKER = ModelCard(
    name="tiny-judge", kind="reranker", family="bert", score="sigmoid", aliases=("org/judge",)
)


class WordEncoder:
    """One token a word; what is longer than LONGEST is cut."""

    def encode(self, texts):
        rows = [[crc32(word.encode()) % 1000 + 1 for word in text.split()] or [0] for text in texts]
        kept = [row[:LONGEST] for row in rows]
        return Tokens(
            ids=np.array([number for row in kept for number in row], np.int64),
            offsets=np.cumsum([0, *map(len, kept)]),
            truncated=np.array([len(row) > LONGEST for row in rows], np.bool_),
        )

    def encode_pairs(self, pairs):
        return self.encode([f"{query} {document}" for query, document in pairs])


def by_length(batch):
    """Scores that tests can foresee: the longer the pair, the higher."""
    return batch.lengths[:, None].astype(np.float32)


class Devices:
    """What the service of these tests computes with; `missing`: a better device should be there."""

    def __init__(self, *, missing=False):
        self.missing = missing
        self.encoder = WordEncoder()
        self.embedder = FakeBackend("cpu", DIMENSION)
        self.judge = FakeBackend("cpu", compute=by_length)

    def load(self, installed):
        card = installed.card
        backend = self.embedder if card.kind == "embedding" else self.judge
        manager = FallbackManager([backend], missing=self.missing)
        return HostedModel(card, self.encoder, manager, BatchLimits(512, 32))


def make_service(devices=None, **settings):
    """A service whose two models need no files."""
    devices = devices or Devices()
    names = {"model_name": EMBEDDER.name, "reranker_name": RERANKER.name}
    service = AsyncAIService(AISettings.load(environ={}, **{**names, **settings}))
    service.registry.register(EMBEDDER)
    service.registry.register(RERANKER)
    service.registry._loader = devices.load
    service.registry.store.ensure = lambda card, **_: _without_files(card)
    return service


def _without_files(card):
    return InstalledModel(card, Path(), "weights", {}, {}, "nowhere", None, Path())


def client_of(app):
    """A client of an application; what it breaks with is answered, not raised."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


class Gate:
    """Holds the first batches of a backend until `release`; `entered` says that one has come."""

    def __init__(self, backend):
        self.entered = threading.Event()
        self._released = threading.Event()
        backend._before = self._hold

    def _hold(self, _):
        self.entered.set()
        assert self._released.wait(30)

    async def reached(self):
        """Wait until a batch is held."""
        assert await asyncio.to_thread(self.entered.wait, 30)

    def release(self):
        self._released.set()


@asynccontextmanager
async def connected(devices=None, *, bodies=None, **settings):
    """A client of a service with both models loaded."""
    async with make_service(devices, **settings) as service:
        await service.load()
        async with client_of(build_app(service, bodies=bodies)) as client:
            yield client
