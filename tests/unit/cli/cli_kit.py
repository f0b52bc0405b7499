"""A service that computes nothing, and a way to run the program around it."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace

import numpy as np
from typer.testing import CliRunner

from resilient_ai import Embeddings, InvalidInput, RankedDocument, Ranking, similarity
from resilient_ai._adapters.cli import app
from resilient_ai._adapters.cli.session import Session

DIMENSIONS = 4
MAX_CHARACTERS = 20


def vector_of(text):
    """The vector the fake service gives a text: different for different texts, of length 1."""
    values = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSIONS).astype(np.float32)
    return values / np.linalg.norm(values)


@dataclass
class FakeRegistry:
    available: set[str]
    pulled: list[str] = field(default_factory=list)

    def is_available(self, name):
        return name in self.available

    def get(self, name):
        return SimpleNamespace(name=name)

    def pull(self, name, *, body=None, progress=None):
        self.pulled.append(name)
        self.available.add(name)


@dataclass
class FakeService:
    """Answers from `vector_of`; `fail_at` makes the part that begins at that text raise `error`."""

    settings: object = None
    fail_at: int | None = None
    error: BaseException | None = None
    status: str = "healthy"
    missing: set[str] = field(default_factory=set)
    calls: list[tuple[str, dict]] = field(default_factory=list)
    closed: int = 0

    def make(self, settings):
        self.settings = settings
        names = {settings.model_name, settings.reranker_name}
        self.registry = FakeRegistry(names - self.missing)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed += 1

    def load(self, *, timeout=None):
        self.calls.append(("load", {"timeout": timeout}))

    def health(self):
        values = {"status": self.status, "models": ({"name": "m", "device": "cpu"},), "warnings": ()}
        return SimpleNamespace(status=self.status, to_dict=lambda: values)

    def embed(self, texts, **options):
        self.calls.append(("embed", options))
        return self._answer(list(texts), options)

    def embed_query(self, text, **options):
        self.calls.append(("embed_query", options))
        return self._answer([text], options).vectors[0]

    def embed_stream(self, texts, *, chunk_size, **options):
        self.calls.append(("embed_stream", options))
        texts, start = iter(texts), 0
        while chunk := list(islice(texts, chunk_size)):
            if self.fail_at is not None and start >= self.fail_at:
                raise self.error
            yield self._answer(chunk, options)
            start += len(chunk)

    def rerank(self, query, documents, *, top_k=None, **options):
        self.calls.append(("rerank", {"top_k": top_k, **options}))
        if not documents:
            raise InvalidInput("no documents")
        best, scores = similarity.top_k(
            vector_of(query), [vector_of(each) for each in documents], top_k or 99
        )
        return Ranking(
            tuple(RankedDocument(int(i), float(s), documents[i]) for i, s in zip(best, scores, strict=True)),
            "fake",
            np.ones(len(documents), np.int64),
            np.zeros(len(documents), bool),
            ("cpu",) * len(documents),
            degraded=False,
            elapsed_ms=1.0,
        )

    def _answer(self, texts, options):
        dimensions = options.get("dimensions") or DIMENSIONS
        vectors = np.array([vector_of(text) for text in texts], np.float32).reshape(-1, DIMENSIONS)
        return Embeddings(
            vectors[:, :dimensions],
            "fake",
            dimensions,
            np.array([len(text) for text in texts], np.int64),
            np.array([len(text) > MAX_CHARACTERS for text in texts], bool),
            ("cpu",) * len(texts),
            degraded=False,
            elapsed_ms=1.0,
        )


def run(service, *arguments, stdin=None):
    """Run the program on a service; stdout, stderr and exit code are on the result."""
    session = Session(make_service=service.make)
    return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin, obj=session)


def rows_of(result):
    """The JSON lines on stdout, each of which has to be one."""
    return [json.loads(line) for line in result.stdout.splitlines()]
