"""What the tests of the serving core build on: words as tokens, hosted fakes, engines without models."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import MappingProxyType

import numpy as np

from resilient_ai._inference.buffers import BufferPool
from resilient_ai._models.cards import ModelCard, ModelFile
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving.cache import VectorCache
from resilient_ai._serving.engine import Engine
from resilient_ai._serving.fallback import FallbackManager
from resilient_ai._serving.hosting import BatchLimits, HostedModel
from resilient_ai._serving.jobs import Job, Lane
from resilient_ai.errors import InvalidInput
from resilient_ai.testing import FakeBackend
from resilient_ai.values import Tokens, Vectors

DIMENSION = 16
LIMITS = BatchLimits(token_budget=512, max_rows=32)
FILES = (ModelFile("model.safetensors", "weights"), ModelFile("tokenizer.json", "tokenizer"))

EMBEDDER = ModelCard(
    name="fake-embedder",
    kind="embedding",
    family="onnx",
    dimension=DIMENSION,
    query_prompt="Instruct: {instruction} Query: {text}",
    default_instruction="find it",
    aliases=("somebody/fake-embedder",),
    files=FILES,
)
RERANKER = ModelCard(name="fake-reranker", kind="reranker", family="onnx", score="sigmoid", files=FILES)


class WordEncoder:
    """Words as tokens: an encoder whose ids can be told by hand. At most `most` tokens a text."""

    def __init__(self, most=512):
        self.most = most

    control_tokens = MappingProxyType({"[CLS]": 101, "[SEP]": 102})

    def encode(self, texts):
        rows = [self._ids(text) for text in texts]
        kept = [row[: self.most] for row in rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        offsets[1:] = np.cumsum([len(row) for row in kept], dtype=np.int64)
        ids = np.array([token for row in kept for token in row], np.int64)
        truncated = [len(row) > self.most for row in rows]
        return Tokens(ids, offsets, np.array(truncated, np.bool_))

    def encode_pairs(self, pairs):
        return self.encode([f"{query} [SEP] {document}" for query, document in pairs])

    @staticmethod
    def _ids(text):
        try:
            raw = text.encode()
        except UnicodeEncodeError as exc:
            raise InvalidInput("a text holds a lone surrogate") from exc
        return [101, *(1000 + zlib.crc32(word) % 29000 for word in raw.split()), 102]


ENCODER = WordEncoder()


def lane(backend, *, task="embed", encoder=ENCODER, limits=LIMITS, shared=None):
    return Lane(
        model="fake",
        task=task,
        backend=backend,
        encode=encoder.encode,
        token_budget=limits.token_budget,
        max_rows=limits.max_rows,
        shared=shared,
    )


def job(items, on, **options):
    """A routed job whose answer is its `Rows`."""
    made = Job(**options)
    made.route(on, items, lambda rows: rows)
    return made


def right_vectors(texts, *, model="fake", task="embed", dimension=DIMENSION):
    """What a `FakeBackend` must answer for these texts, each alone."""
    from resilient_ai.testing import batch_of

    fake = FakeBackend("cpu", dimension)
    rows = [batch_of(ENCODER.encode([text]).ids.tolist(), model=model, task=task) for text in texts]
    return np.concatenate([fake.answer(row).values for row in rows])


class Switching:
    """A backend whose batches alternate between the given backends; tells each one's device."""

    device = "switching"

    def __init__(self, *backends, degraded=()):
        self.backends = backends
        self.degraded = degraded
        self.turn = 0

    def run(self, batch):
        backend = self.backends[self.turn % len(self.backends)]
        self.turn += 1
        answer = backend.run(batch)
        return Vectors(answer.values, answer.device, degraded=answer.device in self.degraded)

    def close(self):
        for backend in self.backends:
            backend.close()


def registry(root: Path, load, keep=None):
    """A registry that knows the two fake cards; `load(card)` makes a `HostedModel`."""
    known = ModelRegistry(root, offline=True, loader=lambda installed: load(installed.card), keep=keep)
    for card in (EMBEDDER, RERANKER):
        (root / card.name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (root / card.name / file.path).write_text("{}")
        known.register(card)
    return known


def hosted(card, backend=None):
    """A model on one device, which is a fake that goes well unless another is given."""
    backend = FakeBackend("cpu", DIMENSION) if backend is None else backend
    return HostedModel(card, ENCODER, FallbackManager([backend]), LIMITS)


def engine(
    root: Path, backend=None, *, load=None, queue_size=1024, cache_size=1000, runners=1, keep=None, **options
):
    """An engine over fakes; everything that is not given goes well."""
    load = load or (lambda card: hosted(card, backend))
    return Engine(
        registry(root, load, keep),
        BufferPool(1 << 24),
        VectorCache(cache_size),
        queue_size=queue_size,
        runners=runners,
        **options,
    )


def run_python(code: str, *arguments, timeout=60, **environment):
    """Run a program in a process of its own; returns what `subprocess.run` does."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def service_settings(root: Path, **values):
    """Settings that name the two fakes and read nothing from outside."""
    from resilient_ai.settings import AISettings

    names = {
        "model_name": EMBEDDER.name,
        "reranker_name": RERANKER.name,
        "model_path": root,
        "use_gpu": "never",
    }
    return AISettings.load(environ={}, cwd=root, **names | values)


def fake_service(root: Path, backend=None, *, kind=None, engine_options=None, **values):
    """An `AIService` (or `kind`) whose models are fakes; everything above the models is real."""
    from unittest import mock

    from resilient_ai import service

    def build(*_):
        return engine(root, backend, **(engine_options or {}))

    # Also after a fork, when the service builds its engine anew; so it is not put back.
    mock.patch.object(service, "build_engine", build).start()
    return (kind or service.AIService)(service_settings(root, **values))
