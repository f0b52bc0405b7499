"""The service: settings in, vectors and rankings out."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar, Unpack

import numpy as np

from resilient_ai._models.cards import InputType
from resilient_ai._models.registry import ModelRegistry
from resilient_ai._serving import arguments as check
from resilient_ai._serving.calls import Call, EmbedCall, RerankCall
from resilient_ai._serving.dispatcher import on_runner_thread
from resilient_ai._serving.engine import Engine
from resilient_ai._serving.health import Health, Notices, examine
from resilient_ai._serving.hosting import HostedModel
from resilient_ai._serving.jobs import Progress
from resilient_ai._serving.multi import MultiCall
from resilient_ai._telemetry.events import EventBus, Observer
from resilient_ai._telemetry.log import log, set_level
from resilient_ai._telemetry.observers import LogObserver
from resilient_ai.composition import build_engine
from resilient_ai.errors import InvalidInput, Overloaded
from resilient_ai.values import Embeddings, FloatArray, MultiEmbeddings, Priority, Ranking

if TYPE_CHECKING:
    from resilient_ai.settings import AISettings

__all__ = ["AIService", "EmbedOptions", "MultiOptions", "RerankOptions"]

STREAM_CHUNK = 256
STREAM_AHEAD = 2

Answer = TypeVar("Answer")


class EmbedOptions(TypedDict, total=False):
    """What every embedding call may be given.

    `input_type` chooses the model's query or document prompt and `instruction` replaces the task
    in it. `dimensions` keeps the first so many, then normalises again. `normalize` overrides the
    setting AI_NORMALIZE. `timeout` is in seconds and for the whole call, loading included;
    "interactive" goes before "bulk". `progress(done, total)` is called after each batch. `model` names
    another model than the service's own, which is loaded beside it.
    """

    model: str | None
    input_type: InputType
    instruction: str | None
    dimensions: int | None
    normalize: bool | None
    timeout: float | None
    priority: Priority
    progress: Progress | None


class MultiOptions(TypedDict, total=False):
    """What every call for all three kinds of vectors may be given; as for embedding."""

    model: str | None
    input_type: InputType
    instruction: str | None
    timeout: float | None
    priority: Priority
    progress: Progress | None


class RerankOptions(TypedDict, total=False):
    """What every reranking call may be given.

    `top_k` keeps the best so many; `instruction` replaces the task in the model's prompt;
    `raw_scores` gives the logits. The others are as for embedding.
    """

    model: str | None
    top_k: int | None
    instruction: str | None
    raw_scores: bool
    timeout: float | None
    priority: Priority
    progress: Progress | None


class AIService:
    """Embeddings and rerankings from one model pair, for any number of threads at once.

    Construction checks the settings; models load and threads start with the first call that
    needs them, or with `load`. Close it, or use it as a context manager; a service that is
    forgotten closes itself. The child of a fork gets an engine of its own.

    Errors: `InvalidInput` for wrong arguments, `DeadlineExceeded`, `Overloaded`, `ServiceClosed`,
    `ModelNotFound` and `ModelCorrupt` from loading, `DeviceFailed` from running. An error of one
    caller never shows to another.
    """

    def __init__(self, settings: AISettings | None = None) -> None:
        self._settings = settings if settings is not None else _read_settings()
        set_level(self._settings.log_level)
        for unknown in self._settings.unknown:
            if unknown.nearest:
                log.warning(f"{unknown.name} is no setting; did you mean {unknown.nearest}?")
        self._notices = Notices()
        self._events = EventBus()
        self._events.subscribe(LogObserver())
        if self._settings.allow_fault_injection:
            self._notices.add("fault injection is permitted: this service may fail on purpose")
        self._closed = False
        self._switching = threading.Lock()  # held over a whole `use`: one after another
        self._engine, self._close_engine = self._start_engine()
        _services.add(self)

    @classmethod
    def from_env(cls) -> Self:
        """The service as the AI_* environment and the configuration file describe it."""
        return cls()

    @property
    def settings(self) -> AISettings:
        return self._settings

    @property
    def registry(self) -> ModelRegistry[HostedModel]:
        """The models this service knows and those it has loaded."""
        return self._engine.registry

    def load(self, *, timeout: float | None = None) -> None:
        """Load the embedding model, and the reranking model unless it needs none, before the first call."""
        left = self._countdown(timeout)
        for name in self._settings.models:
            self._engine.load(name, left())

    def reload(self, name: str | None = None, *, timeout: float | None = None) -> tuple[str, ...]:
        """Serve the present files of a model, or of all that are loaded, where those have changed.

        The new one is loaded beside the one that serves, checked, and put in its place between two calls:
        none fails or waits, each is answered by one of the two, and the old one is closed after its last.
        Returns the names of what was replaced.

        Raises what is wrong with the new one, the old one goes on serving then; `DeadlineExceeded`
        when it takes longer than `timeout` seconds, while it goes on in the background.
        """
        left = self._countdown(timeout)
        loaded = [model.name for model in self.registry.list_loaded()]
        names = loaded if name is None else [self.registry.get(name).name]
        return tuple(each for each in names if self._engine.reload(each, left()))

    def use(
        self,
        *,
        model_name: str | None = None,
        reranker_name: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Serve with other models from now on, as if the settings had named them.

        They are loaded beside the present ones and checked; then every new call goes to them, while calls
        under way end where they are. What is not named any more is closed after its last call.

        Raises what is wrong with a new one, and changes nothing then.
        """
        left = self._countdown(timeout)
        with self._switching:
            old = self._settings
            new = old.with_models(
                model_name=model_name or old.model_name, reranker_name=reranker_name or old.reranker_name
            )
            self._engine.prove(new.model_name, "embedding", left())
            self._engine.prove(new.reranking_model, "reranker", left())
            self._settings = new
            names_of = self.registry.names_of
            for name in names_of(old.models) - names_of(new.models):
                self._engine.retire(name)

    def embed(self, texts: Iterable[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        """Turn texts into vectors, float32 (n, dimensions), in the order of the texts.

        A text beyond the model's limit is cut and marked in `truncated`; an empty list gives
        (0, dimensions). The options are those of `EmbedOptions`.
        """
        return _wait(self.submit_embed(texts, **options))

    def submit_embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        input_type: InputType = "document",
        instruction: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        timeout: float | None = None,
        priority: Priority = "interactive",
        progress: Progress | None = None,
    ) -> Future[Embeddings]:
        """Start what `embed` does and return its future at once; it can be cancelled until it is done."""
        call = EmbedCall(
            texts=check.check_texts(texts),
            input_type=check.check_input_type(input_type),
            instruction=check.check_instruction(instruction),
            dimensions=dimensions,
            normalize=self._settings.normalize if normalize is None else bool(normalize),
            cache=self._engine.cache,
        )
        return self._submit(call, model, self._embedding_model, timeout, priority, progress)

    def embed_multi(self, texts: Iterable[str], **options: Unpack[MultiOptions]) -> MultiEmbeddings:
        """Turn texts into dense, sparse and token vectors in one pass of a model that gives all three.

        BGE-M3 does. `similarity.weighted_three_way` compares two texts by all of them. The options are
        those of `MultiOptions`; `ConfigurationError` for a model that gives a dense vector alone.
        """
        return _wait(self.submit_embed_multi(texts, **options))

    def submit_embed_multi(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        input_type: InputType = "document",
        instruction: str | None = None,
        timeout: float | None = None,
        priority: Priority = "interactive",
        progress: Progress | None = None,
    ) -> Future[MultiEmbeddings]:
        """Start what `embed_multi` does and return its future at once; it may be cancelled until done."""
        call = MultiCall(
            texts=check.check_texts(texts),
            input_type=check.check_input_type(input_type),
            instruction=check.check_instruction(instruction),
        )
        return self._submit(call, model, self._embedding_model, timeout, priority, progress)

    def embed_query(self, text: str, **options: Unpack[EmbedOptions]) -> FloatArray:
        """The vector of one query, float32 (dimensions,), with the model's query prompt."""
        options.setdefault("input_type", "query")
        vectors: FloatArray = self.embed([check.check_text(text)], **options).vectors
        return np.asarray(vectors[0])

    def embed_documents(self, texts: Iterable[str], **options: Unpack[EmbedOptions]) -> FloatArray:
        """The vectors of documents, float32 (n, dimensions), with the model's document prompt."""
        return self.embed(texts, **options).vectors

    def embed_stream(
        self, texts: Iterable[str], *, chunk_size: int = STREAM_CHUNK, **options: Unpack[EmbedOptions]
    ) -> Iterator[Embeddings]:
        """Embed any number of texts in order and in bounded memory, `chunk_size` at a time.

        Reads `texts` at most two chunks ahead of what was taken. Priority is "bulk" unless given;
        `timeout` is for each chunk. Closing the iterator cancels what it has under way.
        """
        check.check_count(chunk_size, what="chunk_size")
        options.setdefault("priority", "bulk")
        return self._stream(check.check_stream(texts), chunk_size, options)

    def _stream(
        self, texts: Iterator[str], chunk_size: int, options: EmbedOptions
    ) -> Generator[Embeddings, None, None]:
        under_way: deque[Future[Embeddings]] = deque()
        try:
            while chunk := list(islice(texts, chunk_size)):
                while (future := self._submit_patiently(chunk, options, under_way)) is None:
                    yield _wait(under_way.popleft())
                under_way.append(future)
                while under_way and (len(under_way) > STREAM_AHEAD or under_way[0].done()):
                    yield _wait(under_way.popleft())
            while under_way:
                yield _wait(under_way.popleft())
        finally:
            for future in under_way:
                future.cancel()

    def _submit_patiently(
        self, chunk: list[str], options: EmbedOptions, under_way: deque[Future[Embeddings]]
    ) -> Future[Embeddings] | None:
        """Submit a chunk, or None while there is no room and something of one's own to wait for."""
        try:
            return self.submit_embed(chunk, **options)
        except Overloaded:
            if not under_way:
                raise
            return None

    def rerank(self, query: str, documents: Iterable[str], **options: Unpack[RerankOptions]) -> Ranking:
        """Rank documents by how well they answer the query, the best first.

        Scores are those the model's card promises (0 to 1 for a sigmoid). With
        AI_RERANKER_NAME=late-interaction the embedding model scores, by the best cosine of each
        query token, averaged. The options are those of `RerankOptions`.
        """
        return _wait(self.submit_rerank(query, documents, **options))

    def submit_rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        model: str | None = None,
        top_k: int | None = None,
        instruction: str | None = None,
        raw_scores: bool = False,
        timeout: float | None = None,
        priority: Priority = "interactive",
        progress: Progress | None = None,
    ) -> Future[Ranking]:
        """Start what `rerank` does and return its future at once; it can be cancelled until it is done."""
        call = RerankCall(
            query=check.check_text(query, what="query"),
            documents=check.check_texts(documents, what="documents"),
            top_k=check.check_top_k(top_k),
            instruction=check.check_instruction(instruction),
            raw_scores=bool(raw_scores),
        )
        return self._submit(call, model, self._reranking_model, timeout, priority, progress)

    def health(self) -> Health:
        """What is really loaded, queued and running; takes no device's time."""
        return examine(self._engine, main_model=self._settings.model_name, warnings=self._notices.texts())

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Have `observer(event)` called for every event; call what is returned to stop it.

        It runs on the service's threads and must be quick; its errors are swallowed and counted.
        """
        return self._events.subscribe(observer)

    def close(self, *, timeout: float = 5.0) -> None:
        """End the service; may be called twice.

        Calls that wait get `ServiceClosed`; what runs may finish for `timeout` seconds.
        """
        self._closed = True
        self._close_engine.detach()
        self._engine.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<AIService {self._settings.model_name} + {self._settings.reranker_name} {state}>"

    def _submit(
        self,
        call: Call[Answer],
        model: str | None,
        default: Callable[[], str],
        timeout: float | None,
        priority: Priority,
        progress: Progress | None,
    ) -> Future[Answer]:
        return self._engine.submit(
            default if model is None else check.check_text(model, what="model"),
            call,
            timeout=check.check_timeout(timeout, self._settings.default_timeout),
            priority=check.check_priority(priority),
            progress=check.check_progress(progress),
        )

    def _embedding_model(self) -> str:
        return self._settings.model_name

    def _reranking_model(self) -> str:
        return self._settings.reranking_model

    def _countdown(self, timeout: float | None) -> Callable[[], float | None]:
        """Tells how many seconds are left; None for no limit."""
        limit = check.check_timeout(timeout, self._settings.default_timeout)
        give_up = None if limit is None else time.monotonic() + limit
        return lambda: None if give_up is None else max(0.0, give_up - time.monotonic())

    def _start_engine(self) -> tuple[Engine, weakref.finalize[..., AIService]]:
        """An engine, and what closes it when the service is forgotten or the interpreter exits."""
        engine = build_engine(self._settings, self._notices.add, self._events)
        return engine, weakref.finalize(self, engine.close)

    def _renew_after_fork(self) -> None:
        """In the child of a fork: none of the engine's threads came along, so it gets a new one."""
        self._close_engine.detach()
        self._switching = threading.Lock()
        if not self._closed:
            before = self._engine.registry
            self._engine, self._close_engine = self._start_engine()
            self._engine.registry.know_as(before)


_services: weakref.WeakSet[AIService] = weakref.WeakSet()


def _renew_services() -> None:
    for service in list(_services):
        service._renew_after_fork()  # noqa: SLF001 - its own class, after a fork


os.register_at_fork(after_in_child=_renew_services)


def _read_settings() -> AISettings:
    from resilient_ai.settings import AISettings  # noqa: PLC0415 - pydantic, a third of all that is imported

    return AISettings()


def _wait(future: Future[Answer]) -> Answer:
    """Wait for a call; a caller that is interrupted meanwhile (Ctrl-C) withdraws it."""
    if on_runner_thread() and not future.done():
        future.cancel()
        raise InvalidInput(
            "a callback of the service would wait here for the thread it runs on; "
            "use submit_embed or submit_rerank, or hand the work to another thread"
        )
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
